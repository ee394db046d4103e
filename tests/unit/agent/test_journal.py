"""Undelivered outcomes survive crashes and are delivered once the server is back."""

from __future__ import annotations

from pathlib import Path

import pytest

from domain.errors import StaleAttempt, Unavailable
from domain.messages import OutcomeMessage
from domain.outcome import Blame, Failed
from workers.agent.journal import Journal


def message(attempt: int = 1) -> OutcomeMessage:
    return OutcomeMessage(attempt=attempt, outcome=Failed(stage="load", reason="no", blame=Blame.CANDIDATE))


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "state" / "journal.jsonl")


class Server:
    def __init__(self, *, accepts: int = 1000, refuses: frozenset[str] = frozenset()) -> None:
        self.accepts = accepts
        self.refuses = refuses
        self.got: list[tuple[str, int]] = []

    def send(self, measurement_id: str, message: OutcomeMessage) -> None:
        if measurement_id in self.refuses:
            raise StaleAttempt("somebody else did it")
        if len(self.got) >= self.accepts:
            raise Unavailable("away")
        self.got.append((measurement_id, message.attempt))


def test_an_empty_journal_sends_nothing(journal: Journal) -> None:
    server = Server()
    assert journal.replay(server.send) == 0
    assert server.got == []


def test_what_was_kept_is_delivered_in_order_and_once(journal: Journal, tmp_path: Path) -> None:
    for number in range(3):
        journal.append(f"m{number}", message())
    server = Server()
    assert journal.replay(server.send) == 0
    assert server.got == [("m0", 1), ("m1", 1), ("m2", 1)]
    assert journal.replay(server.send) == 0
    assert len(server.got) == 3
    assert list((tmp_path / "state").iterdir()) == []


def test_a_server_that_goes_away_again_gets_the_rest_later(journal: Journal) -> None:
    for number in range(3):
        journal.append(f"m{number}", message())
    assert journal.replay(Server(accepts=1).send) == 2
    server = Server()
    assert journal.replay(server.send) == 0
    assert server.got == [("m1", 1), ("m2", 1)]


def test_what_the_server_does_not_want_is_dropped_and_holds_nothing_up(journal: Journal) -> None:
    for number in range(3):
        journal.append(f"m{number}", message())
    server = Server(refuses=frozenset({"m1"}))
    assert journal.replay(server.send) == 0
    assert server.got == [("m0", 1), ("m2", 1)]


def test_the_same_attempt_kept_twice_is_one(journal: Journal) -> None:
    journal.append("m", message(1))
    journal.append("m", message(1))
    journal.append("m", message(2))
    assert [entry.message.attempt for entry in journal.entries()] == [1, 2]


def test_a_line_torn_by_a_crash_costs_only_itself(journal: Journal, tmp_path: Path) -> None:
    journal.append("m0", message())
    path = tmp_path / "state" / "journal.jsonl"
    with path.open("ab") as file:
        file.write(path.read_bytes()[:40])
    journal.append("m1", message())
    assert [entry.measurement_id for entry in journal.entries()] == ["m0", "m1"]
