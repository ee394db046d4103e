"""Jobs: made once, listed in a stable order, moved by verbs."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, text

from db.store import SqlJobStore
from domain.access import Principal
from domain.errors import Conflict, Invalid, NotFound, StaleAttempt, Unavailable, WrongState
from domain.job import EndedBy, JobState, JobVerb, Stage
from domain.messages import HeartbeatAction
from domain.trial import TrialState
from domain.work import WorkState
from tests.integration.db.samples import LEASE_S, Seeds, built, spec

ANN, BOB = Principal("ann", frozenset()), Principal("bob", frozenset())


def test_a_job_is_read_as_it_was_written(store: SqlJobStore) -> None:
    job, is_new = store.create_job(spec("résumé ☃ \\u0000"))
    assert is_new
    assert store.job(job.id) == job
    assert (job.state, job.stage, job.spec) == (JobState.QUEUED, Stage.QUEUED, spec("résumé ☃ \\u0000"))


def test_an_unknown_job_is_not_found(store: SqlJobStore) -> None:
    for read in (store.job, store.snapshot, store.trials):
        with pytest.raises(NotFound):
            read("job_none")
    with pytest.raises(NotFound):
        store.apply_verb("job_none", JobVerb.PAUSE)


def test_text_that_postgresql_cannot_hold_is_the_senders_to_mend(store: SqlJobStore) -> None:
    with pytest.raises(Invalid, match="NUL"):
        store.create_job(spec("a\x00b"))


def test_a_database_that_is_away_is_unavailable(tmp_path: object) -> None:
    from db.engine import make_engine

    engine = make_engine(f"postgresql+psycopg://postgres@/none?host={tmp_path}")
    with pytest.raises(Unavailable) as caught:
        SqlJobStore(engine).now()
    assert caught.value.code == "database_unavailable"


# --- idempotency ----------------------------------------------------------------------------------------------------
def test_the_same_key_and_body_give_the_first_job(store: SqlJobStore) -> None:
    first, is_new = store.create_job(spec("a"), idempotency_key="k", by=ANN)
    again, is_new_again = store.create_job(spec("a"), idempotency_key="k", by=ANN)
    assert (is_new, is_new_again, again.id) == (True, False, first.id)
    assert len(store.jobs().items) == 1


def test_a_key_belongs_to_its_principal(store: SqlJobStore) -> None:
    first, _ = store.create_job(spec("a"), idempotency_key="k", by=ANN)
    other, is_new = store.create_job(spec("b"), idempotency_key="k", by=BOB)
    assert is_new and other.id != first.id


def test_the_same_key_with_another_body_is_refused(store: SqlJobStore) -> None:
    store.create_job(spec("a"), idempotency_key="k")
    with pytest.raises(Invalid) as caught:
        store.create_job(spec("b"), idempotency_key="k")
    assert caught.value.code == "idempotency_mismatch"
    assert len(store.jobs().items) == 1


def test_one_key_sent_by_many_at_once_makes_one_job(store: SqlJobStore) -> None:
    def send(_: int) -> tuple[str, bool] | None:
        try:
            job, is_new = store.create_job(spec("a"), idempotency_key="k")
        except Conflict as error:
            assert error.code == "idempotency_in_progress"
            return None
        return job.id, is_new

    with ThreadPoolExecutor(6) as pool:
        answers = [answer for answer in pool.map(send, range(12)) if answer is not None]
    assert len({job_id for job_id, _ in answers}) == 1
    assert sum(is_new for _, is_new in answers) == 1


def test_a_key_whose_request_is_under_way_is_a_conflict_for_now(store: SqlJobStore, engine: Engine) -> None:
    taken = text("SELECT pg_advisory_xact_lock(hashtextextended('system' || chr(31) || 'k', 0))")
    with engine.begin() as connection:
        connection.execute(taken)
        with pytest.raises(Conflict) as caught:
            store.create_job(spec("a"), idempotency_key="k")
        assert caught.value.metadata == {"retry_after_s": 1}
        store.create_job(spec("a"), idempotency_key="other")
    store.create_job(spec("a"), idempotency_key="k")


# --- lists ----------------------------------------------------------------------------------------------------------
def test_jobs_are_paged_newest_first_and_new_ones_shift_nothing(store: SqlJobStore) -> None:
    ids = [store.create_job(spec(str(n)))[0].id for n in range(5)]
    first = store.jobs(page_size=2)
    store.create_job(spec("late"))
    second = store.jobs(page_size=2, page_token=first.next_page_token)
    third = store.jobs(page_size=2, page_token=second.next_page_token)
    seen = [job.id for page in (first, second, third) for job in page.items]
    assert seen == ids[::-1]
    assert third.next_page_token == ""


def test_jobs_are_filtered_by_state_and_the_token_holds_its_filter(store: SqlJobStore, seeds: Seeds) -> None:
    for _ in range(3):
        store.create_job(spec())
    running, _ = seeds.job()
    assert [job.id for job in store.jobs(states=[JobState.RUNNING]).items] == [running.id]
    page = store.jobs(states=[JobState.QUEUED], page_size=1)
    with pytest.raises(Invalid) as caught:
        store.jobs(states=[JobState.RUNNING], page_size=1, page_token=page.next_page_token)
    assert caught.value.code == "bad_page_token"


def test_a_page_size_out_of_range_is_brought_into_it(store: SqlJobStore) -> None:
    for _ in range(3):
        store.create_job(spec())
    assert len(store.jobs(page_size=0).items) == 1
    assert len(store.jobs(page_size=10**9).items) == 3


def test_trials_are_paged_by_number(store: SqlJobStore, seeds: Seeds) -> None:
    job, lease = seeds.job()
    for number in range(5):
        seeds.trial(lease, number)
    page = store.trials(job.id, page_size=3)
    rest = store.trials(job.id, page_size=3, page_token=page.next_page_token)
    assert [trial.number for trial in (*page.items, *rest.items)] == [0, 1, 2, 3, 4]
    assert rest.next_page_token == ""


# --- verbs ----------------------------------------------------------------------------------------------------------
def test_verbs_move_a_job_and_a_wrong_one_says_why(store: SqlJobStore) -> None:
    job, _ = store.create_job(spec())
    assert store.apply_verb(job.id, JobVerb.PAUSE).state is JobState.PAUSED
    with pytest.raises(WrongState):
        store.apply_verb(job.id, JobVerb.PAUSE)
    assert store.apply_verb(job.id, JobVerb.RESUME).state is JobState.QUEUED
    stopped = store.apply_verb(job.id, JobVerb.STOP)
    assert (stopped.state, stopped.ended_by, stopped.stage) == (JobState.STOPPED, EndedBy.USER, Stage.DONE)
    assert stopped.finished_at is not None
    with pytest.raises(WrongState):
        store.apply_verb(job.id, JobVerb.CANCEL)


def test_a_job_that_has_started_winds_down_when_stopped(store: SqlJobStore, seeds: Seeds) -> None:
    job, lease = seeds.job()
    assert store.apply_verb(job.id, JobVerb.STOP).state is JobState.STOPPING
    assert store.renew_search(lease, lease_s=LEASE_S) is JobState.STOPPING


def test_time_paused_is_counted_while_it_lasts_and_over_several_pauses(store: SqlJobStore, seeds: Seeds) -> None:
    job, _ = seeds.job()
    assert store.job(job.id).paused_s == 0
    for _ in range(2):
        store.apply_verb(job.id, JobVerb.PAUSE)
        time.sleep(0.15)
        running = store.job(job.id).paused_s
        store.apply_verb(job.id, JobVerb.RESUME)
        time.sleep(0.1)
        assert running > 0.1
    total = store.job(job.id).paused_s
    assert 0.3 <= total < 5.0
    time.sleep(0.1)
    assert store.job(job.id).paused_s == total


def test_a_pause_that_a_cancel_ends_is_counted(store: SqlJobStore, seeds: Seeds) -> None:
    job, _ = seeds.job()
    store.apply_verb(job.id, JobVerb.PAUSE)
    time.sleep(0.1)
    assert store.apply_verb(job.id, JobVerb.CANCEL).paused_s >= 0.1


def test_nobody_searches_a_paused_job_but_its_work_goes_on(store: SqlJobStore, seeds: Seeds) -> None:
    job, lease = seeds.job()
    seeds.trial(lease)
    store.release_search(lease)
    store.apply_verb(job.id, JobVerb.PAUSE)
    assert store.lease_search("other", lease_s=LEASE_S) is None
    assert store.claim_build("builder", lease_s=LEASE_S) is not None


def test_cancel_takes_waiting_work_away_and_tells_the_holder_of_leased_work(store: SqlJobStore, seeds: Seeds) -> None:
    job, lease = seeds.job()
    seeds.trial(lease, 0)
    seeds.trial(lease, 1)
    build = store.claim_build("builder", lease_s=LEASE_S)
    assert build is not None
    cancelled = store.apply_verb(job.id, JobVerb.CANCEL)
    assert (cancelled.state, cancelled.ended_by) == (JobState.CANCELLED, EndedBy.USER)
    snapshot = store.snapshot(job.id)
    assert {trial.state for trial in snapshot.trials} == {TrialState.CANCELLED}
    assert {item.state for item in snapshot.builds} == {WorkState.LEASED, WorkState.CANCELLED}
    assert store.claim_build("other", lease_s=LEASE_S) is None
    assert store.heartbeat_build(build.id, build.attempt, lease_s=LEASE_S) is HeartbeatAction.CANCEL
    store.finish_build(build.id, build.attempt, built())
    store.finish_build(build.id, build.attempt, built())
    after = next(item for item in store.snapshot(job.id).builds if item.id == build.id)
    assert (after.state, after.outcome) == (WorkState.CANCELLED, None)
    assert store.heartbeat_build(build.id, build.attempt, lease_s=LEASE_S) is HeartbeatAction.CANCEL


def test_a_cancelled_job_takes_no_more_rows_but_a_last_word_in_its_report(store: SqlJobStore, seeds: Seeds) -> None:
    job, lease = seeds.job()
    store.apply_verb(job.id, JobVerb.CANCEL)
    assert store.renew_search(lease, lease_s=LEASE_S) is JobState.CANCELLED
    for write in (
        lambda: seeds.trial(lease),
        lambda: seeds.measurement(lease),
        lambda: store.set_stage(lease, Stage.SEARCHING),
        lambda: store.end_job(lease, JobState.SUCCEEDED, ended_by=EndedBy.BUDGET),
    ):
        with pytest.raises(StaleAttempt):
            write()
    store.merge_report(lease, {"overhead": 0.01})
    assert store.job(job.id).report == {"overhead": 0.01}
    store.release_search(lease)


def test_a_snapshot_holds_every_row_and_keeps_the_order_of_keys(store: SqlJobStore, seeds: Seeds) -> None:
    job, lease = seeds.job()
    trial = seeds.trial(lease)
    measurement = seeds.measurement(lease)
    snapshot = store.snapshot(job.id)
    assert snapshot.trials == (trial,)
    assert [item.id for item in snapshot.builds] == [trial.build_id]
    assert snapshot.measurements == (measurement,)
    assert list(snapshot.trials[0].params) == ["width_b", "width_a"]
    assert list(snapshot.trials[0].candidate.widths) == ["b", "a"]


def test_a_snapshot_never_sees_half_a_transaction(store: SqlJobStore, seeds: Seeds, engine: Engine) -> None:
    """Read in one view: rows that another transaction commits between two of its statements are all there or all absent."""
    job, lease = seeds.job()
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: [seeds.trial(lease, number) for number in range(30)])
        while not writing.done():
            snapshot = store.snapshot(job.id)
            assert snapshot.job.trials_asked == len(snapshot.trials) == len(snapshot.builds)
        writing.result()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM trial")).scalar_one() == 30


# --- snapshots read again -------------------------------------------------------------------------------------------
def test_a_snapshot_read_again_sees_every_change_and_keeps_what_did_not(
    store: SqlJobStore, engine: Engine, seeds: Seeds
) -> None:
    job, lease = seeds.job()
    seeds.trial(lease)
    seeds.measurement(lease)
    job_id = job.id
    first = store.snapshot(job_id)
    again = store.snapshot(job_id)
    assert again == first
    assert all(one is other for one, other in zip(first.builds, again.builds, strict=True))
    with engine.begin() as connection:  # behind the store's back: a health check marks a number
        connection.execute(text("UPDATE measurement SET is_suspect = true WHERE job_id = :id"), {"id": job_id})
    marked = store.snapshot(job_id)
    assert all(measurement.is_suspect for measurement in marked.measurements) and marked.measurements
    assert all(one is other for one, other in zip(first.builds, marked.builds, strict=True))
    assert marked == SqlJobStore(engine).snapshot(job_id)
