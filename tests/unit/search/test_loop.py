"""Whole jobs in a simulated world."""

from __future__ import annotations

import contextlib
import json
import random

import pytest

from domain.build import BuildKind, CandidateRequest
from domain.job import EndedBy, Job, JobState, JobVerb, Stage
from domain.outcome import Blame
from domain.trial import TrialState
from search.front import build_front
from search.loop import LoopEnd, LoopResult, SearchLoop
from search.options import Parts
from tests.unit.search.fakes import FakeLauncher, MemoryArtifacts, World, failed, make_device, make_spec
from tests.unit.search.surfaces import FEW, MANY, group


def start(world: World, **spec: object) -> Job:
    job, _ = world.create_job(make_spec(**spec))
    return job


def run(world: World, job: Job, *, until=lambda: False, artifacts: MemoryArtifacts | None = None) -> LoopResult:
    lease = world.lease_search("test", lease_s=15.0, job_id=job.id)
    assert lease is not None
    return SearchLoop(world, FakeLauncher(), artifacts).run(lease, until=until)


def told(world: World, job: Job) -> list[tuple]:
    rows = world.snapshot(job.id).trials
    return [(t.number, t.target, t.study_number, t.params, t.candidate.key, t.state, t.values) for t in rows]


@pytest.mark.parametrize("groups", [FEW, MANY], ids=["few-groups", "many-groups"])
def test_a_job_goes_from_the_dense_model_to_a_final_front(groups):
    world, artifacts = World(groups=groups), MemoryArtifacts()
    job = start(world, budget={"trials": 20})

    result = run(world, job, artifacts=artifacts)

    job = world.job(job.id)
    assert result.end is LoopEnd.ENDED
    assert (job.state, job.stage, job.ended_by) == (JobState.SUCCEEDED, Stage.DONE, EndedBy.BUDGET)
    front = build_front(world.snapshot(job.id), 0)
    assert front.is_final
    assert 2 <= len(front.items) <= 5
    assert [p.latency_ms for p in front.items] == sorted(p.latency_ms for p in front.items)
    accuracies = [p.accuracy for p in front.items]
    assert accuracies == sorted(accuracies)
    assert all(p.stage == "final" and p.speedup > 1 for p in front.items)
    assert front.dense[0].accuracy == pytest.approx(0.94)
    manifest = json.loads(artifacts.read(front.items[0].manifest))
    assert manifest["trial"] == front.items[0].trial
    assert manifest["latency"]["speedup"] == front.items[0].speedup
    assert manifest["accuracy"]["dense_test"] == front.dense[0].accuracy


def test_the_budget_counts_built_trials_and_no_architecture_is_built_twice():
    world = World(groups=MANY)
    job = start(world, budget={"trials": 25})
    run(world, job)
    trials = world.snapshot(job.id).trials
    built = [t.candidate.architecture for t in trials if t.build_id is not None]
    assert len(built) == 25
    assert len(set(built)) == len(built)


def test_without_overlap_a_target_has_one_trial_at_a_time():
    world = World(groups=MANY)
    job = start(world, budget={"trials": 6})
    lease = world.lease_search("test", lease_s=15.0, job_id=job.id)
    most = 0

    def looked():
        nonlocal most
        open_ = [trial for trial in world.snapshot(job.id).trials if not trial.state.is_terminal]
        most = max(most, len(open_))
        return False

    SearchLoop(world, FakeLauncher(), parts=Parts.without(["overlap"])).run(lease, until=looked)
    assert world.job(job.id).state is JobState.SUCCEEDED
    assert most == 1


def test_builder_and_device_work_at_the_same_time():
    world = World(groups=MANY)
    job = start(world, budget={"trials": 20})
    run(world, job)
    report = world.job(job.id).report
    snapshot = world.snapshot(job.id)
    busy_s = 0.0
    for row in (*snapshot.builds, *snapshot.measurements):
        busy_s += (row.finished_at - row.started_at).total_seconds()
    assert report["work_s"] < 0.85 * busy_s
    assert report["overhead_fraction"] < 0.02


@pytest.mark.parametrize("seed", range(5))
def test_a_loop_thrown_away_at_random_points_asks_the_same_trials(seed):
    def whole(interrupted: bool) -> list[tuple]:
        world = World(groups=MANY)
        job = start(world, budget={"trials": 18}, seed=7)
        dice = random.Random(seed)
        while not world.job(job.id).state.is_terminal:
            run(world, job, until=(lambda: dice.random() < 0.2) if interrupted else lambda: False)
        return told(world, job)

    assert whole(interrupted=True) == whole(interrupted=False)


class Crash(Exception):
    """The process dies here."""


@pytest.mark.parametrize("seed", range(5))
def test_a_loop_killed_before_any_write_asks_the_same_trials(seed):
    def whole(kills: bool) -> list[tuple]:
        world = World(groups=MANY)
        job = start(world, budget={"trials": 18}, seed=7)
        dice = random.Random(seed)
        plain_fence = world._fence

        def fence(lease):
            if kills and dice.random() < 0.1:
                raise Crash
            plain_fence(lease)

        world._fence = fence
        while not world.job(job.id).state.is_terminal:
            with contextlib.suppress(Crash):
                run(world, job)
        return told(world, job)

    assert whole(kills=True) == whole(kills=False)


