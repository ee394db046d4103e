"""What must hold after everything that was done, read from the tables and from every change of them.

The numbers are those of the team's list: I1 every job ends; I2 one accepted measurement each; I3 no two leases on a device; I4 no
stale write; I5 what was asked was told; I6 one key, one job; I7 a file is what its digest says; I8 no event is missed; I9 a cancel
ends the work in time. (I10, recovery, is ``recovery.py``.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from db.artifacts import FileArtifactStore
from domain.errors import PruneloopError
from domain.work import HEARTBEAT_S, LEASE_S
from tests.chaos.audit import Change

TERMINAL = {"SUCCEEDED", "STOPPED", "CANCELLED", "FAILED"}
OVER = {"done", "failed", "cancelled"}
CANCEL_GRACE_S = (
    LEASE_S + HEARTBEAT_S + 15.0
)  # a stopped holder is found by its lease, then freed by a reaper that may be down

BROKEN = {
    "I1": "SELECT id || ' is ' || state FROM job WHERE state NOT IN ('SUCCEEDED', 'STOPPED', 'CANCELLED', 'FAILED')",
    "I2": """
        SELECT e.data ->> 'measurement_id' || ' was finished ' || count(*) || ' times' FROM event e
        WHERE e.type = 'measurement.finished' GROUP BY e.data ->> 'measurement_id' HAVING count(*) > 1
        UNION ALL
        SELECT t.id || ' has a measurement that is ' || m.state FROM trial t JOIN measurement m ON m.id = t.measurement_id
        WHERE t.state = 'succeeded' AND m.state <> 'done'
        UNION ALL
        SELECT 'target ' || target || ' of ' || job_id || ' has two trials ' || study_number FROM trial
        GROUP BY job_id, target, study_number HAVING count(*) > 1
        UNION ALL
        SELECT s.measurement_id || ' holds samples but is ' || m.state FROM measurement_sample s
        JOIN measurement m ON m.id = s.measurement_id WHERE m.state <> 'done'
    """,
    "I4": """
        SELECT m.id || ': attempt ' || m.written_attempt || ' counts, ' || m.attempt || ' was the last' FROM measurement m
        WHERE m.state = 'done' AND m.written_attempt <> m.attempt
    """,
    "I5": """
        SELECT t.id || ' is ' || t.state || ' in a job that is over' FROM trial t JOIN job j ON j.id = t.job_id
        WHERE t.state IN ('building', 'measuring') AND j.finished_at IS NOT NULL
        UNION ALL
        SELECT j.id || ' asked ' || j.trials_asked || ' and has ' || count(t.id) FROM job j
        LEFT JOIN trial t ON t.job_id = j.id GROUP BY j.id HAVING j.trials_asked <> count(t.id)
        UNION ALL
        SELECT 'build ' || id || ' is ' || state FROM build WHERE state IN ('pending', 'leased')
        UNION ALL
        SELECT 'measurement ' || id || ' is ' || state FROM measurement WHERE state IN ('pending', 'leased')
    """,
    "I8": """
        SELECT j.id || ': ' || count(e.id) || ' events, the last ' || max(e.id) || ', counted ' || j.event_seq
        FROM job j LEFT JOIN event e ON e.job_id = j.id GROUP BY j.id
        HAVING count(e.id) <> j.event_seq OR max(e.id) <> j.event_seq
    """,
}


@dataclass
class Verdict:
    """What was found broken, by invariant, and what was counted on the way."""

    broken: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def note(self, invariant: str, found: Sequence[str]) -> None:
        if found:
            self.broken.setdefault(invariant, []).extend(found)


def check(
    engine: Engine,
    changes: Sequence[Change],
    artifacts: Path,
    *,
    submitted: Sequence[str],
    mismatched: Sequence[str],
    seen: Mapping[str, Sequence[int]],
) -> Verdict:
    """Look at everything.

    Args:
        engine: The tables.
        changes: The audit.
        artifacts: The store's folder.
        submitted: Ids that users were given.
        mismatched: Idempotency keys that gave two jobs.
        seen: Job -> event ids, as a stream that was resumed after every break gave them.
    """
    verdict = Verdict()
    with engine.connect() as connection:
        for invariant, query in BROKEN.items():
            verdict.note(invariant, [str(found) for found in connection.execute(text(query)).scalars()])
        jobs = {row.id: row for row in connection.execute(text("SELECT id, state, reason, event_seq FROM job"))}
        digests = list(connection.execute(text("SELECT digest FROM artifact")).scalars())
        verdict.counts = {
            "jobs": len(jobs),
            **{state: sum(row.state == state for row in jobs.values()) for state in sorted(TERMINAL)},
            **{
                name: connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
                for name, table in (("trials", "trial"), ("builds", "build"), ("measurements", "measurement"))
            },
            "attempts": connection.execute(text("SELECT coalesce(sum(attempt), 0) FROM measurement")).scalar_one(),
            "fenced": connection.execute(text("SELECT count(*) FROM stale_outcome")).scalar_one(),
        }
    verdict.note("I1", [f"{job_id} was accepted and is gone" for job_id in submitted if job_id not in jobs])
    verdict.note("I6", [*mismatched, *(f"{job_id} was never asked for" for job_id in jobs if job_id not in submitted)])
    verdict.note("I7", bad_files(artifacts, digests))
    for job_id, ids in seen.items():
        if job_id in jobs and list(ids) != list(range(1, jobs[job_id].event_seq + 1)):
            verdict.note("I8", [f"{job_id}: the stream gave {len(ids)} of {jobs[job_id].event_seq} events: {ids[-5:]}"])
    replay(changes, verdict)
    verdict.counts["artifacts"] = len(digests)
    return verdict


def bad_files(folder: Path, digests: Sequence[str]) -> list[str]:
    store, found = FileArtifactStore(folder), []
    for digest in digests:
        try:
            store.read(digest)
        except PruneloopError as error:
            found.append(error.message)
    return found


def replay(changes: Sequence[Change], verdict: Verdict) -> None:
    """Go through every change in its order: states that end stay ended, and a lease is given and used by one holder only."""
    holders: dict[str, str] = {}  # device -> measurement
    claimed: dict[tuple[str, int], str] = {}  # (measurement, attempt) -> device
    ended: dict[tuple[str, str], str] = {}
    cancelled: dict[str, Any] = {}  # job -> when
    for change in changes:
        key, state = (change.table, change.row_id), change.new.get("state")
        if change.table in {"job", "trial", "build", "measurement"}:
            if key in ended and state != ended[key]:
                verdict.note("I2", [f"{change.row_id} was {ended[key]} and became {state}"])
            if state in TERMINAL | OVER | {"succeeded", "rejected", "infeasible", "duplicate"}:
                ended[key] = str(state)
        if change.table == "job" and change.became("CANCELLED"):
            cancelled[change.row_id] = change.at
        if change.table in {"build", "measurement"} and change.new["job_id"] in cancelled and change.old is not None:
            late_s = (change.at - cancelled[change.new["job_id"]]).total_seconds()
            if change.old["state"] == "leased" and state != "leased" and late_s > CANCEL_GRACE_S:
                verdict.note("I9", [f"{change.row_id} was held for {late_s:.1f} s after its job was cancelled"])
        if change.table == "measurement":
            _follow_lease(change, holders, claimed, verdict)


def _follow_lease(
    change: Change, holders: dict[str, str], claimed: dict[tuple[str, int], str], verdict: Verdict
) -> None:
    new, old = change.new, change.old or {"state": "pending", "attempt": 0, "device_id": None}
    if old["state"] == "leased" and holders.get(old["device_id"]) == change.row_id:
        del holders[old["device_id"]]
    if new["state"] == "leased":
        device = new["device_id"]
        if holders.get(device, change.row_id) != change.row_id:
            verdict.note("I3", [f"{device} held {holders[device]} and {change.row_id} at {change.at}"])
        holders[device] = change.row_id
        if change.is_claim:
            claimed[change.row_id, new["attempt"]] = device
    if change.became("done"):
        by = claimed.get((change.row_id, new["attempt"]))
        if old["state"] != "leased" or new["written_attempt"] != old["attempt"] or by != new["device_id"]:
            verdict.note("I4", [f"{change.row_id}: written by {new['device_id']}, its last lease was {by}'s"])
