"""Claim: a latency ratio by Pruneloop is right within 1 %, and right where `torch.utils.benchmark` and two medians are not.

Four pairs of files of about a millisecond, each measured again and again while another process loads the machine in bursts: a
file against itself, and against files that take 1.02, 1.05 and 1.2 times as long by construction (`tiny_onnx.write_loop`: the same
block, repeated 400, 408, 420 and 480 times; nothing else differs). Each pair is measured three ways within the same minute and
the same total time: as an agent does (a child process, fresh sessions, the default plan), by `torch.utils.benchmark` on each file,
and by the median of as many runs as there is time for on each file.

    make bench-measurement                                     # everything, half an hour, writes docs/benchmarks/measurement.md
    python -m benchmarks.measurement --json rows.jsonl --for-s 540      # a piece of it; run it again and it goes on
    python -m benchmarks.measurement --runs 5                           # a look
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from benchmarks import rivals
from benchmarks.measurement_report import METHODS, OURS, TORCH, TWO_MEDIANS, Row, render
from benchmarks.tiny_onnx import TinyNet, write_loop
from domain.artifact import ArtifactKind, ArtifactRef, digest_of_file
from domain.measurement import Measured, MeasuredFile, MeasurementPlan, MeasurementRequest
from workers.agent.sandbox import SandboxRunner

REPEATS = 400  # about a millisecond
TRUTHS = (1.0, 1.02, 1.05, 1.2)
LOOKS_AT_FIXED_COST = 2000

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="Measurements of each pair.")
    parser.add_argument(
        "--json", type=Path, default=None, help="Every measurement, a line each; what is there is not redone."
    )
    parser.add_argument("--rivals-every", type=int, default=1, help="Do every N-th run the other ways too.")
    parser.add_argument("--for-s", type=float, default=float("inf"), help="Begin nothing new after this many seconds.")
    parser.add_argument("--report", type=Path, default=None, help="Write the table here as well, with the machine.")
    given = parser.parse_args()
    begin_s = time.monotonic()
    rows = _read(given.json)
    with tempfile.TemporaryDirectory() as folder:
        nets = {truth: write_loop(Path(folder) / f"{truth}.onnx", repeats=round(REPEATS * truth)) for truth in TRUTHS}
        nothing = write_loop(Path(folder) / "nothing.onnx", repeats=0)
        # Run by run, not pair by pair: what the machine does in the meantime meets all pairs alike.
        for seed, truth in itertools.product(range(given.runs), TRUTHS):
            if time.monotonic() - begin_s >= given.for_s:
                break
            methods = METHODS if seed % given.rivals_every == 0 else (OURS,)
            known = {row.method: row for row in rows if (row.truth, row.seed) == (truth, seed)}
            if set(methods) <= set(known):
                continue
            with neighbour(seed):
                ours = known.get(OURS) or measure(nets[1.0], nets[truth], truth, seed)
                new = [ours, *by_others(nets[1.0], nets[truth], ours, methods)]
            new = [row for row in new if row.method not in known]
            rows += new
            _append(given.json, new)
        fixed_ms = rivals.fastest_ms(nothing.path, LOOKS_AT_FIXED_COST)
    table = render(rows, fixed_ms)
    print(table)
    if given.report:
        given.report.parent.mkdir(parents=True, exist_ok=True)
        given.report.write_text(table)


def by_others(baseline: TinyNet, candidate: TinyNet, ours: Row, methods: Sequence[str]) -> list[Row]:
    """Measure one pair by the other methods; each gets all the time that ours took."""
    ways = {TORCH: rivals.by_torch, TWO_MEDIANS: rivals.by_two_medians}
    found = []
    for method in sorted(set(ways) & set(methods), reverse=bool(ours.seed % 2)):  # they go first by turns
        begin_s = time.perf_counter()
        ratio = ways[method](baseline.path, candidate.path, ours.total_s)
        total_s = time.perf_counter() - begin_s
        found.append(Row(method=method, truth=ours.truth, seed=ours.seed, ratio=ratio, total_s=total_s))
    return found


def measure(baseline: TinyNet, candidate: TinyNet, truth: float, seed: int) -> Row:
    """Measure once, as an agent would."""
    sides = [_file(net) for net in (baseline, candidate)]
    paths = {digest_of_file(path): path for net in (baseline, candidate) for path in (net.path, net.check)}
    request = MeasurementRequest(
        runtime="onnxruntime", baseline=sides[0], candidates=(sides[1],), plan=MeasurementPlan(seed=seed)
    )
    begin_s = time.perf_counter()
    outcome = SandboxRunner().run(
        request, fetch=lambda ref: paths[ref.digest], report_stage=lambda stage: None, is_cancelled=lambda: False
    )
    total_s = time.perf_counter() - begin_s
    if not isinstance(outcome, Measured):
        raise SystemExit(outcome.reason)
    (result,) = outcome.candidates
    return Row(
        method=OURS,
        truth=truth,
        seed=seed,
        ratio=1 / result.speedup,
        total_s=total_s,
        half_width=(result.speedup_ci[1] - result.speedup_ci[0]) / 2 / result.speedup,
        is_covered=result.speedup_ci[0] <= 1 / truth <= result.speedup_ci[1],
        verdict=str(result.verdict),
        is_noisy=result.is_noisy,
        baseline_ms=outcome.baseline.latency_ms,
    )


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


def _read(path: Path | None) -> list[Row]:
    if path is None or not path.exists():
        return []
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()]


def _append(path: Path | None, rows: list[Row]) -> None:
    if path is not None:
        with path.open("a") as out:
            out.writelines(json.dumps(asdict(row)) + "\n" for row in rows)


def _file(net: TinyNet) -> MeasuredFile:
    return MeasuredFile(
        artifact=_reference(net.path, ArtifactKind.ONNX), check=_reference(net.check, ArtifactKind.CHECK)
    )


def _reference(path: Path, kind: ArtifactKind) -> ArtifactRef:
    return ArtifactRef(digest=digest_of_file(path), size_bytes=path.stat().st_size, kind=kind)


if __name__ == "__main__":
    main()
