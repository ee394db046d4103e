"""Events: in order, without gaps for a reader that resumes; and waiting for the next change without missing one."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, text

from db.events import append_event
from db.store import SqlJobStore
from domain.errors import Unavailable
from domain.job import EndedBy, JobState, JobVerb, Stage
from domain.outcome import Blame
from domain.trial import TrialState
from tests.integration.db.samples import LEASE_S, Seeds, built, failed, measured, new_measurement


def test_the_story_of_a_job_is_told_in_order(store: SqlJobStore, seeds: Seeds) -> None:
    job, lease = seeds.job()
    box = seeds.device()
    store.set_stage(lease, Stage.SEARCHING)
    store.set_stage(lease, Stage.SEARCHING)  # nothing new
    trial = seeds.trial(lease)
    build = store.claim_build("builder", lease_s=LEASE_S)
    assert build is not None
    store.finish_build(build.id, build.attempt, built())
    store.add_measurement(lease, new_measurement("m"), trial_id=trial.id)
    claim = store.claim_measurement(box.id, lease_s=LEASE_S)
    assert claim is not None
    store.finish_measurement(claim.measurement_id, box.id, claim.attempt, measured())
    store.finish_trial(lease, trial.id, TrialState.FAILED, reason="why")
    store.end_job(lease, JobState.FAILED, ended_by=EndedBy.SYSTEM, reason="broken")
    events = store.events(job.id)
    assert [(event.id, event.type) for event in events] == [
        (1, "job.state"),
        (2, "job.state"),
        (3, "job.stage"),
        (4, "trial.added"),
        (5, "build.finished"),
        (6, "measurement.finished"),
        (7, "trial.finished"),
        (8, "job.state"),
    ]
    assert events[5].data["device_id"] == box.id
    assert events[6].data == {
        "trial_id": trial.id, "trial": 0, "target": 0, "state": "failed", "reason": "why",
    }  # fmt: skip
    assert events[7].data == {"state": "FAILED", "ended_by": "system", "reason": "broken"}
    assert [event.at for event in events] == sorted(event.at for event in events)


def test_a_failure_stands_in_the_event_with_its_reason(store: SqlJobStore, seeds: Seeds) -> None:
    job, lease = seeds.job()
    seeds.trial(lease)
    build = store.claim_build("builder", lease_s=LEASE_S)
    assert build is not None
    store.finish_build(build.id, build.attempt, failed(Blame.SYSTEM, "disk full"))
    event = store.events(job.id)[-1]
    assert event.type == "build.retried"
    assert event.data["failure"] == failed(Blame.SYSTEM, "disk full").model_dump(mode="json")


def test_a_reader_resumes_after_an_id_and_within_a_limit(store: SqlJobStore, seeds: Seeds) -> None:
    job, lease = seeds.job()
    for number in range(4):
        seeds.trial(lease, number)
    assert [event.id for event in store.events(job.id, after=2, limit=3)] == [3, 4, 5]
    assert store.events(job.id, after=6) == ()
    assert store.events("job_none") == ()


def test_a_reader_that_resumes_misses_nothing_of_many_writers(store: SqlJobStore, seeds: Seeds, engine: Engine) -> None:
    job, _ = seeds.job()
    writers, each = 4, 25
    done = threading.Event()
    seen: list[int] = []

    def write(writer: int) -> None:
        for number in range(each):
            with engine.begin() as connection:
                append_event(connection, job.id, "test", {"writer": writer, "number": number})
                time.sleep(0.0005 * writer)  # some commit late

    def read() -> None:
        while not done.is_set() or store.events(job.id, after=seen[-1] if seen else 0):
            seen.extend(event.id for event in store.events(job.id, after=seen[-1] if seen else 0, limit=7))

    with ThreadPoolExecutor(writers + 1) as pool:
        reading = pool.submit(read)
        list(pool.map(write, range(writers)))
        done.set()
        reading.result()
    assert seen == list(range(1, 2 + writers * each + 1))


# --- waiting --------------------------------------------------------------------------------------------------------
def test_waiting_ends_when_somebody_else_changes_the_job(store: SqlJobStore, seeds: Seeds) -> None:
    job, _ = seeds.job()
    store.snapshot(job.id)
    timer = threading.Timer(0.2, store.apply_verb, (job.id, JobVerb.STOP))
    timer.start()
    started = time.monotonic()
    assert store.wait_for_change(job.id, 10)
    assert time.monotonic() - started < 4
    timer.join()


def test_waiting_ends_with_the_time(store: SqlJobStore, seeds: Seeds) -> None:
    job, _ = seeds.job()
    store.snapshot(job.id)
    started = time.monotonic()
    assert not store.wait_for_change(job.id, 0.2)
    assert 0.2 <= time.monotonic() - started < 2


def test_a_change_between_snapshot_and_wait_is_not_missed(store: SqlJobStore, seeds: Seeds) -> None:
    job, _ = seeds.job()
    store.snapshot(job.id)
    SqlJobStore(store._engine).apply_verb(job.id, JobVerb.PAUSE)
    started = time.monotonic()
    assert store.wait_for_change(job.id, 10)
    assert time.monotonic() - started < 2
    assert not store.wait_for_change(job.id, 0.05)  # seen now


def test_another_thread_reading_the_job_takes_no_change_away(store: SqlJobStore, seeds: Seeds) -> None:
    job, _ = seeds.job()
    store.snapshot(job.id)
    store.apply_verb(job.id, JobVerb.PAUSE)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(store.snapshot, job.id).result()
    assert store.wait_for_change(job.id, 5)


def test_a_change_of_another_job_is_none_of_ours(store: SqlJobStore, seeds: Seeds) -> None:
    job, _ = seeds.job()
    other, _ = seeds.job()
    store.snapshot(job.id)
    timer = threading.Timer(0.1, store.apply_verb, (other.id, JobVerb.PAUSE))
    timer.start()
    assert not store.wait_for_change(job.id, 0.4)
    timer.join()


def test_a_broken_connection_is_said_once_then_mended(store: SqlJobStore, seeds: Seeds, engine: Engine) -> None:
    job, _ = seeds.job()
    assert not store.wait_for_change(job.id, 0.01)
    with engine.connect() as connection:
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
        connection.execute(text(f"{others} AND pid <> pg_backend_pid()"))
    with pytest.raises(Unavailable):
        store.wait_for_change(job.id, 1)
    store.snapshot(job.id)
    store.apply_verb(job.id, JobVerb.PAUSE)
    assert store.wait_for_change(job.id, 1)


def test_no_change_of_many_is_heard_late(store: SqlJobStore, seeds: Seeds) -> None:
    """A reader that only ever waits sees each of a writer's changes soon: none is lost between looking and listening."""
    job, lease = seeds.job()
    changes = 40
    store.snapshot(job.id)

    def write() -> None:
        for number in range(changes):
            seeds.trial(lease, number)

    with ThreadPoolExecutor(1) as pool:
        started = time.monotonic()
        writing = pool.submit(write)
        while len(store.snapshot(job.id).trials) < changes:
            waited = time.monotonic()
            assert store.wait_for_change(job.id, 4.5)  # shorter than the store's own recheck
            assert time.monotonic() - waited < 4
        writing.result()
    assert time.monotonic() - started < 30
