"""Labels, priorities and places, on the tables."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import pytest
from sqlalchemy import Engine, text

from db.store import SqlJobStore
from domain.errors import NotFound
from domain.job import Job
from domain.trial import TrialState
from domain.work import WorkState
from tests.integration.db.samples import LEASE_S, Seeds, built, measured, prepare, spec


def make(store: SqlJobStore, *, priority: int = 0, **labels: str) -> Job:
    return store.create_job(spec().model_copy(update={"priority": priority, "labels": labels}))[0]


def test_jobs_are_filtered_by_label_and_time_through_pages(store: SqlJobStore) -> None:
    wanted = [make(store, team="vision", run=str(number)).id for number in range(5)]
    make(store, team="speech")
    make(store)
    first = store.jobs(labels={"team": "vision", "run": None}, page_size=3)
    rest = store.jobs(labels={"run": None, "team": "vision"}, page_size=3, page_token=first.next_page_token)
    assert [job.id for job in (*first.items, *rest.items)] == wanted[::-1]
    assert rest.next_page_token == ""
    last = store.job(wanted[-1])
    assert len(store.jobs(created_from=last.created_at).items) == 3
    assert len(store.jobs(created_before=last.created_at).items) == 4
    assert store.jobs(created_from=last.created_at + timedelta(days=1)).items == ()


def test_a_higher_priority_is_searched_first_and_equals_by_age(store: SqlJobStore) -> None:
    low, usual, later, high = make(store, priority=-1), make(store), make(store), make(store, priority=5)
    taken = [store.lease_search(f"s{number}", lease_s=LEASE_S) for number in range(4)]
    assert [lease.job_id for lease in taken if lease] == [high.id, usual.id, later.id, low.id]


def test_work_of_a_higher_priority_is_claimed_first(store: SqlJobStore, seeds: Seeds) -> None:
    device = seeds.device()
    for priority in (0, 3):
        make(store, priority=priority)
        lease = store.lease_search(f"s{priority}", lease_s=LEASE_S)
        assert lease is not None
        store.add_build(lease, prepare())
        seeds.measurement(lease)
    build = store.claim_build("b", lease_s=LEASE_S)
    claim = store.claim_measurement(device.id, lease_s=LEASE_S)
    assert build is not None and store.job(build.job_id).spec.priority == 3
    assert claim is not None
    assert store.job(store.measurement(claim.measurement_id).job_id).spec.priority == 3


def test_a_place_counts_who_goes_first(store: SqlJobStore) -> None:
    first, second, urgent = make(store), make(store), make(store, priority=1)
    assert [store.queue_place(job_id=job.id).ahead for job in (first, second, urgent)] == [1, 2, 0]
    assert [store.queue_place(priority=priority).ahead for priority in (-1, 0, 1, 2)] == [3, 3, 1, 0]
    assert store.queue_place(job_id=second.id).expected_wait_s is None
    assert store.lease_search("s", lease_s=LEASE_S) is not None  # takes the urgent one
    place = store.queue_place(job_id=second.id)
    assert (place.ahead, place.searchers, place.expected_wait_s) == (1, 1, 10.0)


def test_a_pace_is_the_median_of_what_was_done(store: SqlJobStore, seeds: Seeds, engine: Engine) -> None:
    assert store.pace().measurement_s is None
    make(store)
    lease = store.lease_search("s", lease_s=LEASE_S)
    assert lease is not None
    device = seeds.device()
    for _ in range(3):
        seeds.measurement(lease)
        claim = store.claim_measurement(device.id, lease_s=LEASE_S)
        assert claim is not None
        store.finish_measurement(claim.measurement_id, device.id, claim.attempt, measured())
    with engine.begin() as connection:
        connection.execute(text("UPDATE measurement SET started_at = finished_at - interval '4 seconds'"))
    pace = store.pace()
    assert (pace.measurements, pace.measurement_s, pace.builds, pace.build_s) == (3, 4.0, 0, None)


def test_tallies_count_trials_by_state_and_name_devices(store: SqlJobStore, seeds: Seeds) -> None:
    first, lease = seeds.job()
    second = make(store)
    seeds.trial(lease)
    tallies = store.tallies([first.id, second.id, first.id])
    assert list(tallies) == [first.id, second.id]
    assert sum(tallies[first.id].trials_by_state.values()) == 1
    assert tallies[second.id].trials_by_state == {} and tallies[second.id].device_ids == ()


def test_a_standing_counts_what_a_snapshot_holds(store: SqlJobStore, seeds: Seeds) -> None:
    job, lease = seeds.job()
    trials = [seeds.trial(lease, number) for number in range(3)]
    done = store.claim_build("builder", lease_s=LEASE_S)
    running = store.claim_build("another", lease_s=LEASE_S)
    assert done is not None and running is not None
    store.finish_build(done.id, done.attempt, built())
    finished = next(trial for trial in trials if trial.build_id == done.id)
    store.finish_trial(lease, finished.id, TrialState.REJECTED, reason="dominated")
    measured_now, _ = seeds.measurement(lease), seeds.measurement(lease)
    device = seeds.device()
    assert store.claim_measurement(device.id, lease_s=LEASE_S) is not None

    standing, snapshot = store.standing(job.id), store.snapshot(job.id)
    assert standing.job == snapshot.job.model_copy(update={"paused_s": standing.job.paused_s})
    assert standing.trials_by_state == Counter(trial.state.value for trial in snapshot.trials)
    assert (standing.trials_finished, standing.builds_waiting, standing.measurements_waiting) == (1, 1, 1)
    assert [build.id for build in standing.builds_running] == [running.id]
    assert [item.id for item in standing.measurements_running] == [measured_now.id]
    assert standing.measurements_running == tuple(m for m in snapshot.measurements if m.state is WorkState.LEASED)
    assert (standing.finals_wanted, standing.finals_done) == (0, 0)
    with pytest.raises(NotFound):
        store.standing("no-such-job")
