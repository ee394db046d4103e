"""Jobs in more than one precision, in a simulated world in which no two sessions run at the same speed."""

from __future__ import annotations

import json
import random

import pytest

from domain.job import Job, JobState
from domain.measurement import Measurement
from domain.outcome import Blame, Failed
from domain.ports import JobSnapshot
from domain.trial import Trial, TrialState
from search.chain import chain_of
from search.front import build_front
from search.loop import LoopEnd, SearchLoop
from search.view import View
from tests.unit.search.fakes import FakeLauncher, MemoryArtifacts, World, failed, make_device, make_spec
from tests.unit.search.surfaces import MANY, QUANTISED

BOTH = ("fp32", "int8")


def drifting(measurement: Measurement) -> float:
    """The machine is up to half as fast again in one session as in another: only what was paired compares."""
    return random.Random(measurement.key).uniform(0.7, 1.05)


def run(world: World, job: Job, artifacts: MemoryArtifacts | None = None, until=lambda: False) -> JobSnapshot:
    lease = world.lease_search("test", lease_s=15.0, job_id=job.id)
    assert lease is not None
    SearchLoop(world, FakeLauncher(), artifacts).run(lease, until=until)
    return world.snapshot(job.id)


def new(precisions: tuple[str, ...] = BOTH, **spec: object) -> tuple[World, Job]:
    world = World(groups=MANY)
    world.runner.drift = drifting
    target: dict[str, object] = {"precision": precisions, **spec.pop("target", {})}  # type: ignore[dict-item]
    values = {"budget": {"trials": 24}, "objective": {"max_drop": 0.02}, **spec}
    job, _ = world.create_job(make_spec(targets=[target], **values))
    return world, job


def true_ratio(world: World, point_digest: str) -> float:
    return world.builder.latency_by_digest[point_digest]  # the dense model's in fp32 is 1


def test_a_job_in_two_precisions_ends_with_both_dense_models_and_one_front():
    world, job = new()
    artifacts = MemoryArtifacts()
    snapshot = run(world, job, artifacts)
    assert snapshot.job.state is JobState.SUCCEEDED
    front = build_front(snapshot, 0)
    assert front.is_final
    fp32, int8 = front.dense
    assert (fp32.precision, int8.precision) == BOTH
    assert (fp32.speedup, int8.speedup) == (1.0, 1.0)
    assert fp32.accuracy == pytest.approx(0.94)
    assert int8.accuracy == pytest.approx(0.94 - QUANTISED["int8"][0])
    assert fp32.artifacts[0].digest != int8.artifacts[0].digest
    assert int8.latency_ms / fp32.latency_ms == pytest.approx(QUANTISED["int8"][1], rel=0.01)
    for point in front.items:
        dense = fp32 if point.precision == "fp32" else int8
        truth = true_ratio(world, point.artifacts[0].digest)
        share = QUANTISED[point.precision][1]
        # Latency is against the fp32 model, the speed-up against the dense model of the point's own precision.
        assert point.latency_ms / fp32.latency_ms == pytest.approx(truth, rel=0.015)
        assert point.speedup == pytest.approx(share / truth, rel=0.01)
        low, high = point.latency_ci_ms
        assert low <= point.latency_ms <= high
        manifest = json.loads(artifacts.read(point.manifest or ""))
        assert manifest["latency"]["baseline_digest"] == dense.artifacts[0].digest
    assert [p.latency_ms for p in front.items] == sorted(p.latency_ms for p in front.items)
    accuracies = [p.accuracy for p in front.items]
    assert accuracies == sorted(accuracies)
    # int8 is 2.5 times as fast for 0.8 points here: no front could be without it.
    assert "int8" in {p.precision for p in front.items}
    assert len(artifacts.files) >= 2 + len(front.items)


def test_no_point_that_a_dense_model_of_any_precision_beats_stands_on_the_front():
    world, job = new()
    snapshot = run(world, job)
    front = build_front(snapshot, 0)
    for point in front.items:
        for dense in front.dense:
            assert point.latency_ms < dense.latency_ms or point.accuracy > dense.accuracy


def test_what_the_study_is_told_is_the_latency_over_the_first_dense_model():
    world, job = new()
    view = View(run(world, job))
    for trial in view.succeeded(0):
        built = view.built(trial)
        assert built is not None and trial.values is not None
        assert trial.values.latency_ratio == pytest.approx(
            true_ratio(world, built.artifacts[0].artifact.digest), rel=0.015
        )
        assert trial.values.error == pytest.approx(1.0 - built.accuracy.search)
    tried = {trial.candidate.precision for trial in view.succeeded(0)}
    assert tried == set(BOTH)


def test_every_session_pairs_files_of_one_precision_with_their_own_dense_model_and_a_yardstick():
    world, job = new()
    snapshot = run(world, job)
    files = {
        built.artifact.digest: built.precision
        for build in snapshot.builds
        for built in build.outcome.artifacts  # type: ignore[union-attr]
    }
    fp32 = build_front(snapshot, 0).dense[0].artifacts[0].digest
    for measurement in snapshot.measurements:
        request = measurement.request
        assert files[request.baseline.artifact.digest] == request.precision
        candidates = [file.artifact.digest for file in request.candidates]
        if request.precision != "fp32" and not measurement.key.startswith("trial:"):
            assert candidates.pop(0) == fp32
        if measurement.key.startswith(("trial:", "final:")):
            assert {files[digest] for digest in candidates} == {request.precision}
    keys = {measurement.key for measurement in snapshot.measurements}
    assert {"baseline:0", "baseline:0:int8"} <= keys


