"""A job's front as a user sees it, from the tables alone. Pure; no Optuna, so the API may load it."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from domain.build import BuildResult
from domain.front import Front, Point, PointArtifact
from domain.measurement import CandidateTiming, Measured, Measurement
from domain.pareto import nondominated
from domain.ports import JobSnapshot
from domain.trial import Trial
from search import finals
from search.view import View, deployable

# Accuracies are counts over samples: this only forgives the last bit of a float.
EPSILON = 1e-9


def build_front(snapshot: JobSnapshot, target: int) -> Front:
    """Return a target's front: provisional points while the job searches, final ones once they are measured together.

    Only non-dominated points stand on it, by measured latency ratio and by error on the split the points share: test
    for finals, search before. The dense model always stands beside it, as soon as its baseline is measured, and a point
    it beats in both is dropped.

    Raises:
        IndexError: If the job has no such target.
    """
    view = View(snapshot)
    if not 0 <= target < len(view.spec.targets):
        raise IndexError(target)
    if view.prepared(target) is None:
        return Front(target=target, is_final=False, dense=(), items=())
    is_final = finals.is_final(view, target)
    if is_final:
        dense = _dense_final(view, target)
        points = _final_points(view, target)
    else:
        dense = _dense_search(view, target)
        points = _search_points(view, target)
    if dense is None:
        return Front(target=target, is_final=False, dense=(), items=())
    kept = nondominated(points, latency=lambda p: 1.0 / p.speedup, error=_error)
    items = tuple(point for point in kept if point.speedup > 1.0 or _error(point) < _error(dense))
    return Front(target=target, is_final=is_final, dense=(dense,), items=items)


def _error(point: Point) -> float:
    return 1.0 - (point.accuracy if point.accuracy is not None else point.accuracy_search)


def _search_points(view: View, target: int) -> list[Point]:
    dense = view.dense_of(target)
    points = []
    for trial in view.succeeded(target):
        built, measured = view.built(trial), view.measured(trial)
        if built is None or measured is None:
            continue
        measurement, outcome, timing = measured
        within = built.accuracy.search >= dense.accuracy.search - view.spec.objective.max_drop - EPSILON
        points.append(_point(view, target, "search", trial, built, measurement, outcome, timing, within))
    return points


def _final_points(view: View, target: int) -> list[Point]:
    dense = view.dense_final(target)
    dense_accuracy = dense.accuracy.test if dense is not None else None
    points = []
    for measurement, outcome in finals.accepted_sessions(view, target):
        timings = {timing.digest: timing for timing in outcome.candidates}
        for trial in finals.finalists(view, target):
            build = finals.final_build(view, target, trial)
            if build is None or not isinstance(build.outcome, BuildResult) or build.outcome.accuracy.test is None:
                continue
            timing = timings.get(deployable(build.outcome).artifact.digest)
            if timing is None:
                continue
            within = dense_accuracy is not None and (
                build.outcome.accuracy.test >= dense_accuracy - view.spec.objective.max_drop - EPSILON
            )
            points.append(_point(view, target, "final", trial, build.outcome, measurement, outcome, timing, within))
    return points


def _point(
    view: View,
    target: int,
    stage: Literal["search", "final"],
    trial: Trial,
    built: BuildResult,
    measurement: Measurement,
    outcome: Measured,
    timing: CandidateTiming,
    within_max_drop: bool,
) -> Point:
    return Point(
        trial=trial.number,
        target=target,
        stage=stage,
        accuracy=built.accuracy.test if stage == "final" else None,
        accuracy_search=built.accuracy.search,
        test_samples=built.accuracy.test_samples if stage == "final" else None,
        latency_ms=timing.latency_ms,
        latency_ci_ms=timing.latency_ci_ms,
        speedup=timing.speedup,
        speedup_ci=timing.speedup_ci,
        is_noisy=timing.is_noisy,
        within_max_drop=within_max_drop,
        macs=built.macs,
        params=built.params,
        size_bytes=deployable(built).artifact.size_bytes,
        precision=trial.candidate.precision,
        candidate=real_sparsity(view, target, trial),
        widths=dict(built.widths or trial.candidate.widths),
        artifacts=point_artifacts(built),
        manifest=manifest_of(view, target, built),
        measured_at=_measured_at(measurement),
        conditions=_conditions(measurement, outcome),
    )


def real_sparsity(view: View, target: int, trial: Trial) -> dict[str, float]:
    """Return the sparsity a candidate really has a group: after alignment, not as asked."""
    widths = trial.candidate.widths
    groups = view.dense_of(target).groups
    return {g.name: round(1.0 - widths.get(g.name, g.channels) / g.channels, 6) for g in groups}


def point_artifacts(built: BuildResult) -> tuple[PointArtifact, ...]:
    """Return a build's files, the one that was measured first."""
    first = deployable(built)
    ordered = (first, *(artifact for artifact in built.artifacts if artifact is not first))
    return tuple(
        PointArtifact(format=a.format, digest=a.artifact.digest, size_bytes=a.artifact.size_bytes) for a in ordered
    )


def manifest_of(view: View, target: int, built: BuildResult) -> str | None:
    manifests = view.job.report.get("manifests")
    found = manifests.get(f"{target}:{deployable(built).artifact.digest}") if isinstance(manifests, dict) else None
    return found if isinstance(found, str) else None


def _dense_search(view: View, target: int) -> Point | None:
    measurement = view.measurements.get(f"baseline:{target}")
    if measurement is None or not isinstance(measurement.outcome, Measured):
        return None
    return _dense_point(view, target, "search", view.dense_of(target), measurement, measurement.outcome)


def _dense_final(view: View, target: int) -> Point | None:
    built = view.dense_final(target)
    sessions = finals.accepted_sessions(view, target)
    if built is None:
        return None
    if sessions:
        return _dense_point(view, target, "final", built, *sessions[0])
    baseline = view.measurements.get(f"baseline:{target}")  # nothing was left to measure again
    if baseline is None or not isinstance(baseline.outcome, Measured):
        return None
    return _dense_point(view, target, "final", built, baseline, baseline.outcome)


def _dense_point(
    view: View,
    target: int,
    stage: Literal["search", "final"],
    built: BuildResult,
    measurement: Measurement,
    outcome: Measured,
) -> Point:
    latency = outcome.baseline.latency_ms
    return Point(
        trial=None,
        target=target,
        stage=stage,
        accuracy=built.accuracy.test if stage == "final" else None,
        accuracy_search=built.accuracy.search,
        test_samples=built.accuracy.test_samples if stage == "final" else None,
        latency_ms=latency,
        latency_ci_ms=outcome.baseline.latency_ci_ms or (latency, latency),
        speedup=1.0,
        speedup_ci=(1.0, 1.0),
        within_max_drop=True,
        macs=built.macs,
        params=built.params,
        size_bytes=deployable(built).artifact.size_bytes,
        precision=measurement.request.precision,
        candidate={},
        widths={g.name: g.channels for g in view.dense_of(target).groups},
        artifacts=point_artifacts(built),
        manifest=manifest_of(view, target, built),
        measured_at=_measured_at(measurement),
        conditions=_conditions(measurement, outcome),
    )


def _measured_at(measurement: Measurement) -> datetime:
    return measurement.finished_at or measurement.created_at


def _conditions(measurement: Measurement, outcome: Measured) -> dict[str, object]:
    return {**outcome.conditions, "device_id": measurement.device_id, "runtime": measurement.request.runtime}
