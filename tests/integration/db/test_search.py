"""The search's lease and what may be written under it."""

from __future__ import annotations

import time

import pytest

from db.store import SqlJobStore
from domain.build import BuildResult
from domain.errors import Conflict, NotFound, StaleAttempt, WrongState
from domain.job import EndedBy, JobState, JobVerb, Stage
from domain.ports import SearchLease
from domain.trial import TrialState, TrialValues
from domain.work import WorkState
from tests.integration.db.samples import (
    LEASE_S,
    Seeds,
    built,
    candidate_build,
    new_measurement,
    new_trial,
    prepare,
    spec,
)

VALUES = TrialValues(error=0.1, latency_ratio=0.5, constraints={"accuracy": -0.01})


# --- the lease ------------------------------------------------------------------------------------------------------
def test_a_lease_starts_the_job_and_nobody_else_gets_it(store: SqlJobStore) -> None:
    job, _ = store.create_job(spec())
    lease = store.lease_search("a", lease_s=LEASE_S)
    assert lease == SearchLease(job.id, "a", 1)
    assert store.job(job.id).state is JobState.RUNNING
    assert store.job(job.id).started_at is not None
    assert store.lease_search("b", lease_s=LEASE_S) is None
    assert store.lease_search("b", lease_s=LEASE_S, job_id=job.id) is None


def test_the_job_that_waits_longest_comes_first_and_one_given_back_queues_behind(store: SqlJobStore) -> None:
    first, second = (store.create_job(spec(name))[0] for name in "ab")
    lease = store.lease_search("s", lease_s=LEASE_S)
    assert lease is not None and lease.job_id == first.id
    store.release_search(lease)
    turns = []
    for _ in range(4):
        lease = store.lease_search("s", lease_s=LEASE_S)
        assert lease is not None
        turns.append(lease.job_id)
        store.release_search(lease)
    assert turns == [second.id, first.id, second.id, first.id]


def test_an_expired_lease_goes_to_the_next_and_the_first_is_fenced_out(store: SqlJobStore) -> None:
    job, _ = store.create_job(spec())
    old = store.lease_search("a", lease_s=0.05)
    assert old is not None
    time.sleep(0.1)
    new = store.lease_search("b", lease_s=LEASE_S)
    assert new is not None and new.attempt == old.attempt + 1
    for write in (
        lambda: store.renew_search(old, lease_s=LEASE_S),
        lambda: store.release_search(old),
        lambda: store.set_stage(old, Stage.SEARCHING),
        lambda: store.merge_report(old, {"a": 1}),
        lambda: store.add_trial(old, new_trial()),
        lambda: store.add_build(old, prepare()),
        lambda: store.add_measurement(old, new_measurement("m")),
        lambda: store.end_job(old, JobState.FAILED, ended_by=EndedBy.SYSTEM),
    ):
        with pytest.raises(StaleAttempt):
            write()
    assert store.job(job.id).state is JobState.RUNNING
    assert store.snapshot(job.id).trials == ()


def test_an_owner_that_crashed_gets_its_job_back_at_once_as_a_new_attempt(store: SqlJobStore) -> None:
    store.create_job(spec())
    first = store.lease_search("a", lease_s=LEASE_S)
    again = store.lease_search("a", lease_s=LEASE_S)
    assert first is not None and again is not None
    assert (again.job_id, again.attempt) == (first.job_id, 2)


def test_renewing_keeps_the_lease(store: SqlJobStore) -> None:
    store.create_job(spec())
    lease = store.lease_search("a", lease_s=0.05)
    assert lease is not None
    store.renew_search(lease, lease_s=LEASE_S)
    time.sleep(0.1)
    assert store.lease_search("b", lease_s=LEASE_S) is None


def test_a_job_given_back_for_a_while_waits_that_long_unless_a_verb_comes(store: SqlJobStore, seeds: Seeds) -> None:
    job, lease = seeds.job()
    store.release_search(lease, retry_after_s=60)
    assert store.lease_search("b", lease_s=LEASE_S) is None
    assert store.reap().search == 0
    store.apply_verb(job.id, JobVerb.STOP)
    assert store.reap().search == 1
    assert store.lease_search("b", lease_s=LEASE_S) is not None


def test_a_lease_given_back_is_gone(store: SqlJobStore, seeds: Seeds) -> None:
    _, lease = seeds.job()
    store.release_search(lease)
    with pytest.raises(StaleAttempt):
        store.renew_search(lease, lease_s=LEASE_S)


