"""Builds as leased work: claimed once, fenced by the attempt, retried, given up."""

from __future__ import annotations

import math
import time

import pytest
from sqlalchemy import Engine, text

from db.leases import RETRY_AFTER_S
from db.store import SqlJobStore
from domain.build import AccuracyReport, Build
from domain.errors import Invalid, NotFound, StaleAttempt
from domain.messages import HeartbeatAction
from domain.outcome import Blame, Failed
from domain.work import MAX_ATTEMPTS, WorkState
from tests.integration.db.samples import LEASE_S, Seeds, built, failed, prepare


def claim(store: SqlJobStore, owner: str = "builder", lease_s: float = LEASE_S) -> Build:
    build = store.claim_build(owner, lease_s=lease_s)
    assert build is not None
    return build


def stored(store: SqlJobStore, build: Build) -> Build:
    return next(item for item in store.snapshot(build.job_id).builds if item.id == build.id)


def test_builds_are_claimed_oldest_first_each_once(store: SqlJobStore, seeds: Seeds) -> None:
    _, lease = seeds.job()
    ids = [store.add_build(lease, prepare(key)).id for key in "abc"]
    claimed = [claim(store, owner).id for owner in ("x", "y", "z")]
    assert claimed == ids
    assert store.claim_build("w", lease_s=LEASE_S) is None


def test_the_same_key_in_a_job_is_one_build(store: SqlJobStore, seeds: Seeds) -> None:
    _, lease = seeds.job()
    assert store.add_build(lease, prepare("a")).id == store.add_build(lease, prepare("a")).id


def test_an_outcome_is_kept_whole(store: SqlJobStore, seeds: Seeds) -> None:
    _, lease = seeds.job()
    store.add_build(lease, prepare())
    build = claim(store)
    store.heartbeat_build(build.id, build.attempt, lease_s=LEASE_S, progress={"stage": "recover", "fraction": 0.5})
    assert stored(store, build).progress == {"stage": "recover", "fraction": 0.5}
    store.finish_build(build.id, build.attempt, built())
    after = stored(store, build)
    assert (after.state, after.outcome, after.lease_until) == (WorkState.DONE, built(), None)
    assert after.started_at is not None and after.finished_at is not None


def test_an_expired_lease_is_claimed_by_the_next_and_the_first_is_fenced_out(store: SqlJobStore, seeds: Seeds) -> None:
    _, lease = seeds.job()
    store.add_build(lease, prepare())
    old = claim(store, "a", lease_s=0.05)
    time.sleep(0.1)
    new = claim(store, "b")
    assert (new.id, new.attempt) == (old.id, old.attempt + 1)
    for write in (
        lambda: store.heartbeat_build(old.id, old.attempt, lease_s=LEASE_S),
        lambda: store.finish_build(old.id, old.attempt, built()),
        lambda: store.release_build(old.id, old.attempt),
    ):
        with pytest.raises(StaleAttempt):
            write()
    assert stored(store, new).state is WorkState.LEASED
    store.finish_build(new.id, new.attempt, built())


def test_a_late_outcome_counts_where_nobody_else_claimed(store: SqlJobStore, seeds: Seeds) -> None:
    _, lease = seeds.job()
    store.add_build(lease, prepare())
    build = claim(store, lease_s=0.05)
    time.sleep(0.1)
    store.reap()
    store.finish_build(build.id, build.attempt, built())
    assert stored(store, build).state is WorkState.DONE


def test_heartbeats_keep_a_lease(store: SqlJobStore, seeds: Seeds) -> None:
    _, lease = seeds.job()
    store.add_build(lease, prepare())
    build = claim(store, lease_s=0.05)
    assert store.heartbeat_build(build.id, build.attempt, lease_s=LEASE_S) is HeartbeatAction.CONTINUE
    time.sleep(0.1)
    assert store.claim_build("other", lease_s=LEASE_S) is None


def test_an_owner_that_asks_again_gets_its_own_build_first(store: SqlJobStore, seeds: Seeds) -> None:
    _, lease = seeds.job()
    store.add_build(lease, prepare("older"))
    store.add_build(lease, prepare("newer"))
    claim(store, "a")
    mine = claim(store, "b")
    again = claim(store, "b")
    assert (again.id, again.attempt) == (mine.id, mine.attempt + 1)


def test_a_build_handed_back_waits_again_and_the_attempt_does_not_count(store: SqlJobStore, seeds: Seeds) -> None:
    _, lease = seeds.job()
    store.add_build(lease, prepare())
    for _ in range(MAX_ATTEMPTS + 2):
        build = claim(store)
        store.release_build(build.id, build.attempt)
        with pytest.raises(StaleAttempt):
            store.release_build(build.id, build.attempt)
    assert stored(store, build).state is WorkState.PENDING
    assert claim(store).attempt == MAX_ATTEMPTS + 3  # it only grows: that is the fence


