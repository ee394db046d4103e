"""A target's trials as columns, and the work of a job as spans, from one snapshot. Pure; no Optuna, so the API may load it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from domain.build import Build, BuildResult
from domain.measurement import Measured, Measurement
from domain.overview import (
    ColumnBlock,
    ColumnGroup,
    JobTimeline,
    TrialColumns,
    TrialDetail,
    TrialMeasurement,
    WorkSpan,
)
from domain.trial import Trial, TrialState
from search import finals
from search.models import fit_models, predict_ratio
from search.precision import baseline_scale, comparable
from search.stopping import growth_in_time
from search.view import View, deployable, failure_of

STATES = tuple(TrialState)


def trial_columns(view: View, target: int) -> TrialColumns:
    """Return all trials of a target as columns; empty columns before the dense model is prepared."""
    trials = view.trials_of(target)
    dense = view.prepared(target)
    dense_ms = dense_latency_ms(view, target)
    groups = dense.groups if dense is not None else ()
    blocks = dense.blocks if dense is not None else ()
    precisions = view.spec.targets[target].precision
    place_of_block = {block.name: place for place, block in enumerate(blocks)}
    predicted = _predictions(view, target, trials, dense_ms)
    latencies = [_latency(view, target, trial, dense_ms) for trial in trials]
    origin = view.job.started_at or view.job.created_at
    builds = [view.built(view.original(trial)) for trial in trials]
    return TrialColumns(
        target=target,
        metric=view.spec.objective.metric,
        dense_accuracy=view.dense_accuracy(target) if dense is not None else None,
        dense_latency_ms=dense_ms,
        groups=_groups(groups),
        blocks=tuple(ColumnBlock(name=b.name, groups=b.groups, macs=b.macs) for b in blocks),
        states=tuple(state.value for state in STATES),
        precisions=precisions,
        number=tuple(trial.number for trial in trials),
        state=tuple(STATES.index(trial.state) for trial in trials),
        precision=tuple(precisions.index(trial.candidate.precision) for trial in trials),
        seed_name=tuple(trial.seed_name for trial in trials),
        duplicate_of=tuple(trial.duplicate_of for trial in trials),
        accuracy_search=tuple(round(b.accuracy.search, 6) if b is not None else None for b in builds),
        latency_ms=tuple(each[0] for each in latencies),
        latency_low_ms=tuple(each[1] for each in latencies),
        latency_high_ms=tuple(each[2] for each in latencies),
        predicted_ms=tuple(predicted.get(trial.number) for trial in trials),
        speedup=tuple(each[3] for each in latencies),
        macs=tuple(b.macs if b is not None else None for b in builds),
        params=tuple(b.params if b is not None else None for b in builds),
        finished_s=tuple(_since(origin, trial.finished_at) for trial in trials),
        widths=tuple(trial.candidate.widths.get(group.name, group.channels) for trial in trials for group in groups),
        dropped=tuple(
            tuple(place_of_block[name] for name in trial.candidate.dropped if name in place_of_block)
            for trial in trials
        ),
        hypervolume=tuple(((at - origin).total_seconds(), round(area, 6)) for at, area in growth_in_time(view, target))
        if dense is not None
        else (),
    )


def timeline(view: View, now: datetime, *, device_name: Callable[[str], str]) -> JobTimeline:
    """Return every build and measurement of a job as a span, in the order they were asked."""
    origin = view.job.created_at
    of_build: dict[str, list[int]] = {}
    of_measurement: dict[str, list[int]] = {}
    for trial in view.snapshot.trials:
        if trial.build_id is not None:
            of_build.setdefault(trial.build_id, []).append(trial.number)
        if trial.measurement_id is not None:
            of_measurement.setdefault(trial.measurement_id, []).append(trial.number)
    for target in range(len(view.spec.targets)):
        for trial in finals.finalists(view, target) if view.prepared(target) is not None else ():
            build = finals.final_build(view, target, trial)
            if build is not None:
                of_build.setdefault(build.id, []).append(trial.number)
    spans = [
        _span(build, build.request.kind.value, build.owner, None, of_build.get(build.id, []), origin)
        for build in view.snapshot.builds
    ] + [
        _span(
            item,
            "measurement",
            device_name(item.device_id) if item.device_id is not None else None,
            item.target,
            of_measurement.get(item.id, []),
            origin,
        )
        for item in view.snapshot.measurements
    ]
    return JobTimeline(
        submitted_at=origin,
        now_s=round((now - origin).total_seconds(), 3),
        spans=tuple(sorted(spans, key=lambda span: (span.asked_s, span.id))),
    )


def trial_detail(view: View, trial: Trial) -> TrialDetail:
    """Return a trial with what was built and measured for it: its own, of the trial it repeats, and of its final."""
    source, target = view.original(trial), trial.target
    dense = view.prepared(target)
    builds: list[Build] = []
    measurements: list[TrialMeasurement] = []
    build = view.builds_by_id.get(source.build_id or "")
    if build is not None:
        builds.append(build)
    measurement = view.measurements_by_id.get(source.measurement_id or "")
    if measurement is not None:
        measurements.append(TrialMeasurement(stage="search", position=0, measurement=measurement))
    if dense is not None and source in finals.finalists(view, target):
        final = finals.final_build(view, target, source)
        if final is not None:
            builds.append(final)
            measurements += _final_measurements(view, target, final)
    predicted = _predictions(view, target, [source], dense_latency_ms(view, target), of_measured=True)
    return TrialDetail(
        trial=trial,
        groups=_groups(dense.groups if dense is not None else ()),
        predicted_ms=predicted.get(source.number),
        builds=tuple(builds),
        measurements=tuple(measurements),
    )


def dense_latency_ms(view: View, target: int) -> float | None:
    """Return the dense model's measured latency in the target's first precision, of the baseline measurement."""
    baseline = view.measurements.get(f"baseline:{target}")
    return baseline.outcome.baseline.latency_ms if baseline and isinstance(baseline.outcome, Measured) else None


def _groups(groups: Sequence[object]) -> tuple[ColumnGroup, ...]:
    return tuple(ColumnGroup.model_validate(group, from_attributes=True) for group in groups)


def _latency(
    view: View, target: int, trial: Trial, dense_ms: float | None
) -> tuple[float | None, float | None, float | None, float | None]:
    """Return latency, the ends of its interval, and the speed-up: measured, or nothing."""
    measured = view.measured(view.original(trial))
    if measured is None:
        return None, None, None, None
    timing = measured[2]
    scale = baseline_scale(view, target, trial.candidate.precision)
    if scale is not None and dense_ms is not None:
        timing = comparable(view, target, timing, scale, dense_ms)
    low, high = timing.latency_ci_ms
    return round(timing.latency_ms, 5), round(low, 5), round(high, 5), round(timing.speedup, 4)


def _predictions(
    view: View, target: int, trials: Sequence[Trial], dense_ms: float | None, *, of_measured: bool = False
) -> dict[int, float]:
    """Return number -> predicted latency of trials that were built but never measured."""
    wanted = [
        trial
        for trial in trials
        if view.built(trial) is not None and (of_measured or view.measured(view.original(trial)) is None)
    ]
    if not wanted or dense_ms is None or view.prepared(target) is None:
        return {}
    models = fit_models(view, target)
    return {trial.number: round(predict_ratio(models, trial) * dense_ms, 5) for trial in wanted}


def _final_measurements(view: View, target: int, final: Build) -> list[TrialMeasurement]:
    if not isinstance(final.outcome, BuildResult):
        return []
    digest = deployable(final.outcome, view.format_of(target)).artifact.digest
    found = []
    for measurement in view.snapshot.measurements:
        if measurement.target != target or measurement.key.startswith("baseline"):
            continue
        for position, file in enumerate(measurement.request.candidates):
            if file.artifact.digest == digest:
                found.append(TrialMeasurement(stage="final", position=position, measurement=measurement))
    return found


def _span(
    work: Build | Measurement, kind: str, by: str | None, target: int | None, trials: list[int], origin: datetime
) -> WorkSpan:
    failure = failure_of(work)
    return WorkSpan.model_validate(
        {
            "id": work.id,
            "kind": kind,
            "by": by,
            "state": work.state.value,
            "target": target,
            "trials": tuple(sorted(trials)),
            "attempt": work.attempt,
            "asked_s": _since(origin, work.created_at),
            "started_s": _since(origin, work.started_at),
            "finished_s": _since(origin, work.finished_at),
            "failure": failure.reason if failure is not None else None,
        }
    )


def _since(origin: datetime, moment: datetime | None) -> float | None:
    return None if moment is None else round((moment - origin).total_seconds(), 3)
