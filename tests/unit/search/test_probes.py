"""The latency probes: timed before the first ask, learnt from, and no trial of anything."""

from __future__ import annotations

import numpy as np
import pytest

from domain.job import JobState
from domain.measurement import Measurement
from domain.outcome import Blame, Failed
from domain.ports import JobSnapshot
from search.loop import SearchLoop
from search.models import fit_models, network_of, second_half_errors
from search.options import Parts
from search.probes import HALF_WIDTH, PLAN_S, count_probed, probed
from search.view import View
from tests.unit.search.fakes import FakeLauncher, World, make_spec
from tests.unit.search.surfaces import MANY


def run(world: World, *, until: int | None = None, **spec: object) -> View:
    job, _ = world.create_job(make_spec(budget={"trials": 12}, **spec))
    lease = world.lease_search("test", lease_s=15.0)
    assert lease is not None
    SearchLoop(world, FakeLauncher()).run(lease, until=lambda: until is not None and len(world.trial_rows) >= until)
    return View(world.snapshot(job.id))


def test_probes_are_timed_before_the_first_candidate_is_chosen_and_it_hits_better_for_it():
    world = World(groups=MANY)
    view = run(world, until=1)
    session = view.measurements["probes:0"]
    assert session.state.is_terminal and session.finished_at is not None
    assert all(trial.created_at >= session.finished_at for trial in view.snapshot.trials)
    assert session.request.plan.max_s == PLAN_S and session.request.plan.half_width == HALF_WIDTH
    assert count_probed(view, 0) == len(view.dense_of(0).probes) >= 3

    network = network_of(view, 0)
    known = dict.fromkeys(p.file.artifact.digest for p in view.dense_of(0).probes)
    learnt = fit_models(view, 0).latency["fp32"]
    guessed = fit_models(view, 0, parts=Parts(latency_model=False)).latency["fp32"]
    missed = []
    for (row, ratio), digest in zip(probed(view, 0, network, "fp32"), known, strict=True):
        assert ratio == pytest.approx(world.builder.latency_by_digest[digest], rel=0.01)
        missed.append([abs(model.predict(row) / ratio - 1) for model in (learnt, guessed)])
    with_probes, without = np.mean(missed, axis=0)
    assert with_probes < without / 2 and with_probes < 0.1


def test_probes_are_no_trials_and_stand_nowhere():
    view = run(World(groups=MANY))
    assert view.job.state is JobState.SUCCEEDED
    files = {probe.file.artifact.digest for probe in view.dense_of(0).probes}
    made = {
        built.artifact.digest
        for b in view.snapshot.builds
        if b.request.kind != "prepare"
        for built in b.outcome.artifacts
    }
    assert files and not files & made
    assert files <= {ref.digest for ref in view.dense_of(0).files}  # kept as long as the build is
    assert len(second_half_errors(view, 0, "fp32")) <= len(view.trials_of(0))


def test_a_target_where_probes_cannot_be_measured_does_without():
    world = World(groups=MANY)

    def refuse(measurement: Measurement) -> Failed | None:
        bad = measurement.key.startswith("probes:")
        return Failed(stage="load", reason="no", blame=Blame.CANDIDATE, code="refused") if bad else None

    world.runner.fault = refuse
    view = run(world)
    assert view.job.state is JobState.SUCCEEDED
    assert view.measurements["probes:0"].state.is_terminal and count_probed(view, 0) == 0
    assert len(view.succeeded(0)) >= 5


def test_nothing_is_learnt_from_a_device_that_failed_its_health_check_afterwards():
    view = run(World(groups=MANY), until=1)
    doubted = tuple(
        measurement.model_copy(update={"is_suspect": measurement.key == "probes:0"})
        for measurement in view.snapshot.measurements
    )
    assert count_probed(view, 0) > 0
    again = View(JobSnapshot(view.job, view.snapshot.trials, view.snapshot.builds, doubted))
    assert count_probed(again, 0) == 0 and probed(again, 0, network_of(view, 0), "fp32") == []


def test_a_target_of_another_precision_starts_from_its_own_trials():
    world = World(groups=MANY)
    view = run(world, targets=[{"runtime": "fake", "precision": ["int8"]}])
    assert "probes:0" not in view.measurements
