"""The precisions of a target, and how the dense model's latencies in them compare. Pure.

A speed-up is always against the dense model of the same precision. To put points of several precisions on one front, each
session of a precision other than the target's first measures the dense model of the first beside its own baseline: the
paired ratio of the two is the session's *scale*. Latency over that of the first dense model = scale / speed-up.
"""

from __future__ import annotations

from dataclasses import dataclass

from domain.measurement import CandidateTiming, Measured, MeasuredFile, Measurement
from search.view import View, measured_file


@dataclass(frozen=True)
class Scale:
    """Latency of the dense model in a precision / that in the target's first precision, with its interval."""

    ratio: float = 1.0
    interval: tuple[float, float] = (1.0, 1.0)


def first_of(view: View, target: int) -> str:
    """Return the precision a target names first: what latencies and accuracies of the others are held against."""
    return view.spec.targets[target].precision[0]


def is_mixed(view: View, target: int) -> bool:
    return len(view.spec.targets[target].precision) > 1


def session_key(stem: str, view: View, target: int, precision: str) -> str:
    """Return the key of a measuring session of a target and precision: ``final:0``, ``final:0:int8``."""
    return f"{stem}:{target}" if precision == first_of(view, target) else f"{stem}:{target}:{precision}"


def yardstick(view: View, target: int, precision: str) -> list[MeasuredFile]:
    """Return what a session of a precision times first, beside its candidates: the dense model of the first precision."""
    if precision == first_of(view, target):
        return []
    dense = view.dense_final(target) or view.dense_of(target)
    return [measured_file(dense, view.format_of(target), first_of(view, target))]


def scale_in(view: View, target: int, measurement: Measurement) -> Scale | None:
    """Return a session's scale; None where it gave no numbers. Not for a trial's own measurement, which has none."""
    if measurement.request.precision == first_of(view, target):
        return Scale()
    if not isinstance(measurement.outcome, Measured):
        return None
    timing = measurement.outcome.candidates[0]  # the yardstick
    return Scale(timing.speedup, timing.speedup_ci)


def baseline_scale(view: View, target: int, precision: str) -> Scale | None:
    """Return the scale of a precision as the target's baseline sessions found it; None before they did."""
    measurement = view.measurements.get(session_key("baseline", view, target, precision))
    if precision == first_of(view, target):
        return Scale()
    return scale_in(view, target, measurement) if measurement is not None else None


def comparable(view: View, target: int, timing: CandidateTiming, scale: Scale, reference_ms: float) -> CandidateTiming:
    """Return a timing whose latency compares with those of other precisions; its speed-up stays as it was paired.

    The interval multiplies the ends of both ratios, which is wider than needed and never too narrow.
    """
    if not is_mixed(view, target):
        return timing
    (low, high), (slow, fast) = scale.interval, timing.speedup_ci
    return timing.model_copy(
        update={
            "latency_ms": reference_ms * scale.ratio / timing.speedup,
            "latency_ci_ms": (reference_ms * low / fast, reference_ms * high / slow),
        }
    )


def dense_points(view: View, target: int) -> list[tuple[float, float]]:
    """Return (latency ratio, error on the search split) of the dense model in each precision measured so far."""
    points = []
    for precision in view.spec.targets[target].precision:
        scale = baseline_scale(view, target, precision)
        if scale is not None:
            points.append((scale.ratio, 1.0 - view.dense_accuracy(target, precision)))
    return points
