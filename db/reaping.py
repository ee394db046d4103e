"""The reaper's view: what has expired, and who has work waiting for them."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, Table, and_, exists, func, or_, select, update

from db.health import is_recheck_due
from db.leases import EXPIRY_GRACE_S, has_expired, has_used_up, in_seconds, is_claimable
from db.measurements import settle_silent, suits
from db.metrics import MetricTables
from db.models import build, device, job, measurement
from db.search import SEARCHED
from domain.device import DeviceState
from domain.ports import WorkToWake
from domain.work import WorkState

OPEN = (WorkState.PENDING, WorkState.LEASED)
ANYTHING_OPEN = select(
    or_(
        exists().where(job.c.state.in_(SEARCHED)),
        exists().where(build.c.state.in_(OPEN)),
        exists().where(measurement.c.state.in_(OPEN)),
        exists().where(is_recheck_due()),
    )
)

BATCH = 200  # rows put right in one transaction; the next pass takes the rest


class ReaperTables(MetricTables):
    """Putting right, and telling whom to wake. Any number of reapers may run: each row is settled under its lock."""

    def free_leases(self, owners: Sequence[str]) -> int:
        """Let the leases of search and build workers known to be dead run out now; return how many."""
        dead_search = job.c.search_owner.in_(owners), job.c.search_until > func.now()
        dead_build = build.c.owner.in_(owners), build.c.state == WorkState.LEASED, build.c.lease_until > func.now()
        with self._transaction() as connection:
            searches = connection.execute(update(job).where(*dead_search).values(search_until=func.now())).rowcount
            return (
                searches + connection.execute(update(build).where(*dead_build).values(lease_until=func.now())).rowcount
            )

    def reap(self) -> WorkToWake:
        """Poison what has used up its attempts, free what fell silent long ago, and say who should be woken.

        A transaction a table, and one to look: each locks jobs in one order, so that two reapers never wait for each other.
        Where nothing is open one small question is all, so that an idle service costs next to nothing.
        """
        with self._transaction() as connection:
            if not connection.execute(ANYTHING_OPEN).scalar_one():
                return WorkToWake()
        settled: list[WorkState] = []
        for table in (build, measurement):
            with self._transaction() as connection:
                settled += _settle_expired(connection, table)
        self.fold_tallies()
        with self._transaction(is_snapshot=True) as connection:
            return WorkToWake(
                search=_count_searches(connection),
                builds=connection.execute(select(func.count()).where(is_claimable(build))).scalar_one(),
                device_ids=_wanted_devices(connection),
                recheck_ids=tuple(
                    connection.execute(select(device.c.id).where(is_recheck_due()).order_by(device.c.id)).scalars()
                ),
                expired=settled.count(WorkState.PENDING),
                poisoned=settled.count(WorkState.FAILED),
            )


def _settle_expired(connection: Connection, table: Table) -> list[WorkState]:
    """Settle rows whose lease has run out; those with attempts left can be claimed anyway and are freed after a grace."""
    is_over = or_(table.c.cancel_requested, has_used_up(table), table.c.lease_until < in_seconds(-EXPIRY_GRACE_S))
    is_due = and_(has_expired(table), is_over)
    rows = connection.execute(select(table).where(is_due).order_by(table.c.job_id, table.c.id).limit(BATCH)).all()
    settled = [settle_silent(connection, table, row, is_due) for row in rows]
    return [state for state in settled if state is not None]


def _count_searches(connection: Connection) -> int:
    is_free = or_(job.c.search_until.is_(None), job.c.search_until < func.now())
    is_due = or_(job.c.not_before.is_(None), job.c.not_before <= func.now())
    return connection.execute(select(func.count()).where(job.c.state.in_(SEARCHED), is_free, is_due)).scalar_one()


def _wanted_devices(connection: Connection) -> tuple[str, ...]:
    """Devices with work they may take and none in hand, online or not."""
    is_busy = exists().where(
        measurement.c.device_id == device.c.id,
        measurement.c.state == WorkState.LEASED,
        measurement.c.lease_until >= func.now(),
    )
    has_work = exists().where(and_(is_claimable(measurement), suits(device)))
    query = select(device.c.id).where(device.c.state == DeviceState.ACTIVE, ~is_busy, has_work).order_by(device.c.id)
    return tuple(connection.execute(query).scalars())
