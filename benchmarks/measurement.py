"""Claim: a verdict on a 1 ms model costs at most 3 s, agrees within 1 % in 95 of 100 repeats, and is false in at most 3 of 100.

A/A: the same file on both sides, so every verdict but a tie is false. A/B: one network against a shallower one, repeated; each
speed-up is compared with the median of all. Both are done on this machine as it is, and with another process loading it in
bursts. Every measurement is what an agent does: a child process, fresh sessions, the default plan, its own seed.

    python -m benchmarks.measurement [--runs 100] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.tiny_onnx import TinyNet, write_conv_net
from domain.artifact import ArtifactKind, ArtifactRef, digest_of_file
from domain.measurement import CandidateTiming, Measured, MeasuredFile, MeasurementPlan, MeasurementRequest, Verdict
from workers.agent.sandbox import SandboxRunner

# Works and sleeps, each for 10 to 400 ms, until it is killed or its parent is gone: the worst neighbour is an unsteady one.
NEIGHBOUR = """
import os, random, time
import numpy as np
parent, rng, a = os.getppid(), random.Random({seed}), np.random.rand(200, 200)
while os.getppid() == parent:
    until = time.time() + rng.uniform(0.01, 0.4)
    while time.time() < until:
        a @ a
    time.sleep(rng.uniform(0.01, 0.4))
"""


@dataclass(frozen=True)
class Row:
    """One measurement of a series."""

    speedup: float
    low: float
    high: float
    verdict: str
    is_noisy: bool
    wall_s: float
    baseline_ms: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--json", type=Path, default=None, help="Write every single measurement here.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dense = write_conv_net(Path(folder) / "dense.onnx", channels=48, depth=4)
        pruned = write_conv_net(Path(folder) / "pruned.onnx", channels=48, depth=3)
        series = {
            "A/A": [measure(dense, dense, seed) for seed in range(given.runs)],
            "A/A, loaded": loaded(dense, dense, given.runs),
            "A/B": [measure(dense, pruned, seed) for seed in range(given.runs)],
            "A/B, loaded": loaded(dense, pruned, given.runs),
        }
    show(series)
    if given.json:
        given.json.write_text(json.dumps({name: [vars(row) for row in rows] for name, rows in series.items()}))


def measure(baseline: TinyNet, candidate: TinyNet, seed: int) -> Row:
    """Measure once, as an agent would."""
    sides = {net.path: _file(net) for net in (baseline, candidate)}
    paths = {digest_of_file(path): path for net in (baseline, candidate) for path in (net.path, net.check)}
    request = MeasurementRequest(
        runtime="onnxruntime",
        baseline=sides[baseline.path],
        candidates=(sides[candidate.path],),
        plan=MeasurementPlan(seed=seed),
    )
    begin_s = time.perf_counter()
    outcome = SandboxRunner().run(
        request, fetch=lambda ref: paths[ref.digest], report_stage=lambda stage: None, is_cancelled=lambda: False
    )
    wall_s = time.perf_counter() - begin_s
    if not isinstance(outcome, Measured):
        raise SystemExit(outcome.reason)
    result: CandidateTiming = outcome.candidates[0]
    return Row(
        speedup=result.speedup,
        low=result.speedup_ci[0],
        high=result.speedup_ci[1],
        verdict=str(result.verdict),
        is_noisy=result.is_noisy,
        wall_s=wall_s,
        baseline_ms=outcome.baseline.latency_ms,
    )


def loaded(baseline: TinyNet, candidate: TinyNet, runs: int) -> list[Row]:
    rows = []
    for seed in range(runs):
        with neighbour(seed):
            rows.append(measure(baseline, candidate, seed))
    return rows


@contextmanager
def neighbour(seed: int) -> Iterator[None]:
    """Another process that loads one core in bursts."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", NEIGHBOUR.format(seed=seed)], env=environment)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def show(series: dict[str, list[Row]]) -> None:
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end")
    print(
        "| series | speed-up | within 1 % | worst | not a tie | noisy | half-width | wall s, median / p95 | model ms |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, rows in series.items():
        ratios = np.array([row.speedup for row in rows])
        centre = 1.0 if name.startswith("A/A") else float(np.median(ratios))
        away = np.abs(ratios / centre - 1)
        walls = np.array([row.wall_s for row in rows])
        half = np.median([(row.high - row.low) / 2 / row.speedup for row in rows])
        print(
            f"| {name} | {np.median(ratios):.4f} | {(away <= 0.01).sum()} of {len(rows)} | {away.max() * 100:.1f} % "
            f"| {sum(row.verdict != Verdict.TIE for row in rows)} | {sum(row.is_noisy for row in rows)} "
            f"| ±{half * 100:.2f} % | {np.median(walls):.1f} / {np.percentile(walls, 95):.1f} "
            f"| {np.median([row.baseline_ms for row in rows]):.2f} |"
        )


def _file(net: TinyNet) -> MeasuredFile:
    return MeasuredFile(
        artifact=_reference(net.path, ArtifactKind.ONNX), check=_reference(net.check, ArtifactKind.CHECK)
    )


def _reference(path: Path, kind: ArtifactKind) -> ArtifactRef:
    return ArtifactRef(digest=digest_of_file(path), size_bytes=path.stat().st_size, kind=kind)


if __name__ == "__main__":
    main()
