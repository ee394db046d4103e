"""Does an outcome answer what was asked? A device that lies, or mixes up its files, must not reach a front."""

from __future__ import annotations

import math
from collections.abc import Iterator

from domain.errors import FieldProblem, Invalid
from domain.measurement import CandidateTiming, FileTiming, Measured, MeasurementOutcome, MeasurementRequest

MAX_SPEEDUP = 100_000.0
REPLAY = "replay"  # the runtime of a device that plays back or makes up: it times nothing, and says so in its warnings


def check_outcome(request: MeasurementRequest, outcome: MeasurementOutcome) -> None:
    """Check an outcome against its request. Raises Invalid ``implausible_outcome`` naming every bad field."""
    if not isinstance(outcome, Measured):
        return
    problems = [FieldProblem(f"outcome.{field}", message) for field, message in _problems(request, outcome)]
    if problems:
        raise Invalid(
            "The outcome does not answer the request; run `pruneloop agent doctor` on the device.",
            code="implausible_outcome",
            fields=problems,
        )


def _problems(request: MeasurementRequest, outcome: Measured) -> Iterator[tuple[str, str]]:
    asked = [file.artifact.digest for file in request.candidates]
    told = [candidate.digest for candidate in outcome.candidates]
    if asked != told:
        yield "candidates", "must be the files asked for, in the order asked"
    least = 0 if request.runtime == REPLAY else 1
    yield from _timing_problems("baseline", outcome.baseline, request.batch, least)
    for index, candidate in enumerate(outcome.candidates):
        where = f"candidates.{index}"
        yield from _timing_problems(f"{where}.timing", candidate.timing, request.batch, least)
        yield from _throughput_problems(where, candidate, request.batch)
        yield from _ratio_problems(where, candidate, least)


def _throughput_problems(where: str, timing: FileTiming | CandidateTiming, batch: int) -> Iterator[tuple[str, str]]:
    told = timing.throughput_per_s
    if told is not None and not math.isclose(told * timing.latency_ms, batch * 1000.0, rel_tol=1e-3):
        yield f"{where}.throughput_per_s", f"must be the batch of {batch} over latency_ms"


def _timing_problems(where: str, timing: FileTiming, batch: int, least: int) -> Iterator[tuple[str, str]]:
    yield from _throughput_problems(where, timing, batch)
    if not timing.latency_ms > 0 or not math.isfinite(timing.latency_ms):
        yield f"{where}.latency_ms", "must be positive"
    if timing.runs < least:
        yield f"{where}.runs", "must be at least 1: nothing was timed"
    for name in ("load_ms", "first_ms"):
        if getattr(timing, name) < 0:
            yield f"{where}.{name}", "must not be negative"


def _ratio_problems(where: str, candidate: CandidateTiming, least: int) -> Iterator[tuple[str, str]]:
    if not candidate.latency_ms > 0:
        yield f"{where}.latency_ms", "must be positive"
    if not 0 < candidate.speedup <= MAX_SPEEDUP:
        yield f"{where}.speedup", f"must lie between 0 and {MAX_SPEEDUP:g}"
    if candidate.pairs < least:
        yield f"{where}.pairs", "must be at least 1: nothing was compared"
    for name in ("latency_ci_ms", "speedup_ci"):
        low, high = getattr(candidate, name)
        if not 0 < low <= high:
            yield f"{where}.{name}", "must be [low, high] with 0 < low <= high"
