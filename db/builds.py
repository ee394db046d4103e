"""Builds as work: claimed by build workers, held by heartbeats, ended by an outcome; every write fenced by the attempt."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue
from sqlalchemy import and_, or_, select, update

from db import leases
from db.files import record_files
from db.mapping import BUILD_COLUMNS, BUILD_OUTCOME, as_json, build_of
from db.models import build
from db.transactions import Transactions
from domain.build import Build, BuildOutcome, BuildResult
from domain.messages import HeartbeatAction
from domain.work import WorkState


class BuildTables(Transactions):
    """The builders' side of the store."""

    def claim_build(self, owner: str, *, lease_s: float) -> Build | None:
        """Lease the build that waits longest; None if none does. An owner that asks again gets what it held back first."""
        own = and_(build.c.state == WorkState.LEASED, build.c.owner == owner, build.c.cancel_requested.is_(False))
        oldest = (
            select(build.c.id)
            .where(or_(leases.is_claimable(build), and_(own, ~leases.has_used_up(build))))
            .order_by(own.desc(), build.c.priority.desc(), build.c.created_at, build.c.id)
            .limit(1)
            .with_for_update(key_share=True, skip_locked=True)
            .scalar_subquery()
        )
        claim = (
            update(build)
            .where(build.c.id == oldest)
            .values(**leases.new_lease(build, lease_s), owner=owner, progress={})
            .returning(*BUILD_COLUMNS)
        )
        with self._transaction() as connection:
            row = connection.execute(claim).one_or_none()
            return build_of(row) if row is not None else None

    def heartbeat_build(
        self, build_id: str, attempt: int, *, lease_s: float, progress: Mapping[str, JsonValue] | None = None
    ) -> HeartbeatAction:
        """Extend a build's lease; CANCEL where the build is not wanted any more. Raises StaleAttempt."""
        values = {"lease_until": leases.in_seconds(lease_s)}
        if progress:
            values["progress"] = as_json(progress)
        held = leases.is_held(build, build_id, attempt)
        with self._transaction() as connection:
            beat = update(build).where(held).values(values).returning(build.c.cancel_requested)
            is_cancelled = connection.execute(beat).scalar_one_or_none()
            if is_cancelled is None:
                state = connection.execute(select(build.c.state).where(build.c.id == build_id)).scalar_one_or_none()
                if state != WorkState.CANCELLED:
                    raise leases.stale("build", build_id, attempt)
                is_cancelled = True
        return HeartbeatAction.CANCEL if is_cancelled else HeartbeatAction.CONTINUE

    def finish_build(self, build_id: str, attempt: int, outcome: BuildOutcome) -> None:
        """Write a build's outcome; a failure that is not the candidate's goes back to PENDING while attempts are left.

        The same outcome of the same attempt twice is accepted once; of a cancelled build it is taken and dropped.

        Raises:
            StaleAttempt: The lease went to somebody else.
            NotFound: No such build.
            Invalid: ``bad_outcome``.
        """
        outcome, sha256 = leases.check_outcome(BUILD_OUTCOME, outcome)
        with self._transaction() as connection:
            row = leases.lock_work(connection, build, build_id)
            if leases.is_written(row, attempt, sha256):
                return
            if row.attempt != attempt or row.state != WorkState.LEASED:
                raise leases.stale("build", build_id, attempt)
            if isinstance(outcome, BuildResult):
                record_files(connection, outcome.files)
            leases.settle(connection, build, row, outcome, sha256)

    def release_build(self, build_id: str, attempt: int) -> None:
        """Hand a build back untouched; the attempt does not count. Raises StaleAttempt."""
        with self._transaction() as connection:
            if not leases.hand_back(connection, build, leases.is_held(build, build_id, attempt), counts=False):
                raise leases.stale("build", build_id, attempt)
