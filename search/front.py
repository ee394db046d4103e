"""A job's front as a user sees it, from the tables alone. Pure; no Optuna, so the API may load it."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from domain.build import BuildResult, BuiltArtifact
from domain.front import Front, Point, PointArtifact
from domain.job import Job
from domain.measurement import CandidateTiming, Measured, Measurement
from domain.pareto import nondominated
from domain.ports import JobSnapshot
from domain.scores import value_of
from domain.trial import Trial
from search import finals
from search.precision import baseline_scale, comparable, first_of, is_mixed, scale_in, session_key
from search.view import View, deployable
from search.zeros import may_stand

# Accuracies are counts over samples: this only forgives the last bit of a float.
EPSILON = 1e-9


def build_front(snapshot: JobSnapshot, target: int) -> Front:
    """Return a target's front: provisional points while the job searches, final ones once they are measured together.

    Only non-dominated points stand on it, by measured latency ratio and by error on the split the points share: test
    for finals, search before. The dense model always stands beside it, as soon as its baseline is measured, and a point
    it beats in both is dropped. Where a target has several precisions, so does the dense model, and every latency on
    the front is that of the dense model in the first precision times paired ratios, so that they compare.

    Raises:
        IndexError: If the job has no such target.
    """
    view = View(snapshot)
    if not 0 <= target < len(view.spec.targets):
        raise IndexError(target)
    if view.prepared(target) is None:
        return Front(target=target, is_final=False, dense=(), items=())
    is_final = finals.is_final(view, target)
    dense = _dense_points(view, target, "final" if is_final else "search")
    if not dense:
        return Front(target=target, is_final=False, dense=(), items=())
    reference_ms = dense[0].latency_ms
    points = _final_points(view, target, reference_ms) if is_final else _search_points(view, target, reference_ms)

    def latency(point: Point) -> float:
        return point.latency_ms if is_mixed(view, target) else 1.0 / point.speedup

    kept = nondominated(points, latency=latency, error=_error)
    items = tuple(
        point for point in kept if all(latency(point) < latency(d) or _error(point) < _error(d) for d in dense)
    )
    return Front(target=target, is_final=is_final, dense=dense, items=items)


def best_speedups(snapshot: JobSnapshot) -> dict[int, float]:
    """Return target -> the largest speed-up on its front within the accuracy drop that the user allows."""
    best: dict[int, float] = {}
    for target in range(len(snapshot.job.spec.targets)):
        points = build_front(snapshot, target).items
        found = [point.speedup for point in points if point.within_max_drop and point.trial is not None]
        if found:
            best[target] = max(found)
    return best


def told_speedups(job: Job) -> dict[int, float]:
    """Return what the report of an ended job says of ``best_speedups``; empty where it says nothing."""
    told = job.report.get("best_speedup")
    if not isinstance(told, dict):
        return {}
    return {int(target): float(value) for target, value in told.items() if isinstance(value, int | float)}


def _error(point: Point) -> float:
    return 1.0 - (point.accuracy if point.accuracy is not None else point.accuracy_search)


def _search_points(view: View, target: int, reference_ms: float) -> list[Point]:
    points = []
    for trial in view.succeeded(target):
        built, measured = view.built(trial), view.measured(trial)
        if built is None or measured is None or not may_stand(view, trial):
            continue
        measurement, outcome, timing = measured
        scale = baseline_scale(view, target, trial.candidate.precision)
        if scale is None:
            continue
        within = built.accuracy.search >= view.dense_accuracy(target) - view.spec.objective.max_drop - EPSILON
        timing = comparable(view, target, timing, scale, reference_ms)
        points.append(_point(view, target, "search", trial, built, measurement, outcome, timing, within))
    return points


def _final_points(view: View, target: int, reference_ms: float) -> list[Point]:
    dense_accuracy = _dense_test(view, target, first_of(view, target))
    points = []
    for measurement, outcome in finals.accepted_sessions(view, target):
        scale = scale_in(view, target, measurement)
        if scale is None:
            continue
        timings = {timing.digest: timing for timing in outcome.candidates}
        for trial in finals.finalists(view, target):
            build = finals.final_build(view, target, trial)
            if build is None or not isinstance(build.outcome, BuildResult) or build.outcome.accuracy.test is None:
                continue
            timing = timings.get(deployable(build.outcome, view.format_of(target)).artifact.digest)
            if timing is None:
                continue
            within = dense_accuracy is not None and (
                build.outcome.accuracy.test >= dense_accuracy - view.spec.objective.max_drop - EPSILON
            )
            timing = comparable(view, target, timing, scale, reference_ms)
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
        metric=built.accuracy.metric,
        metric_value=_own_value(built, built.accuracy.search, built.accuracy.test if stage == "final" else None),
        accuracy=built.accuracy.test if stage == "final" else None,
        accuracy_search=built.accuracy.search,
        test_samples=built.accuracy.test_samples if stage == "final" else None,
        latency_ms=timing.latency_ms,
        latency_ci_ms=timing.latency_ci_ms,
        speedup=timing.speedup,
        speedup_ci=timing.speedup_ci,
        is_noisy=timing.is_noisy,
        is_suspect=measurement.is_suspect,
        within_max_drop=within_max_drop,
        macs=built.macs,
        params=built.params,
        size_bytes=deployable(built, view.format_of(target)).artifact.size_bytes,
        precision=trial.candidate.precision,
        candidate=real_sparsity(view, target, trial),
        widths=dict(built.widths or trial.candidate.widths),
        zeros=trial.candidate.zeros,
        artifacts=point_artifacts(built, view.format_of(target)),
        manifest=manifest_of(view, target, deployable(built, view.format_of(target))),
        measured_at=_measured_at(measurement),
        conditions=_conditions(measurement, outcome),
    )


def _own_value(built: BuildResult, search: float, test: float | None) -> float | None:
    report = built.accuracy
    if test is not None:
        return value_of(report.metric, test, report.spread_test)
    return value_of(report.metric, search, report.spread_search)


def real_sparsity(view: View, target: int, trial: Trial) -> dict[str, float]:
    """Return the sparsity a candidate really has a group: after alignment, not as asked."""
    widths = trial.candidate.widths
    groups = view.dense_of(target).groups
    return {g.name: round(1.0 - widths.get(g.name, g.channels) / g.channels, 6) for g in groups}


def point_artifacts(built: BuildResult, format: str, precision: str | None = None) -> tuple[PointArtifact, ...]:
    """Return a build's files, of a precision if asked, the one that was measured first."""
    first = deployable(built, format, precision)
    ordered = (first, *(a for a in built.artifacts if a is not first and precision in {None, a.precision}))
    return tuple(
        PointArtifact(
            format=a.format,
            digest=a.artifact.digest,
            size_bytes=a.artifact.size_bytes,
            precision=a.precision,
            accuracy=a.accuracy_test,
        )
        for a in ordered
    )


