"""A build worker writes what it built, hands back what it may not finish, and drops what it no longer owns."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import cast

from domain.build import Build, BuilderSpent, BuildOutcome, BuildRequest, PrepareRequest
from domain.errors import StaleAttempt, Unavailable
from domain.job import DataSpec, ModelSpec
from domain.messages import HeartbeatAction
from domain.outcome import Blame, Failed
from domain.ports import BuildProgress, Hold, JobStore, Launcher
from domain.work import WorkState
from workers.build import BuildWork

OUTCOME = Failed(stage="load", reason="asked to", blame=Blame.CANDIDATE)


@dataclass
class FakeStore:
    """The four calls a build worker makes, and what it said in them."""

    waiting: int = 1
    action: HeartbeatAction = HeartbeatAction.CONTINUE
    is_stale: bool = False
    away: int = 0  # so many writes of an outcome find the tables away
    said: list[str] = field(default_factory=list)

    def claim_build(self, owner: str, *, lease_s: float) -> Build | None:
        if self.waiting == 0:
            return None
        self.waiting -= 1
        request = PrepareRequest(model=ModelSpec(name="resnet8"), data=DataSpec(name="digits"))
        return Build(
            id="b",
            job_id="j",
            key="k",
            request=request,
            state=WorkState.LEASED,
            attempt=1,
            created_at=datetime.now(UTC),
        )

    def heartbeat_build(
        self, build_id: str, attempt: int, *, lease_s: float, progress: object = None
    ) -> HeartbeatAction:
        self.said.append("heartbeat")
        if self.is_stale:
            raise StaleAttempt("somebody else has it")
        return self.action

    def finish_build(self, build_id: str, attempt: int, outcome: BuildOutcome) -> None:
        if self.is_stale:
            raise StaleAttempt("somebody else has it")
        if self.away:
            self.away -= 1
            self.said.append("away")
            raise Unavailable("the tables are away")
        self.said.append("finished")

    def release_build(self, build_id: str, attempt: int) -> None:
        self.said.append("released")


@dataclass
class FakeLauncher:
    wakes: int = 0

    def wake_search(self) -> None:
        self.wakes += 1


@dataclass
class FakeBuilder:
    """Works in batches of 10 ms for as long as told, asking between them whether to go on."""

    batches: int = 3

    def build(self, request: BuildRequest, *, progress: BuildProgress, hold: Hold) -> BuildOutcome:
        for batch in range(self.batches):
            with hold():
                time.sleep(0.01)
            progress("recover", batch / self.batches)
        return OUTCOME


def work(store: FakeStore, builder: FakeBuilder, is_draining: Callable[[], bool] = lambda: False) -> BuildWork:
    return BuildWork(
        store=cast(JobStore, store),
        builder=builder,
        launcher=cast(Launcher, FakeLauncher()),
        hold=contextlib.nullcontext,
        owner="me",
        is_draining=is_draining,
        heartbeat_s=0.02,
    )


def test_builds_until_nothing_waits_and_wakes_the_search_after_each() -> None:
    store = FakeStore(waiting=3)
    one = work(store, FakeBuilder(batches=1))
    assert one.run() == 3
    assert store.said.count("finished") == 3
    assert cast(FakeLauncher, one.launcher).wakes == 3


def test_the_lease_is_extended_while_it_builds() -> None:
    store = FakeStore()
    work(store, FakeBuilder(batches=30)).run()
    assert store.said.count("heartbeat") >= 3
    assert store.said[-1] == "finished"


def test_a_cancelled_build_stops_between_batches_and_is_handed_back() -> None:
    store = FakeStore(action=HeartbeatAction.CANCEL)
    started = time.monotonic()
    work(store, FakeBuilder(batches=1000)).run()
    assert time.monotonic() - started < 5
    assert store.said[-1] == "released"
    assert "finished" not in store.said


def test_a_build_whose_lease_is_lost_is_dropped_without_a_word() -> None:
    store = FakeStore(is_stale=True)
    work(store, FakeBuilder(batches=1000)).run()
    assert set(store.said) == {"heartbeat"}


def test_draining_hands_the_build_in_hand_back_and_takes_no_more() -> None:
    store = FakeStore(waiting=5)
    draining = False

    class Builder(FakeBuilder):
        def build(self, request: BuildRequest, *, progress: BuildProgress, hold: Hold) -> BuildOutcome:
            nonlocal draining
            draining = True
            return super().build(request, progress=progress, hold=hold)

    work(store, Builder(batches=1000), is_draining=lambda: draining).run()
    assert store.waiting == 4
    assert store.said == ["released"]


def test_what_was_built_is_kept_until_the_tables_are_back_and_the_lease_with_it() -> None:
    store = FakeStore(away=2)
    one = work(store, FakeBuilder(batches=1))
    one.tell_every_s = 0.1
    assert one.run() == 1
    assert store.said.count("away") == 2
    assert store.said[-1] == "finished"
    assert "heartbeat" in store.said[store.said.index("away") :]


def test_a_builder_that_is_spent_has_its_build_told_and_takes_no_other() -> None:
    class Builder(FakeBuilder):
        def build(self, request: BuildRequest, *, progress: BuildProgress, hold: Hold) -> BuildOutcome:
            raise BuilderSpent(OUTCOME)

    store = FakeStore(waiting=3)
    one = work(store, Builder())
    assert one.run() == 1 and one.is_spent
    assert store.waiting == 2 and store.said[-1] == "finished"
    assert cast(FakeLauncher, one.launcher).wakes == 1
    assert one.run() == 0, "not by this process"