def test_a_provisional_front_compares_precisions_too():
    world, job = new()
    count = 0

    def enough() -> bool:
        nonlocal count
        count += 1
        return sum(t.state is TrialState.SUCCEEDED for t in world.trial_rows.values()) >= 10

    front = build_front(run(world, job, until=enough), 0)
    assert not front.is_final
    assert [dense.precision for dense in front.dense] == list(BOTH)
    assert len({point.precision for point in front.items}) == 2 or front.items[0].precision == "int8"
    for point in front.items:
        assert point.latency_ms / front.dense[0].latency_ms == pytest.approx(
            true_ratio(world, point.artifacts[0].digest), rel=0.02
        )


@pytest.mark.parametrize("seed", range(3))
def test_a_loop_thrown_away_at_random_points_asks_the_same_trials(seed):
    def whole(interrupted: bool) -> list[tuple]:
        world, job = new(seed=7)
        dice = random.Random(seed)
        while not world.job(job.id).state.is_terminal:
            run(world, job, until=(lambda: dice.random() < 0.2) if interrupted else lambda: False)
        rows = world.snapshot(job.id).trials
        return [(t.number, t.params, t.candidate.key, t.state, t.values) for t in rows]

    assert whole(interrupted=True) == whole(interrupted=False)


def stem(trial: Trial) -> str:
    return (trial.seed_name or "").removesuffix("~")


def test_each_link_of_the_chain_is_tried_in_every_precision_and_inherits_from_the_link_itself():
    world, job = new(("fp32", "fp16", "int8"), budget={"trials": 40})
    view = View(run(world, job))
    links = {stem(link): link for link in chain_of(view, 0)}
    others = [t for t in view.trials_of(0) if stem(t).endswith(("-fp16", "-int8"))]
    assert {t.candidate.precision for t in others} == {"fp16", "int8"}
    for trial in others:
        link = links[stem(trial).rpartition("-")[0]]
        assert trial.candidate.widths == link.candidate.widths
        request = view.builds_by_id[trial.build_id or ""].request
        assert request.start.candidate.widths == link.candidate.widths
        assert request.candidate.recovery.epochs == 0  # only the file is made anew
        assert round(float(str(trial.params["precision"]))) == ("fp32", "fp16", "int8").index(trial.candidate.precision)


def test_a_job_in_int8_alone_is_held_against_the_int8_dense_model():
    world, job = new(("int8",))
    snapshot = run(world, job)
    front = build_front(snapshot, 0)
    (dense,) = front.dense
    assert dense.precision == "int8" and front.is_final and front.items
    assert dense.accuracy == pytest.approx(0.94 - QUANTISED["int8"][0])
    assert {m.request.precision for m in snapshot.measurements} == {"int8"}
    assert {m.key for m in snapshot.measurements if m.key.startswith("baseline")} == {"baseline:0"}


def test_one_bad_int8_final_spoils_neither_the_others_nor_fp32():
    world, job = new(final={"keep": 5, "epochs": 1.0})
    spoiled: list[str] = []

    def fault(measurement: Measurement) -> Failed | None:
        digests = [file.artifact.digest for file in measurement.request.candidates[1:]]
        if measurement.key.startswith("final:0:int8"):
            spoiled.append(spoiled[0] if spoiled else digests[0])
            return failed(Blame.CANDIDATE, "wrong output") if spoiled[0] in digests else None
        return None

    world.runner.fault = fault
    snapshot = run(world, job)
    assert snapshot.job.state is JobState.SUCCEEDED
    front = build_front(snapshot, 0)
    assert front.is_final
    assert spoiled
    assert spoiled[0] not in {p.artifacts[0].digest for p in front.items}
    assert [dense.precision for dense in front.dense] == list(BOTH)
    for point in front.items:
        assert point.latency_ms / front.dense[0].latency_ms == pytest.approx(
            true_ratio(world, point.artifacts[0].digest), rel=0.02
        )


def test_a_dense_model_that_fails_in_a_precision_fails_the_job_and_names_it():
    world, job = new()
    world.runner.fault = lambda m: failed(Blame.CANDIDATE, "no kernel") if m.request.precision == "int8" else None
    snapshot = run(world, job)
    assert snapshot.job.state is JobState.FAILED
    assert "in int8" in (snapshot.job.reason or "") and "no kernel" in (snapshot.job.reason or "")


def test_without_a_device_for_all_precisions_the_job_waits_and_says_so():
    world, job = new()
    world.devices_known = [make_device(precisions=("fp32",))]
    lease = world.lease_search("test", lease_s=15.0, job_id=job.id)
    assert lease is not None
    result = SearchLoop(world, FakeLauncher()).run(lease, until=lambda: False)
    assert result.end is LoopEnd.WAITING
    assert "fp32 and int8" in (world.job(job.id).reason or "")
