"""The product in numbers. Gauges are counted where an index holds what is open; counters are added up from notes, never recounted.

Triggers (migration 0011) leave a note when something ends: an insert, so that no two transactions wait for one counter. The
reaper adds notes up. What was ever counted is what was added up plus the notes that are left, read in one statement.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Table, case, delete, func, or_, select, text, union_all
from sqlalchemy.dialects.postgresql import insert as upsert

from db import leases
from db.mapping import AnyRow
from db.measurements import is_online, suits
from db.models import build, device, job, measurement, tally, tally_sum, trial
from db.search import SEARCHED
from db.transactions import Transactions
from domain.device import DeviceState
from domain.job import TERMINAL_STATES, JobState
from domain.metrics import DURATION_BOUNDS_S, DeviceNumbers, Durations, ProductNumbers, Queue
from domain.trial import TrialState
from domain.work import WorkState

FOLD_LOCK = 7_106_451_024  # the advisory lock of whoever adds notes up
FOLD_AT_ONCE = 5_000
MOST_DEVICES = 2_000  # series a reading gives; a fleet past that is watched by its sums
TALLY = ("what", "label", "class", "number", "seconds")


class MetricTables(Transactions):
    """Reading the numbers, and keeping the notes few."""

    def numbers(self) -> ProductNumbers:
        """Return the product in numbers, all from one moment."""
        with self._transaction(is_snapshot=True) as connection:
            return _read(connection)

    def fold_tallies(self) -> int:
        """Add notes up and return how many; 0 where another process is at it. At most some thousands a call."""
        with self._transaction() as connection:
            if not connection.execute(select(func.pg_try_advisory_xact_lock(FOLD_LOCK))).scalar_one():
                return 0
            oldest = select(tally.c.id).order_by(tally.c.id).limit(FOLD_AT_ONCE)
            gone = delete(tally).where(tally.c.id.in_(oldest)).returning(*(tally.c[name] for name in TALLY)).cte("gone")
            keys = [gone.c[name] for name in TALLY[:3]]
            summed = select(*keys, func.sum(gone.c.number), func.sum(gone.c.seconds)).group_by(*keys)
            add = upsert(tally_sum).from_select(TALLY, summed)
            kept = {name: tally_sum.c[name] + add.excluded[name] for name in ("number", "seconds")}
            before = connection.execute(select(func.count()).select_from(oldest.subquery())).scalar_one()
            if before:
                connection.execute(add.on_conflict_do_update(index_elements=TALLY[:3], set_=kept))
            return int(before)


def _read(connection: Connection) -> ProductNumbers:
    counted: dict[tuple[str, str], int] = defaultdict(int)
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    classes: dict[str, list[int]] = {what: [0] * (len(DURATION_BOUNDS_S) + 1) for what in ("build", "measurement")}
    for row in connection.execute(_totals()):
        counted[row.what, row.label] += int(row.number)
        seconds[row.what, row.label] += float(row.seconds)
        if row.label == WorkState.DONE and row.what in classes:
            classes[row.what][row._mapping["class"]] += int(row.number)
    ended = ("job", "trial", "build", "measurement", "health")
    return ProductNumbers(
        jobs={(row.state, row.stage): row.number for row in connection.execute(_live_jobs())},
        open_trials={row.state: row.number for row in connection.execute(_open_trials())},
        queues={
            "search": _queue(connection.execute(_waiting_searches()).one()),
            "build": _queue(connection.execute(_waiting(build)).one()),
            "measurement": _queue(connection.execute(_waiting(measurement)).one()),
        },
        devices=tuple(
            _device(row, counted["device", row.id], seconds["device", row.id])
            for row in connection.execute(_devices()).all()
        ),
        ended={key: n for key, n in counted.items() if key[0] in ended and key != ("trial", "asked")},
        asked=counted["trial", "asked"],
        expired=_labels(counted.items(), "expired"),
        fenced=_labels(counted.items(), "fenced"),
        durations={what: Durations(tuple(found), seconds[what, "done"]) for what, found in classes.items()},
    )


def _totals() -> Any:
    both = union_all(*(select(*(table.c[name] for name in TALLY)) for table in (tally_sum, tally))).subquery()
    keys = [both.c[name] for name in TALLY[:3]]
    return select(*keys, func.sum(both.c.number).label("number"), func.sum(both.c.seconds).label("seconds")).group_by(
        *keys
    )


def _live_jobs() -> Any:
    live = [state for state in JobState if state not in TERMINAL_STATES]
    query = select(job.c.state, job.c.stage, func.count().label("number")).where(job.c.state.in_(live))
    return query.group_by(job.c.state, job.c.stage)


def _open_trials() -> Any:
    # Written out: with parameters the partial index would not be seen to serve.
    is_open = text(f"state IN ('{TrialState.BUILDING}', '{TrialState.MEASURING}')")
    return select(trial.c.state, func.count().label("number")).where(is_open).group_by(trial.c.state)


def _age_s(moment: Any) -> Any:
    return func.extract("epoch", func.now() - func.min(moment))


def _waiting(table: Table) -> Any:
    query = select(func.count().label("depth"), _age_s(table.c.created_at).label("oldest_s"))
    return query.where(leases.is_claimable(table), text(f"{table.name}.state IN ('pending', 'leased')"))


def _waiting_searches() -> Any:
    is_free = or_(job.c.search_until.is_(None), job.c.search_until < func.now())
    is_due = or_(job.c.not_before.is_(None), job.c.not_before <= func.now())
    query = select(func.count().label("depth"), _age_s(job.c.waiting_since).label("oldest_s"))
    return query.where(job.c.state.in_(SEARCHED), is_free, is_due)


def _devices() -> Any:
    # Two numbers of one look: as an array, since a subquery gives one value.
    waiting = (
        select(func.json_build_array(func.count(), _age_s(measurement.c.created_at)))
        .select_from(measurement)
        .where(leases.is_claimable(measurement), suits(device))
        .correlate(device)
        .scalar_subquery()
    )
    columns = [device.c[name] for name in ("id", "name", "state", "lost_runtimes", "clock_offset_ms")]
    silent_s = func.extract("epoch", func.now() - device.c.last_seen_at)
    query = select(
        *columns,
        case((device.c.state == DeviceState.REMOVED, False), else_=is_online(device)).label("is_online"),
        silent_s.label("silent_s"),
        case((device.c.state == DeviceState.ACTIVE, waiting)).label("waiting"),
    )
    query = query.where(device.c.state != DeviceState.REMOVED)
    return query.order_by(device.c.created_at, device.c.id).limit(MOST_DEVICES)


def _queue(row: AnyRow) -> Queue:
    return Queue(depth=row.depth, oldest_s=max(0.0, float(row.oldest_s or 0.0)))


def _device(row: AnyRow, measured: int, measured_s: float) -> DeviceNumbers:
    depth, oldest_s = row.waiting or (0, None)
    return DeviceNumbers(
        id=row.id,
        name=row.name,
        state=DeviceState(row.state),
        is_online=row.is_online,
        queue=Queue(depth=int(depth), oldest_s=max(0.0, float(oldest_s or 0.0))),
        lost_runtimes=len(row.lost_runtimes),
        clock_offset_ms=row.clock_offset_ms,
        silent_s=None if row.silent_s is None else max(0.0, float(row.silent_s)),
        measured=measured,
        measured_s=measured_s,
    )


def _labels(counted: Iterable[tuple[tuple[str, str], int]], what: str) -> dict[str, int]:
    return {label: number for (one, label), number in counted if one == what}
