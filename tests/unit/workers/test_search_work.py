"""A search worker keeps its lease beside the loop, bears tables that are away, and gives up a job whose loop always raises."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from pydantic import JsonValue

from domain.errors import StaleAttempt, Unavailable
from domain.job import EndedBy, JobState
from domain.ports import JobStore, SearchLease
from search.loop import SearchLoop
from workers.search import MAX_CRASHES, SearchWork


@dataclass
class FakeStore:
    """One job that may be leased so many times."""

    leases: int = 1
    is_away: bool = False
    renewed: int = 0
    released: list[float] = field(default_factory=list)
    report: dict[str, JsonValue] = field(default_factory=dict)
    ended: tuple[JobState, str | None] | None = None

    def lease_search(self, owner: str, *, lease_s: float) -> SearchLease | None:
        if self.is_away:
            raise Unavailable("the tables are away")
        self.leases -= 1
        return SearchLease("job", owner, 1) if self.leases >= 0 and self.ended is None else None

    def renew_search(self, lease: SearchLease, *, lease_s: float) -> JobState:
        self.renewed += 1
        if self.renewed == 1:
            raise Unavailable("away for a moment")
        return JobState.RUNNING

    def release_search(self, lease: SearchLease, *, retry_after_s: float = 0.0) -> None:
        self.released.append(retry_after_s)

    def job(self, job_id: str) -> Any:
        return SimpleNamespace(report=self.report)

    def merge_report(self, lease: SearchLease, report: Mapping[str, JsonValue]) -> None:
        self.report.update(report)

    def end_job(self, lease: SearchLease, state: JobState, *, ended_by: EndedBy, reason: str | None = None) -> None:
        self.ended = (state, reason)


@dataclass
class FakeLoop:
    does: Callable[[], None]

    def run(self, lease: SearchLease, *, until: Callable[[], bool]) -> None:
        self.does()


def work(store: FakeStore, does: Callable[[], None]) -> SearchWork:
    loop = cast(SearchLoop, FakeLoop(does))
    return SearchWork(cast(JobStore, store), loop, "me", is_draining=lambda: False, heartbeat_s=0.02)


def raiser(error: Exception) -> Callable[[], None]:
    def does() -> None:
        raise error

    return does


def test_a_long_turn_keeps_its_lease_and_a_beat_that_fails_is_not_the_last() -> None:
    store = FakeStore()
    assert work(store, lambda: time.sleep(0.2)).run() == 1
    assert store.renewed >= 3
    after = store.renewed
    time.sleep(0.1)
    assert store.renewed == after, "nobody renews what was given back"


def test_tables_that_are_away_end_the_wake_quietly() -> None:
    assert work(FakeStore(is_away=True), lambda: None).run() == 0
    store = FakeStore(leases=5)
    assert work(store, raiser(Unavailable("gone"))).run() == 0
    assert (store.report, store.ended) == ({}, None), "it is not the job's fault"


def test_a_lost_lease_is_left_to_who_has_it() -> None:
    store = FakeStore(leases=2)
    assert work(store, raiser(StaleAttempt("lost"))).run() == 2
    assert (store.released, store.ended) == ([], None)


def test_a_loop_that_always_raises_is_tried_again_later_and_then_ends_its_job_with_the_reason() -> None:
    store = FakeStore(leases=100)
    assert work(store, raiser(ZeroDivisionError("a bug"))).run() == MAX_CRASHES
    assert store.released == [5.0, 10.0]
    assert store.ended is not None
    state, reason = store.ended
    assert state is JobState.FAILED
    assert reason is not None and "ZeroDivisionError: a bug" in reason
