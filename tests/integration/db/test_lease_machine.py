"""A model of leased work, played at random against the tables: claims, crashes, expiry, outcomes, cancels.

What must hold at every step: a row has one holder at most, a device one row at most, a lost lease writes nothing, a terminal row
never changes, and no row is tried more often than allowed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import Engine, text

from db.models import metadata
from db.store import SqlJobStore
from domain.device import DeviceState
from domain.errors import StaleAttempt
from domain.job import JobVerb
from domain.messages import HeartbeatAction
from domain.outcome import Blame
from domain.work import MAX_ATTEMPTS, WorkState
from tests.integration.db.machines import play
from tests.integration.db.samples import LEASE_S, Seeds, failed, measured

DEVICES = st.integers(0, 2)


@dataclass
class Row:
    """What a measurement should look like."""

    id: str
    state: WorkState = WorkState.PENDING
    holder: str | None = None
    attempt: int = 0
    released: int = 0
    is_cancelled: bool = False
    is_resting: bool = False  # the system failed it: tried again later

    @property
    def used(self) -> int:
        return self.attempt - self.released


class LeasedWork(RuleBasedStateMachine):
    """One job, three devices; ``claims`` remembers every lease ever given, so that old ones keep trying."""

    engine: Engine
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.written: dict[str, str] = {}

    @initialize()
    def begin(self) -> None:
        with self.engine.begin() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())
        self.store = SqlJobStore(self.engine)
        self.seeds = Seeds(self.store)
        self.job, self.lease = self.seeds.job()
        self.devices = [self.seeds.device().id for _ in range(3)]
        self.rows: dict[str, Row] = {}
        self.finished: dict[str, WorkState] = {}
        self.is_over = False
        for _ in range(3):
            self.add()

    def add(self) -> None:
        row = Row(self.seeds.measurement(self.lease).id)
        self.rows[row.id] = row

    @rule(target=claims, number=DEVICES)
    def claim(self, number: int) -> tuple[str, str, int] | None:
        device = self.devices[number]
        own = next((row for row in self.rows.values() if row.holder == device), None)
        claim = self.store.claim_measurement(device, lease_s=LEASE_S)
        if own is not None:
            if own.is_cancelled:
                own.state, own.holder = WorkState.CANCELLED, None
            elif own.used >= MAX_ATTEMPTS:
                own.state, own.holder = WorkState.FAILED, None
            else:
                assert claim is not None and claim.measurement_id == own.id
        if claim is None:
            waiting = [row.id for row in self.rows.values() if row.state is WorkState.PENDING and not row.is_resting]
            assert waiting == []
            return None
        row = self.rows[claim.measurement_id]
        assert row is own or (row.state is WorkState.PENDING and not row.is_resting)
        assert claim.attempt == row.attempt + 1
        row.state, row.holder, row.attempt = WorkState.LEASED, device, claim.attempt
        return (row.id, device, claim.attempt)

    @rule(claim=claims, kind=st.sampled_from(["measured", "candidate", "system"]))
    def finish(self, claim: tuple[str, str, int] | None, kind: str) -> None:
        if claim is None:
            return
        row_id, device, attempt = claim
        row = self.rows[row_id]
        is_held = (row.state, row.holder, row.attempt) == (WorkState.LEASED, device, attempt)
        # Told apart by attempt and kind, so that only a true repetition is one.
        outcome = (
            measured(latency_ms=float(attempt)) if kind == "measured" else failed(Blame(kind), f"{kind} {attempt}")
        )
        key = f"{row_id}/{attempt}"
        if not is_held and self.written.get(key) == kind:
            self.store.finish_measurement(row_id, device, attempt, outcome)
            return
        if not is_held:
            with pytest.raises(StaleAttempt):
                self.store.finish_measurement(row_id, device, attempt, outcome)
            return
        self.store.finish_measurement(row_id, device, attempt, outcome)
        self.written = {k: v for k, v in self.written.items() if not k.startswith(row_id)} | {key: kind}
        row.holder = None
        if row.is_cancelled:
            row.state = WorkState.CANCELLED
        elif kind == "measured":
            row.state = WorkState.DONE
        elif kind == "candidate" or row.used >= MAX_ATTEMPTS:
            row.state = WorkState.FAILED
        else:
            row.state, row.is_resting = WorkState.PENDING, True

    @rule()
    def rest(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(text("UPDATE measurement SET not_before = now() - interval '1 second'"))
        for row in self.rows.values():
            row.is_resting = False

    @rule(claim=claims)
    def release(self, claim: tuple[str, str, int] | None) -> None:
        if claim is None:
            return
        row_id, device, attempt = claim
        row = self.rows[row_id]
        if (row.state, row.holder, row.attempt) != (WorkState.LEASED, device, attempt):
            with pytest.raises(StaleAttempt):
                self.store.release_measurement(row_id, device, attempt)
            return
        self.store.release_measurement(row_id, device, attempt)
        row.state, row.holder = WorkState.CANCELLED if row.is_cancelled else WorkState.PENDING, None
        row.released += 1

    @rule(claim=claims)
    def heartbeat(self, claim: tuple[str, str, int] | None) -> None:
        if claim is None:
            return
        row_id, device, attempt = claim
        row = self.rows[row_id]
        is_held = (row.state, row.holder, row.attempt) == (WorkState.LEASED, device, attempt)
        action = self.store.heartbeat_measurement(row_id, device, attempt, lease_s=LEASE_S)
        is_wanted = is_held and not row.is_cancelled
        assert action is (HeartbeatAction.CONTINUE if is_wanted else HeartbeatAction.CANCEL)

    @rule()
    def everybody_falls_silent_for_long(self) -> None:
        with self.engine.begin() as connection:
            past = "UPDATE measurement SET lease_until = now() - interval '1 hour' WHERE state = 'leased'"
            connection.execute(text(past))
        self.store.reap()
        for row in self.rows.values():
            if row.state is WorkState.LEASED:
                row.holder = None
                if row.is_cancelled:
                    row.state = WorkState.CANCELLED
                else:
                    row.state = WorkState.FAILED if row.used >= MAX_ATTEMPTS else WorkState.PENDING

    @rule()
    def reap(self) -> None:
        self.store.reap()

    @rule(number=DEVICES)
    def remove_device(self, number: int) -> None:
        self.store.set_device_state(self.devices[number], DeviceState.REMOVED)
        for row in self.rows.values():
            if row.holder == self.devices[number]:
                row.state, row.holder = WorkState.CANCELLED if row.is_cancelled else WorkState.PENDING, None
                row.released += 1
        self.devices[number] = self.seeds.device().id

    @rule(is_sure=st.integers(0, 4))
    def cancel(self, is_sure: int) -> None:
        if self.is_over or is_sure:
            return
        self.is_over = True
        self.store.apply_verb(self.job.id, JobVerb.CANCEL)
        for row in self.rows.values():
            row.is_cancelled = row.state in {WorkState.PENDING, WorkState.LEASED}
            if row.state is WorkState.PENDING:
                row.state = WorkState.CANCELLED

    @rule()
    def queue_another(self) -> None:
        if not self.is_over and len(self.rows) < 8:
            self.add()

    @invariant()
    def the_tables_are_as_the_model_says(self) -> None:
        if not hasattr(self, "rows"):
            return
        stored = {item.id: item for item in self.store.snapshot(self.job.id).measurements}
        for row in self.rows.values():
            item = stored[row.id]
            assert (item.state, item.attempt) == (row.state, row.attempt)
            assert row.used <= MAX_ATTEMPTS
            if row.state is WorkState.LEASED:
                assert item.device_id == row.holder
            if row.id in self.finished:
                assert item.state is self.finished[row.id]
            elif item.state.is_terminal:
                self.finished[row.id] = item.state
        holders = [item.device_id for item in stored.values() if item.state is WorkState.LEASED]
        assert len(holders) == len(set(holders))


@pytest.fixture
def machine(engine: Engine) -> Iterator[type[LeasedWork]]:
    LeasedWork.engine = engine
    yield LeasedWork


def test_leased_work_is_as_the_model_says(machine: type[LeasedWork]) -> None:
    play(machine, games=10, steps=20)
