"""Trials as columns, work as spans, and what matters most: from whole jobs in a simulated world."""

from __future__ import annotations

import numpy as np
import pytest

from domain.job import Job, JobState
from domain.overview import TrialColumns
from domain.trial import TrialState
from search.front import best_speedups, build_front
from search.importance import _ranks, _ridge, _standard, parameter_importance
from search.loop import SearchLoop
from search.stopping import growth
from search.table import timeline, trial_columns, trial_detail
from search.view import View
from tests.unit.search.fakes import FakeLauncher, World, make_spec
from tests.unit.search.surfaces import FEW


@pytest.fixture(scope="module")
def finished() -> View:
    world = World(groups=FEW)
    job, _ = world.create_job(make_spec(budget={"trials": 20}))
    lease = world.lease_search("test", lease_s=15.0, job_id=job.id)
    assert lease is not None
    SearchLoop(world, FakeLauncher(), None).run(lease, until=lambda: False)
    view = View(world.snapshot(job.id))
    assert view.job.state is JobState.SUCCEEDED
    return view


def test_columns_hold_every_trial_and_agree_with_the_rows(finished: View) -> None:
    columns = trial_columns(finished, 0)
    trials = finished.trials_of(0)
    assert columns.number == tuple(trial.number for trial in trials)
    groups = [group.name for group in columns.groups]
    assert len(columns.widths) == len(trials) * len(groups)
    for index, trial in enumerate(trials):
        assert columns.states[columns.state[index]] == trial.state.value
        row = columns.widths[index * len(groups) : (index + 1) * len(groups)]
        assert dict(zip(groups, row, strict=True)) == {name: trial.candidate.widths[name] for name in groups}
        if trial.state is TrialState.SUCCEEDED:
            assert trial.values is not None and columns.dense_latency_ms is not None
            assert columns.accuracy_search[index] == pytest.approx(1 - trial.values.error, abs=1e-6)
            assert columns.latency_ms[index] == pytest.approx(
                columns.dense_latency_ms * trial.values.latency_ratio, rel=0.02
            )
            assert columns.predicted_ms[index] is None
    lengths = {len(getattr(columns, name)) for name in per_trial()}
    assert lengths == {len(trials)}


def per_trial() -> list[str]:
    names = list(TrialColumns.model_fields)
    return [name for name in names[names.index("number") :] if name not in {"widths", "hypervolume"}]


def test_predictions_stand_only_where_nothing_was_measured() -> None:
    world = World(groups=FEW)
    job, _ = world.create_job(make_spec(budget={"trials": 12}))
    lease = world.lease_search("test", lease_s=15.0, job_id=job.id)
    assert lease is not None
    steps = iter(range(100_000))
    SearchLoop(world, FakeLauncher(), None).run(lease, until=lambda: next(steps) > 0 and any(is_built_only(world, job)))
    columns = trial_columns(View(world.snapshot(job.id)), 0)
    pairs = list(zip(columns.latency_ms, columns.predicted_ms, strict=True))
    assert any(predicted is not None for _, predicted in pairs)
    assert all(measured is None or predicted is None for measured, predicted in pairs)


def is_built_only(world: World, job: Job) -> list[bool]:
    view = View(world.snapshot(job.id))
    return [view.built(trial) is not None and view.measured(trial) is None for trial in view.snapshot.trials]


def test_the_hypervolume_in_time_ends_where_the_one_by_count_does(finished: View) -> None:
    grown = trial_columns(finished, 0).hypervolume
    areas = [area for _, area in grown]
    assert areas == sorted(areas)
    assert areas[-1] == pytest.approx(growth(finished, 0)[-1], abs=1e-6)
    assert [at for at, _ in grown] == sorted(at for at, _ in grown)


def test_the_timeline_has_a_span_for_every_build_and_measurement(finished: View) -> None:
    told = timeline(finished, finished.job.finished_at or finished.job.created_at, device_name=lambda _: "box")
    assert {span.id for span in told.spans} == {
        *(build.id for build in finished.snapshot.builds),
        *(item.id for item in finished.snapshot.measurements),
    }
    asked = [span.asked_s for span in told.spans]
    assert asked == sorted(asked)
    of_trials = {number for span in told.spans if span.kind == "candidate" for number in span.trials}
    assert of_trials == {trial.number for trial in finished.snapshot.trials if trial.build_id is not None}
    assert all(span.by == "box" for span in told.spans if span.kind == "measurement")


def test_a_finalist_tells_its_final_and_its_search(finished: View) -> None:
    point = build_front(finished.snapshot, 0).items[0]
    assert point.trial is not None
    detail = trial_detail(finished, finished.trials_by_number[point.trial])
    assert [build.request.kind.value for build in detail.builds] == ["candidate", "final"]
    assert [one.stage for one in detail.measurements][:2] == ["search", "final"]
    final = detail.measurements[-1]
    outcome = final.measurement.outcome
    assert outcome is not None and outcome.status == "measured"
    assert outcome.candidates[final.position].speedup == point.speedup
    assert detail.predicted_ms is not None


def test_the_best_speedup_is_in_the_report_of_an_ended_job(finished: View) -> None:
    best = {str(target): value for target, value in best_speedups(finished.snapshot).items()}
    assert finished.job.report["best_speedup"] == best


def test_importance_sums_to_one_and_needs_enough_trials(finished: View) -> None:
    told = parameter_importance(finished, 0)
    assert told.reason is None
    assert {one.value for one in told.of} == {"accuracy", "latency"}
    for one in told.of:
        assert sum(part.share for part in one.influences) == pytest.approx(1, abs=0.01)
        shares = [part.share for part in one.influences]
        assert shares == sorted(shares, reverse=True)
    fewer = finished.snapshot.trials[:3]
    few = View(type(finished.snapshot)(finished.job, fewer, finished.snapshot.builds, finished.snapshot.measurements))
    assert "needed" in (parameter_importance(few, 0).reason or "")


def test_the_regression_finds_what_decides_and_admits_chance() -> None:
    rng = np.random.default_rng(0)
    features = _standard(_ranks(rng.random((60, 5))))
    told = _standard(_ranks(features[:, [2]] * 3 + rng.normal(size=(60, 1))))[:, 0]
    coefficients, explained = _ridge(features, told, 1.0)
    assert int(np.argmax(np.abs(coefficients))) == 2
    assert explained > 0.5
    noise = _standard(_ranks(rng.random((60, 1))))[:, 0]
    assert max(_ridge(features, noise, strength)[1] for strength in (0.1, 10.0)) < 0.2


def test_left_out_errors_are_those_of_really_leaving_out() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(12, 3))
    features -= features.mean(axis=0)
    told = features @ [1.0, 0.0, -2.0] + rng.normal(size=12)
    told -= told.mean()
    _, explained = _ridge(features, told, 0.5)
    errors = []
    for out in range(12):
        kept = np.arange(12) != out
        rows, values = features[kept], told[kept]
        centred, middle = rows - rows.mean(axis=0), values.mean()
        fit = np.linalg.solve(centred.T @ centred + 0.5 * np.eye(3), centred.T @ (values - middle))
        errors.append(told[out] - middle - (features[out] - rows.mean(axis=0)) @ fit)
    assert explained == pytest.approx(1 - np.sum(np.square(errors)) / np.sum(told**2), abs=0.02)