def manifest_of(view: View, target: int, file: BuiltArtifact) -> str | None:
    manifests = view.job.report.get("manifests")
    found = manifests.get(f"{target}:{file.artifact.digest}") if isinstance(manifests, dict) else None
    return found if isinstance(found, str) else None


def _dense_test(view: View, target: int, precision: str) -> float | None:
    """Return the test accuracy of the dense file in a precision, once it was run."""
    built = view.dense_final(target)
    if built is None:
        return None
    own = deployable(built, view.format_of(target), precision).accuracy_test
    return built.accuracy.test if own is None else own


def _dense_points(view: View, target: int, stage: Literal["search", "final"]) -> tuple[Point, ...]:
    """Return the dense model in every precision measured, the target's first one first; nothing without that."""
    points: list[Point] = []
    for precision in view.spec.targets[target].precision:
        session = _dense_session(view, target, stage, precision)
        if session is not None:
            reference_ms = points[0].latency_ms if points else session[1].baseline.latency_ms
            points.append(_dense_point(view, target, stage, precision, *session, reference_ms))
        elif not points:
            return ()
    return tuple(points)


def _dense_session(
    view: View, target: int, stage: Literal["search", "final"], precision: str
) -> tuple[Measurement, Measured] | None:
    """Return the session the dense model's latency in a precision is of: of the finals if there was one, or the baseline."""
    if stage == "final":
        for measurement, outcome in finals.accepted_sessions(view, target):
            if measurement.request.precision == precision:
                return measurement, outcome
    baseline = view.measurements.get(session_key("baseline", view, target, precision))
    if baseline is None or not isinstance(baseline.outcome, Measured):
        return None
    return baseline, baseline.outcome


def _dense_point(
    view: View,
    target: int,
    stage: Literal["search", "final"],
    precision: str,
    measurement: Measurement,
    outcome: Measured,
    reference_ms: float,
) -> Point:
    built = (view.dense_final(target) if stage == "final" else None) or view.dense_of(target)
    file = deployable(built, view.format_of(target), precision)
    test = _dense_test(view, target, precision) if stage == "final" else None
    first, max_drop = first_of(view, target), view.spec.objective.max_drop
    first_test = _dense_test(view, target, first)
    lost = view.dense_accuracy(target) - view.dense_accuracy(target, precision)
    if test is not None and first_test is not None:
        lost = first_test - test
    latency_ms, interval_ms = reference_ms, outcome.baseline.latency_ci_ms or (reference_ms, reference_ms)
    scale = scale_in(view, target, measurement)
    if precision != first and scale is not None:
        latency_ms = reference_ms * scale.ratio
        interval_ms = (reference_ms * scale.interval[0], reference_ms * scale.interval[1])
    return Point(
        trial=None,
        target=target,
        stage=stage,
        metric=built.accuracy.metric,
        metric_value=_own_value(built, view.dense_accuracy(target, precision), test),
        accuracy=test,
        accuracy_search=view.dense_accuracy(target, precision),
        test_samples=built.accuracy.test_samples if stage == "final" else None,
        latency_ms=latency_ms,
        latency_ci_ms=interval_ms,
        speedup=1.0,
        speedup_ci=(1.0, 1.0),
        is_suspect=measurement.is_suspect,
        within_max_drop=lost <= max_drop + EPSILON,
        macs=built.macs,
        params=built.params,
        size_bytes=file.artifact.size_bytes,
        precision=precision,
        candidate={},
        widths={g.name: g.channels for g in view.dense_of(target).groups},
        artifacts=point_artifacts(built, view.format_of(target), precision),
        manifest=manifest_of(view, target, file),
        measured_at=_measured_at(measurement),
        conditions=_conditions(measurement, outcome),
    )


def _measured_at(measurement: Measurement) -> datetime:
    return measurement.finished_at or measurement.created_at


def _conditions(measurement: Measurement, outcome: Measured) -> dict[str, object]:
    return {**outcome.conditions, "device_id": measurement.device_id, "runtime": measurement.request.runtime}