# --- the job --------------------------------------------------------------------------------------------------------
def test_a_report_is_merged_by_its_top_keys(store: SqlJobStore, seeds: Seeds) -> None:
    job, lease = seeds.job()
    store.merge_report(lease, {"z": [1, {"y": 2}], "a": 1})
    store.merge_report(lease, {"a": {"b": None}})
    assert store.job(job.id).report == {"z": [1, {"y": 2}], "a": {"b": None}}
    assert list(store.job(job.id).report) == ["z", "a"]


def test_a_stage_and_its_reason_are_shown_and_cleared(store: SqlJobStore, seeds: Seeds) -> None:
    job, lease = seeds.job()
    store.set_stage(lease, Stage.WAITING, reason="no device")
    assert (store.job(job.id).stage, store.job(job.id).reason) == (Stage.WAITING, "no device")
    store.set_stage(lease, Stage.SEARCHING)
    assert (store.job(job.id).stage, store.job(job.id).reason) == (Stage.SEARCHING, None)


def test_the_end_of_a_job_cancels_what_is_left_and_keeps_what_is_done(store: SqlJobStore, seeds: Seeds) -> None:
    job, lease = seeds.job()
    done, left = seeds.trial(lease, 0), seeds.trial(lease, 1)
    store.finish_trial(lease, done.id, TrialState.INFEASIBLE, reason="bad")
    store.end_job(lease, JobState.SUCCEEDED, ended_by=EndedBy.BUDGET, reason="60 trials")
    snapshot = store.snapshot(job.id)
    assert (snapshot.job.state, snapshot.job.ended_by) == (JobState.SUCCEEDED, EndedBy.BUDGET)
    assert (snapshot.job.reason, snapshot.job.stage) == ("60 trials", Stage.DONE)
    states = {trial.id: trial.state for trial in snapshot.trials}
    assert states == {done.id: TrialState.INFEASIBLE, left.id: TrialState.CANCELLED}
    assert {build.state for build in snapshot.builds} == {WorkState.CANCELLED}
    assert store.lease_search("b", lease_s=LEASE_S) is None


def test_a_job_asked_to_stop_while_its_search_ends_is_stopped(store: SqlJobStore, seeds: Seeds) -> None:
    job, lease = seeds.job()
    store.apply_verb(job.id, JobVerb.STOP)
    store.end_job(lease, JobState.SUCCEEDED, ended_by=EndedBy.PLATEAU)
    assert (store.job(job.id).state, store.job(job.id).ended_by) == (JobState.STOPPED, EndedBy.USER)


def test_a_paused_job_does_not_end_behind_the_users_back(store: SqlJobStore, seeds: Seeds) -> None:
    job, lease = seeds.job()
    store.apply_verb(job.id, JobVerb.PAUSE)
    with pytest.raises(StaleAttempt, match="paused"):
        store.end_job(lease, JobState.SUCCEEDED, ended_by=EndedBy.BUDGET)
    assert store.job(job.id).state is JobState.PAUSED


def test_a_job_cannot_end_in_a_state_that_is_no_end(store: SqlJobStore, seeds: Seeds) -> None:
    job, lease = seeds.job()
    for state in (JobState.PAUSED, JobState.STOPPED):
        with pytest.raises(WrongState):
            store.end_job(lease, state, ended_by=EndedBy.USER)
    assert store.job(job.id).state is JobState.RUNNING


def test_a_reason_that_quotes_a_nul_is_kept_readable(store: SqlJobStore, seeds: Seeds) -> None:
    job, lease = seeds.job()
    trial = seeds.trial(lease)
    store.set_stage(lease, Stage.WAITING, reason="a\x00b")
    store.finish_trial(lease, trial.id, TrialState.FAILED, reason="device said \x00")
    store.end_job(lease, JobState.FAILED, ended_by=EndedBy.SYSTEM, reason="last \x00")
    assert store.snapshot(job.id).trials[0].reason == "device said \ufffd"
    assert store.job(job.id).reason == "last \ufffd"
    assert store.events(job.id)[-1].data["reason"] == "last \ufffd"


