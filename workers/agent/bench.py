"""The paired measurement of two files on this machine, no server: how anyone reproduces a number."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from pydantic import JsonValue

from domain.artifact import ArtifactKind, ArtifactRef, digest_of_file
from domain.errors import FieldProblem, Invalid, Unavailable
from domain.formats import FORMATS, READ_BY, kind_of_suffix
from domain.measurement import MeasuredFile, MeasurementPlan, MeasurementRequest
from domain.outcome import Failed
from workers.agent import quiet
from workers.agent.assembly import make_inventory, make_runner
from workers.agent.settings import AgentSettings


class BenchFailed(Unavailable):
    """The measurement gave no number; ``metadata`` holds its stage, blame and code."""

    default_code = "bench_failed"


def bench(
    candidate: Path,
    baseline: Path,
    *,
    runtime: str = "onnxruntime",
    threads: int = 1,
    batch: int = 1,
    precision: str = "fp32",
    max_s: float | None = None,
    seed: int = 0,
    report_stage: Callable[[str], None] = lambda stage: None,
) -> dict[str, JsonValue]:
    """Time ``candidate`` against ``baseline`` exactly as an agent does.

    Args:
        candidate: File to judge.
        baseline: File to judge it by.
        runtime: Name of a runtime of this machine.
        threads: Threads of the runtime.
        batch: Samples a run.
        precision: For the record; decides nothing here, as there is no check.
        max_s: Longest timed region; default: that of an agent.
        seed: Of inputs and order.
        report_stage: Told each stage as it begins.

    Returns:
        ``speedup`` (baseline / candidate), ``speedup_ci``, ``verdict``, ``latency_ms``, ``latency_ci_ms``,
        ``baseline_latency_ms``, ``pairs``, ``is_noisy``, ``unmet``, ``wall_s``, ``conditions``, ``warnings``.

    Raises:
        Invalid: If a file cannot be read.
        BenchFailed: If there is no number; the reason in words.
    """
    begin_s = time.perf_counter()
    settings = AgentSettings()
    files = {path: _reference(path) for path in (baseline, candidate)}
    places = {ref.digest: path.resolve() for path, ref in files.items()}
    plan = MeasurementPlan(seed=seed) if max_s is None else MeasurementPlan(seed=seed, max_s=max_s)
    request = MeasurementRequest(
        runtime=runtime,
        precision=precision,
        batch=batch,
        threads=threads,
        baseline=MeasuredFile(artifact=files[baseline]),
        candidates=(MeasuredFile(artifact=files[candidate]),),
        plan=plan,
    )
    inventory = make_inventory(settings)
    facts: dict[str, JsonValue] = {
        "hostname": inventory.hostname,
        "machine": inventory.machine,
        "cpu": inventory.cpu,
        "os": inventory.os,
        "agent_version": inventory.agent_version,
        "baseline_digest": files[baseline].digest,
        "candidate_digest": files[candidate].digest,
    }
    runner = make_runner(settings.model_copy(update={"keep_spare": False}), facts=facts)
    report_stage("wait_for_quiet")
    with quiet.measuring(settings.quiet_file):
        outcome = runner.run(
            request, fetch=lambda ref: places[ref.digest], report_stage=report_stage, is_cancelled=lambda: False
        )
    if isinstance(outcome, Failed):
        raise BenchFailed(
            outcome.reason,
            code=outcome.code,
            metadata={"stage": outcome.stage, "blame": str(outcome.blame)},
        )
    result = outcome.candidates[0]
    return {
        "speedup": result.speedup,
        "speedup_ci": list(result.speedup_ci),
        "verdict": str(result.verdict),
        "latency_ms": result.latency_ms,
        "latency_ci_ms": list(result.latency_ci_ms),
        "throughput_per_s": result.throughput_per_s,
        "baseline_latency_ms": outcome.baseline.latency_ms,
        "pairs": result.pairs,
        "is_noisy": result.is_noisy,
        "unmet": result.unmet,
        "wall_s": time.perf_counter() - begin_s,
        "conditions": outcome.conditions,
        "warnings": list(outcome.warnings),
    }


def _reference(path: Path) -> ArtifactRef:
    suffix = path.suffix.removeprefix(".").lower()
    kind = kind_of_suffix(suffix)
    if kind is None:
        read = {name for names in READ_BY.values() for name in names}
        timed = ", ".join(f".{known.suffix}" for name, known in FORMATS.items() if name in read)
        raise Invalid(
            f"{path}: files of kind {suffix or '(none)'} are not timed; give one of: {timed}.",
            fields=(FieldProblem(field=str(path), message="not a deployable file"),),
        )
    try:
        return ArtifactRef(digest=digest_of_file(path), size_bytes=path.stat().st_size, kind=ArtifactKind(kind))
    except OSError as error:
        raise Invalid(
            f"{path} cannot be read: {error.strerror}.",
            fields=(FieldProblem(field=str(path), message=str(error.strerror)),),
        ) from error