def test_the_same_outcome_twice_is_accepted_once_and_another_is_stale(store: SqlJobStore, seeds: Seeds) -> None:
    job, lease = seeds.job()
    store.add_build(lease, prepare())
    build = claim(store)
    store.finish_build(build.id, build.attempt, built())
    store.finish_build(build.id, build.attempt, built())
    with pytest.raises(StaleAttempt):
        store.finish_build(build.id, build.attempt, failed(Blame.SYSTEM))
    assert stored(store, build).outcome == built()
    assert [event.type for event in store.events(job.id)].count("build.finished") == 1


def test_the_systems_failure_is_tried_again_later_until_the_attempts_are_used_up(
    store: SqlJobStore, seeds: Seeds, engine: Engine
) -> None:
    job, lease = seeds.job()
    store.add_build(lease, prepare())
    for attempt in range(1, MAX_ATTEMPTS + 1):
        if attempt > 1:
            assert store.claim_build("builder", lease_s=LEASE_S) is None, "a full disk is full a moment later too"
            assert store.reap().builds == 0
            with engine.begin() as connection:
                left_s = connection.execute(
                    text("SELECT extract(epoch FROM not_before - now()) FROM build")
                ).scalar_one()
                connection.execute(text("UPDATE build SET not_before = now()"))
            assert float(left_s) == pytest.approx(RETRY_AFTER_S[attempt - 2], abs=2)
            assert store.reap().builds == 1
        build = claim(store)
        assert build.attempt == attempt
        outcome = failed(Blame.SYSTEM, f"disk full {attempt}")
        store.finish_build(build.id, build.attempt, outcome)
        store.finish_build(build.id, build.attempt, outcome)  # its answer was lost
    assert store.claim_build("builder", lease_s=LEASE_S) is None
    after = stored(store, build)
    assert (after.state, after.outcome) == (WorkState.FAILED, failed(Blame.SYSTEM, "disk full 3"))
    types = [event.type for event in store.events(job.id) if event.type.startswith("build.")]
    assert types == ["build.retried", "build.retried", "build.finished"]


def test_the_candidates_failure_is_final_at_once(store: SqlJobStore, seeds: Seeds) -> None:
    _, lease = seeds.job()
    store.add_build(lease, prepare())
    build = claim(store)
    store.finish_build(build.id, build.attempt, failed(Blame.CANDIDATE))
    assert stored(store, build).state is WorkState.FAILED
    assert store.claim_build("builder", lease_s=LEASE_S) is None


def test_a_build_that_kills_every_builder_is_poison(store: SqlJobStore, seeds: Seeds, engine: Engine) -> None:
    _, lease = seeds.job()
    store.add_build(lease, prepare())
    build = claim(store)
    store.finish_build(build.id, build.attempt, failed(Blame.SYSTEM, "out of memory"))
    with engine.begin() as connection:
        connection.execute(text("UPDATE build SET not_before = NULL"))
    for number in range(1, MAX_ATTEMPTS):
        build = claim(store, f"builder-{number}", lease_s=0.02)
        time.sleep(0.05)
    assert store.claim_build("next", lease_s=LEASE_S) is None
    assert store.reap().poisoned == 1
    assert store.reap().poisoned == 0
    after = stored(store, build)
    assert after.state is WorkState.FAILED
    assert isinstance(after.outcome, Failed)
    assert (after.outcome.code, after.outcome.blame) == ("attempts_used_up", Blame.SYSTEM)
    assert "3 attempts" in after.outcome.reason and "out of memory" in after.outcome.reason
    with pytest.raises(StaleAttempt):
        store.finish_build(build.id, build.attempt, built())


def test_an_outcome_that_could_not_be_read_again_is_refused(store: SqlJobStore, seeds: Seeds) -> None:
    _, lease = seeds.job()
    store.add_build(lease, prepare())
    build = claim(store)
    bad = built().model_copy(update={"accuracy": AccuracyReport(search=math.nan)})
    with pytest.raises(Invalid) as caught:
        store.finish_build(build.id, build.attempt, bad)
    assert caught.value.code == "bad_outcome"
    assert stored(store, build).state is WorkState.LEASED


def test_an_unknown_build_is_not_found(store: SqlJobStore) -> None:
    with pytest.raises(NotFound):
        store.finish_build("build_none", 1, built())
    with pytest.raises(StaleAttempt):
        store.heartbeat_build("build_none", 1, lease_s=LEASE_S)