def test_a_lost_lease_is_left_quietly():
    world = World()
    job = start(world)

    def steal(world: World) -> None:
        world.lease_attempts[job.id] += 1

    world.before_wait = steal
    assert run(world, job).end is LoopEnd.LOST
    assert world.job(job.id).state is JobState.RUNNING


def test_a_space_of_few_architectures_ends_as_a_plateau_without_building_any_twice():
    world = World(groups=(group("only", 16),))
    job = start(world, budget={"trials": 60})
    run(world, job)
    job = world.job(job.id)
    assert (job.state, job.ended_by) == (JobState.SUCCEEDED, EndedBy.PLATEAU)
    trials = world.snapshot(job.id).trials
    duplicates = [t for t in trials if t.state is TrialState.DUPLICATE]
    assert duplicates
    originals = {t.number: t for t in trials}
    assert all(t.values == originals[t.duplicate_of].values for t in duplicates if t.duplicate_of is not None)
    built = [t.candidate.widths["only"] for t in trials if t.build_id is not None]
    assert set(built) <= {4, 8, 12} and len(set(built)) == len(built) >= 2


def test_a_candidates_fault_is_infeasible_and_the_search_goes_on():
    world = World(groups=MANY)

    def fault(request):
        narrow = isinstance(request, CandidateRequest) and request.candidate.widths["layer0.0"] < 16
        return failed(Blame.CANDIDATE, "the graph does not export") if narrow else None

    world.builder.fault = fault
    job = start(world, budget={"trials": 15})
    run(world, job)
    assert world.job(job.id).state is JobState.SUCCEEDED
    bad = [t for t in world.snapshot(job.id).trials if t.state is TrialState.INFEASIBLE]
    assert bad
    assert all("does not export" in t.reason for t in bad)


def test_a_system_that_always_fails_ends_the_job_and_says_why():
    world = World()
    world.builder.fault = lambda r: failed(Blame.SYSTEM, "the disk is full") if r.kind is BuildKind.CANDIDATE else None
    job = start(world)
    run(world, job)
    job = world.job(job.id)
    assert job.state is JobState.FAILED
    assert "the disk is full" in job.reason


def test_a_failed_preparation_fails_the_job_with_its_reason():
    world = World()
    world.builder.fault = lambda r: failed(Blame.CANDIDATE, "weights hold NaN")
    job = start(world)
    run(world, job)
    job = world.job(job.id)
    assert job.state is JobState.FAILED
    assert "weights hold NaN" in job.reason


def test_nothing_to_prune_fails_at_once_and_names_what_stays_whole():
    world = World(groups=())
    job = start(world)
    run(world, job)
    job = world.job(job.id)
    assert job.state is JobState.FAILED
    assert "head: gives the classes" in job.reason
    assert not world.snapshot(job.id).trials


def test_a_group_without_a_narrower_step_is_named_and_a_model_of_such_groups_has_nothing_to_prune():
    world = World(groups=(group("tiny", 4), group("wide", 64)))
    job = start(world, budget={"trials": 3})
    run(world, job)
    report = world.job(job.id).report
    assert any(layer["name"] == "tiny" and "4 channels" in layer["reason"] for layer in report["unprunable"])
    assert all(trial.candidate.widths["tiny"] == 4 for trial in world.snapshot(job.id).trials)

    world = World(groups=(group("tiny", 4),))
    job = start(world)
    run(world, job)
    job = world.job(job.id)
    assert job.state is JobState.FAILED and job.report["failure"]["code"] == "nothing_to_prune"
    assert "tiny: it has 4 channels" in job.reason


def test_without_a_device_the_job_waits_with_a_reason_and_the_wait_is_not_counted():
    world = World(devices=())
    job = start(world, budget={"trials": 6, "wall_s": 200.0})
    result = run(world, job)
    assert result.end is LoopEnd.WAITING
    job = world.job(job.id)
    assert job.stage is Stage.WAITING
    assert "pruneloop devices add" in job.reason
    assert world.lease_search("early", lease_s=15.0) is None
    world.advance(300.0)
    world.devices_known.append(make_device())
    run(world, job)
    job = world.job(job.id)
    assert job.state is JobState.SUCCEEDED
    assert job.report["waited_for_device_s"] == pytest.approx(300.0)
    assert len(world.snapshot(job.id).trials) >= 6


def test_without_a_device_a_job_may_ask_to_fail():
    world = World(devices=())
    job = start(world, when_no_device="fail")
    run(world, job)
    assert world.job(job.id).state is JobState.FAILED


def test_a_device_that_goes_away_is_waited_for_and_then_the_job_goes_on():
    world = World()
    job = start(world, budget={"trials": 6})

    def unplug(world: World) -> None:
        if len(world.measurement_rows) == 3:
            world.devices_known[0] = make_device(online=False)

    world.before_wait = unplug
    assert run(world, job).end is LoopEnd.WAITING
    assert "no matching device is online" in world.job(job.id).reason
    world.before_wait = lambda world: None
    world.devices_known[0] = make_device()
    world.advance(5.0)
    run(world, job)
    assert world.job(job.id).state is JobState.SUCCEEDED