# --- trials ---------------------------------------------------------------------------------------------------------
def test_trials_count_within_the_job_and_a_build_is_queued_with_them(store: SqlJobStore, seeds: Seeds) -> None:
    job, lease = seeds.job()
    other_job, other_lease = seeds.job()
    trials = [seeds.trial(lease, number) for number in range(3)]
    assert [trial.number for trial in trials] == [0, 1, 2]
    assert seeds.trial(other_lease).number == 0
    snapshot = store.snapshot(job.id)
    assert snapshot.job.trials_asked == 3
    assert [build.id for build in snapshot.builds] == [trial.build_id for trial in trials]
    assert store.snapshot(other_job.id).job.trials_asked == 1


def test_two_trials_of_one_build_key_share_the_build(store: SqlJobStore, seeds: Seeds) -> None:
    job, lease = seeds.job()
    first = store.add_trial(lease, new_trial(0, build=candidate_build("same")))
    second = store.add_trial(lease, new_trial(0, build=candidate_build("same"), target=1))
    assert first.build_id == second.build_id
    assert len(store.snapshot(job.id).builds) == 1


def test_a_study_number_is_taken_once(store: SqlJobStore, seeds: Seeds) -> None:
    job, lease = seeds.job()
    seeds.trial(lease, 0)
    with pytest.raises(Conflict) as caught:
        store.add_trial(lease, new_trial(0, build=candidate_build("new")))
    assert caught.value.code == "trial_exists"
    snapshot = store.snapshot(job.id)
    assert (snapshot.job.trials_asked, len(snapshot.builds)) == (1, 1)


def test_a_trial_is_measured_then_told(store: SqlJobStore, seeds: Seeds) -> None:
    job, lease = seeds.job()
    trial = seeds.trial(lease)
    measurement = store.add_measurement(lease, new_measurement("m"), trial_id=trial.id)
    same = store.add_measurement(lease, new_measurement("m"), trial_id=trial.id)
    assert same == measurement
    store.finish_trial(lease, trial.id, TrialState.SUCCEEDED, values=VALUES)
    store.finish_trial(lease, trial.id, TrialState.SUCCEEDED, values=VALUES)
    (stored,) = store.snapshot(job.id).trials
    assert (stored.state, stored.values, stored.measurement_id) == (TrialState.SUCCEEDED, VALUES, measurement.id)
    assert stored.finished_at is not None


def test_an_illegal_move_of_a_trial_is_refused(store: SqlJobStore, seeds: Seeds) -> None:
    job, lease = seeds.job()
    trial = seeds.trial(lease)
    with pytest.raises(WrongState):
        store.finish_trial(lease, trial.id, TrialState.SUCCEEDED, values=VALUES)
    store.finish_trial(lease, trial.id, TrialState.REJECTED, reason="dominated")
    with pytest.raises(WrongState):
        store.add_measurement(lease, new_measurement("m"), trial_id=trial.id)
    assert store.snapshot(job.id).measurements == ()  # rolled back with the move
    with pytest.raises(NotFound):
        store.finish_trial(lease, "trial_none", TrialState.FAILED)


def test_a_trial_of_another_job_is_out_of_reach(store: SqlJobStore, seeds: Seeds) -> None:
    _, lease = seeds.job()
    _, other_lease = seeds.job()
    trial = seeds.trial(other_lease)
    with pytest.raises(NotFound):
        store.finish_trial(lease, trial.id, TrialState.FAILED)


# --- builds shared between jobs -------------------------------------------------------------------------------------
def test_a_finished_build_of_another_job_is_adopted_as_done(store: SqlJobStore, seeds: Seeds) -> None:
    _, lease = seeds.job()
    store.add_build(lease, prepare("key"))
    assert store.find_build("key") is None
    claimed = store.claim_build("builder", lease_s=LEASE_S)
    assert claimed is not None
    store.finish_build(claimed.id, claimed.attempt, built())
    found = store.find_build("key")
    assert found is not None and found.id == claimed.id

    job, other_lease = seeds.job()
    adopted = store.adopt_build(other_lease, found)
    again = store.adopt_build(other_lease, found)
    assert adopted == again
    assert (adopted.job_id, adopted.state, adopted.attempt) == (job.id, WorkState.DONE, 0)
    assert isinstance(adopted.outcome, BuildResult) and adopted.outcome == found.outcome
    assert store.claim_build("builder", lease_s=LEASE_S) is None


def test_an_unfinished_build_is_not_adopted(store: SqlJobStore, seeds: Seeds) -> None:
    _, lease = seeds.job()
    build = store.add_build(lease, prepare())
    with pytest.raises(WrongState):
        store.adopt_build(lease, build)
