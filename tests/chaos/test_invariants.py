"""The checks themselves: each of them sees what it is there to see."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from db.artifacts import FileArtifactStore
from db.store import SqlJobStore
from domain.artifact import ArtifactKind
from domain.job import JobVerb
from tests.chaos import audit
from tests.chaos.audit import Change
from tests.chaos.faults import Fault
from tests.chaos.invariants import Verdict, check, replay
from tests.chaos.recovery import alone_times, percentile, times_of
from tests.integration.db.conftest import engine, migrated_url, new_database, seeds, session_engine, store  # noqa: F401
from tests.integration.db.samples import LEASE_S, Seeds, measured

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def change(at_s: float, row: str, old: dict[str, Any] | None, table: str = "measurement", **new: Any) -> Change:
    new = {"job_id": "job", "attempt": 1, "device_id": None, "written_attempt": None, **(old or {}), **new}
    return Change(int(at_s * 10), BEGIN + timedelta(seconds=at_s), "pruneloop api", table, row, old, new)


def leased(at_s: float, row: str, device: str, attempt: int = 1) -> Change:
    before = {"job_id": "job", "state": "pending", "attempt": attempt - 1, "device_id": None, "written_attempt": None}
    return change(at_s, row, before, state="leased", attempt=attempt, device_id=device)


def broken(*changes: Change) -> dict[str, list[str]]:
    verdict = Verdict()
    replay(changes, verdict)
    return verdict.broken


def test_two_leases_on_one_device_are_seen() -> None:
    assert set(broken(leased(0, "m1", "box"), leased(1, "m2", "box"))) == {"I3"}
    given_back = change(1, "m1", leased(0, "m1", "box").new, state="pending")
    assert broken(leased(0, "m1", "box"), given_back, leased(2, "m2", "box")) == {}


def test_an_outcome_of_a_lost_lease_is_seen() -> None:
    first, second = leased(0, "m1", "slow"), leased(9, "m1", "quick", attempt=2)
    stale = change(10, "m1", second.new, state="done", written_attempt=1, device_id="slow")
    assert set(broken(first, second, stale)) == {"I4"}
    right = change(10, "m1", second.new, state="done", written_attempt=2)
    assert broken(first, second, right) == {}


def test_an_end_that_does_not_last_is_seen() -> None:
    done = change(1, "m1", leased(0, "m1", "box").new, state="done", written_attempt=1)
    again = change(2, "m1", done.new, state="pending")
    assert set(broken(leased(0, "m1", "box"), done, again)) == {"I2"}


def test_work_that_outlives_its_cancelled_job_is_seen() -> None:
    cancelled = change(1, "job", {"state": "RUNNING"}, table="job", state="CANCELLED")
    held = leased(0, "m1", "box")
    late = change(60, "m1", held.new, state="cancelled")
    assert set(broken(held, cancelled, late)) == {"I9"}


@pytest.fixture
def audited(engine: Engine) -> Iterator[Engine]:  # noqa: F811
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS chaos_audit"))
    audit.install(engine)
    yield engine
    with engine.begin() as connection:
        for table in audit.WATCHED:
            connection.execute(text(f"DROP TRIGGER chaos_note ON {table}"))
        connection.execute(text("DROP FUNCTION chaos_note"))
        connection.execute(text("DROP TABLE chaos_audit"))


def test_the_tables_are_looked_through(
    audited: Engine,
    store: SqlJobStore,  # noqa: F811
    seeds: Seeds,  # noqa: F811
    tmp_path: Path,
) -> None:
    job, lease = seeds.job()
    box = seeds.device()
    row = seeds.measurement(lease)
    claim = store.claim_measurement(box.id, lease_s=LEASE_S)
    assert claim is not None
    ref = FileArtifactStore(tmp_path).put_bytes(b"a model", ArtifactKind.ONNX)
    store.record_artifact(ref)

    def look(submitted: list[str], events: list[int]) -> set[str]:
        return set(
            check(
                audited, audit.read(audited), tmp_path, submitted=submitted, mismatched=[], seen={job.id: events}
            ).broken
        )

    assert look([job.id], []) == {"I1", "I5", "I8"}, "it still runs"
    store.finish_measurement(row.id, box.id, claim.attempt, measured())
    store.apply_verb(job.id, JobVerb.CANCEL)
    count = len(store.events(job.id))
    assert look([job.id], list(range(1, count + 1))) == set()
    assert look([job.id, "job_gone"], [1, *range(1, count + 1)]) == {"I1", "I8"}
    assert look([], list(range(2, count + 1))) == {"I6", "I8"}
    FileArtifactStore(tmp_path).local_path(ref.digest).write_bytes(b"spoilt")
    with audited.begin() as connection:
        connection.execute(text("DELETE FROM event WHERE id = 2"))
        connection.execute(text("UPDATE measurement SET written_attempt = 0"))
        connection.execute(text("UPDATE job SET trials_asked = 7"))
    assert look([job.id], list(range(1, count + 1))) >= {"I4", "I5", "I7", "I8"}


def test_recovery_is_read_from_what_the_victim_held() -> None:
    fault = Fault("kill", "agent", at=BEGIN, held=[("measurement", "m1", 1)])
    changes = [
        change(0.5, "m2", None, state="pending"),
        change(1, "m1", leased(-1, "m1", "box").new, state="leased"),  # a heartbeat that was under way
        leased(2.5, "m1", "other", attempt=2),
        leased(9, "m1", "third", attempt=3),
    ]
    assert times_of(fault, changes, []) == [2.5]
    assert times_of(Fault("kill", "reaper", at=BEGIN), changes, [BEGIN, BEGIN + timedelta(seconds=4)]) == [4.0]
    assert times_of(Fault("kill", "api", at=BEGIN + timedelta(seconds=1)), changes, []) == [1.5]
    assert percentile([1.0, 2.0, 3.0, 10.0], 0.5) == 2.0
    assert percentile([float(n) for n in range(1, 21)], 0.95) == 19.0


def test_a_time_is_alone_where_no_other_fault_fell_into_it_or_still_lasted() -> None:
    def fault(second: float, *times_s: float, lasts_s: float = 0.0) -> dict[str, Any]:
        at = (BEGIN + timedelta(seconds=second)).isoformat()
        return {"action": "kill", "component": "agent", "at": at, "lasts_s": lasts_s, "times_s": list(times_s)}

    faults = [fault(0, 1.0, 3.0), fault(2, 5.0), fault(10, lasts_s=8.0), fault(15, 1.0), fault(30, 4.0)]
    assert [times for _, _, times in alone_times(faults)] == [[1.0], [5.0], [], [], [4.0]]