def test_pause_asks_nothing_more_and_resume_goes_on():
    world = World(groups=MANY)
    job = start(world, budget={"trials": 12})
    at_pause = 0

    def pause(world: World) -> None:
        nonlocal at_pause
        if len(world.trial_rows) >= 5 and world.job(job.id).state is JobState.RUNNING:
            at_pause = len(world.trial_rows)
            world.apply_verb(job.id, JobVerb.PAUSE)

    world.before_wait = pause
    assert run(world, job).end is LoopEnd.PAUSED
    assert len(world.trial_rows) == at_pause < 12
    assert world.lease_search("other", lease_s=15.0) is None
    world.before_wait = lambda world: None
    world.apply_verb(job.id, JobVerb.RESUME)
    run(world, job)
    assert world.job(job.id).state is JobState.SUCCEEDED


def test_stop_finishes_what_runs_and_keeps_a_provisional_front():
    world = World(groups=MANY)
    job = start(world)

    def stop(world: World) -> None:
        if len(world.trial_rows) == 8 and world.job(job.id).state is JobState.RUNNING:
            world.apply_verb(job.id, JobVerb.STOP)

    world.before_wait = stop
    run(world, job)
    job = world.job(job.id)
    assert (job.state, job.ended_by) == (JobState.STOPPED, EndedBy.USER)
    trials = world.snapshot(job.id).trials
    assert len(trials) == 8
    assert all(t.state.is_terminal for t in trials)
    front = build_front(world.snapshot(job.id), 0)
    assert not front.is_final
    assert front.items
    assert all(p.accuracy is None and p.stage == "search" for p in front.items)


def test_cancel_is_noticed_and_nothing_more_is_written():
    world = World(groups=MANY)
    job = start(world)

    def cancel(world: World) -> None:
        if len(world.trial_rows) >= 4 and not world.job(job.id).state.is_terminal:
            world.apply_verb(job.id, JobVerb.CANCEL)

    world.before_wait = cancel
    assert run(world, job).end is LoopEnd.ENDED
    assert world.job(job.id).state is JobState.CANCELLED


def test_the_wall_budget_leaves_time_for_the_finals():
    world = World(groups=MANY)
    job = start(world, budget={"trials": 1000, "wall_s": 90.0}, final={"keep": 3, "epochs": 2.0})
    run(world, job)
    job = world.job(job.id)
    assert (job.state, job.ended_by) == (JobState.SUCCEEDED, EndedBy.BUDGET)
    assert (job.finished_at - job.started_at).total_seconds() < 100.0
    assert build_front(world.snapshot(job.id), 0).is_final


def test_two_targets_share_builds_and_split_the_budget():
    world = World(groups=MANY, devices=(make_device("one", labels={"n": "1"}), make_device("two", labels={"n": "2"})))
    targets = [{"device": {"labels": {"n": "1"}}}, {"device": {"labels": {"n": "2"}}}]
    job = start(world, targets=targets, budget={"trials": 16})
    run(world, job)
    snapshot = world.snapshot(job.id)
    assert snapshot.job.state is JobState.SUCCEEDED
    built = [t for t in snapshot.trials if t.build_id is not None]
    assert len(built) == 16
    assert {t.target for t in built} == {0, 1}
    assert len({t.build_id for t in built}) < 16
    assert [b.request.kind for b in snapshot.builds].count(BuildKind.PREPARE) == 1
    for target in (0, 1):
        assert build_front(snapshot, target).is_final


def test_a_second_job_adopts_the_first_ones_preparation():
    world = World()
    first = start(world, budget={"trials": 4})
    run(world, first)
    second = start(world, budget={"trials": 4})
    run(world, second)
    prepares = [b for b in world.build_rows.values() if b.request.kind is BuildKind.PREPARE]
    assert len(prepares) == 2
    assert prepares[0].outcome == prepares[1].outcome
    assert prepares[1].started_at == prepares[0].started_at  # adopted, not built


def test_one_bad_file_among_the_finals_costs_only_itself():
    world = World(groups=MANY)
    spoiled: list[str] = []

    def fault(measurement):
        if not measurement.key.startswith("final:"):
            return None
        files = [c.artifact.digest for c in measurement.request.candidates]
        spoiled.extend(files[:1] if not spoiled else [])
        return failed(Blame.CANDIDATE, "outputs differ", "check") if spoiled[0] in files else None

    world.runner.fault = fault
    job = start(world, budget={"trials": 16})
    run(world, job)
    job = world.job(job.id)
    assert job.state is JobState.SUCCEEDED
    front = build_front(world.snapshot(job.id), 0)
    assert front.is_final
    assert front.items
    assert all(p.artifacts[0].digest != spoiled[0] for p in front.items)
    assert any("outputs differ" in text for text in job.report["problems"])
