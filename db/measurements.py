"""Measurements as work: which device may claim what, and the outcomes it sends. A device holds one at a time."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Table,
    Text,
    and_,
    any_,
    cast,
    exists,
    func,
    insert,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from db import leases
from db.audit import note
from db.mapping import MEASUREMENT_COLUMNS, MEASUREMENT_OUTCOME, AnyRow, measurement_of, split_samples
from db.models import device, measurement, measurement_sample, stale_outcome, trial
from db.transactions import Transactions
from domain.access import Principal
from domain.device import DeviceState
from domain.errors import Invalid, NotFound
from domain.measurement import Measurement, MeasurementOutcome, MeasurementRequest, Samples
from domain.messages import Claim, HeartbeatAction
from domain.outcome import Blame, Failed
from domain.work import MAX_ATTEMPTS, WorkState

ONLINE_S = 30.0  # a device not heard of for this long is offline


def is_online(device_row: FromClause) -> ColumnElement[bool]:
    return func.coalesce(device_row.c.last_seen_at > leases.in_seconds(-ONLINE_S), False)


def suits(device_row: FromClause) -> ColumnElement[bool]:
    """Whether a device matches a measurement, and is not to be avoided while a peer could do it."""
    peer = device.alias("peer")
    has_peer = exists().where(
        peer.c.id != device_row.c.id,
        peer.c.state == DeviceState.ACTIVE,
        is_online(peer),
        _matches(peer),
        peer.c.id != func.all(measurement.c.avoid),
    )
    return and_(_matches(device_row), or_(device_row.c.id != func.all(measurement.c.avoid), ~has_peer))


def _matches(device_row: FromClause) -> ColumnElement[bool]:
    """Whether a device has the labels or the id, and the runtime in working order, for the precision asked."""
    wanted = func.jsonb_build_object(
        "name", measurement.c.runtime,
        "available", true(),
        "precisions", func.jsonb_build_array(func.coalesce(measurement.c.request.op("->>")("precision"), "fp32")),
    )  # fmt: skip
    return and_(
        or_(measurement.c.selector_id.is_(None), measurement.c.selector_id == device_row.c.id),
        device_row.c.labels.contains(measurement.c.selector_labels),
        measurement.c.runtime == any_(device_row.c.runtimes),
        ~device_row.c.lost_runtimes.has_key(measurement.c.runtime),
        device_row.c.inventory.contains(func.jsonb_build_object("runtimes", func.jsonb_build_array(wanted))),
    )


class MeasurementTables(Transactions):
    """The devices' side of the store."""

    def measurement(self, measurement_id: str) -> Measurement:
        """Return a measurement with its raw samples. Raises NotFound."""
        with self._transaction(is_snapshot=True) as connection:
            query = select(*MEASUREMENT_COLUMNS).where(measurement.c.id == measurement_id)
            row = connection.execute(query).one_or_none()
            if row is None:
                raise _no_measurement(measurement_id)
            samples = connection.execute(
                select(measurement_sample).where(measurement_sample.c.measurement_id == measurement_id)
            )
            return measurement_of(row, samples.all())

    def claim_measurement(self, device_id: str, *, lease_s: float) -> Claim | None:
        """Lease the oldest waiting measurement an ACTIVE device may do; its own unfinished one first, as a new attempt.

        Raises:
            NotFound: No such device.
        """
        with self._transaction() as connection:
            # The device's own row is locked, so that two claims in its name never end in two leases.
            query = select(device.c.id, device.c.state).where(device.c.id == device_id).with_for_update(key_share=True)
            claimant = connection.execute(query).one_or_none()
            if claimant is None:
                raise NotFound(f"There is no device {device_id}.", metadata={"id": device_id})
            row = self._claim_own(connection, device_id, lease_s)
            if row is None and claimant.state == DeviceState.ACTIVE:
                row = self._claim_oldest(connection, device_id, lease_s)
            if row is None:
                return None
            return Claim(
                measurement_id=row.id,
                attempt=row.attempt,
                lease_s=lease_s,
                request=MeasurementRequest.model_validate(row.request),
                job_id=row.job_id,
                trial=_trial_number(connection, row),
            )

    def _claim_own(self, connection: Connection, device_id: str, lease_s: float) -> AnyRow | None:
        """Lease what the device had when it fell silent anew, or end or free it where it may not go on."""
        has_it = and_(measurement.c.device_id == device_id, measurement.c.state == WorkState.LEASED)
        held = connection.execute(select(measurement).where(has_it)).one_or_none()
        if held is None:
            return None
        # The job's lock comes before the row's, also here: an UPDATE that finds its row changed keeps a lock on it all the same.
        row = leases.lock_work(connection, measurement, held.id)
        same = leases.is_held(measurement, held.id, held.attempt, device_id=device_id)
        may_go_on = exists().where(device.c.id == device_id, device.c.state == DeviceState.ACTIVE, _matches(device))
        again = and_(same, measurement.c.cancel_requested.is_(False), ~leases.has_used_up(measurement), may_go_on)
        claimed = self._lease(connection, again, device_id, lease_s)
        if claimed is None:
            settle_silent(connection, measurement, row)
        return claimed

    def _claim_oldest(self, connection: Connection, device_id: str, lease_s: float) -> AnyRow | None:
        oldest = (
            select(measurement.c.id)
            .join_from(measurement, device, device.c.id == device_id)
            .where(leases.is_claimable(measurement), suits(device))
            .order_by(measurement.c.priority.desc(), measurement.c.created_at, measurement.c.id)
            .limit(1)
            .with_for_update(key_share=True, skip_locked=True, of=measurement)
            .scalar_subquery()
        )
        return self._lease(connection, measurement.c.id == oldest, device_id, lease_s)

    def _lease(
        self, connection: Connection, which: ColumnElement[bool], device_id: str, lease_s: float
    ) -> AnyRow | None:
        claim = (
            update(measurement)
            .where(which)
            .values(**leases.new_lease(measurement, lease_s), device_id=device_id)
            .returning(*(measurement.c[name] for name in ("id", "job_id", "attempt", "request")))
        )
        return connection.execute(claim).one_or_none()

    def heartbeat_measurement(
        self, measurement_id: str, device_id: str, attempt: int, *, lease_s: float
    ) -> HeartbeatAction:
        """Extend a lease. CANCEL where the work is not wanted any more or not this attempt's, DRAIN where the device shall leave.

        Raises:
            NotFound: No such measurement.
        """
        held = leases.is_held(measurement, measurement_id, attempt, device_id=device_id)
        beat = (
            update(measurement)
            .where(held)
            .values(lease_until=leases.in_seconds(lease_s))
            .returning(measurement.c.cancel_requested)
        )
        with self._transaction() as connection:
            is_cancelled = connection.execute(beat).scalar_one_or_none()
            if is_cancelled is None:
                if connection.execute(select(exists().where(measurement.c.id == measurement_id))).scalar_one():
                    return HeartbeatAction.CANCEL
                raise _no_measurement(measurement_id)
            state = connection.execute(select(device.c.state).where(device.c.id == device_id)).scalar_one()
        if is_cancelled:
            return HeartbeatAction.CANCEL
        return HeartbeatAction.DRAIN if state == DeviceState.DRAINING else HeartbeatAction.CONTINUE

    def finish_measurement(
        self, measurement_id: str, device_id: str, attempt: int, outcome: MeasurementOutcome
    ) -> None:
        """Write a measurement's outcome; a failure that is not the candidate's goes back to PENDING while attempts are left.

        The same outcome of the same attempt twice is accepted once; of a cancelled measurement it is taken and dropped. One
        of a lost lease is kept in a table apart. A device to blame is avoided while another could do the work.

        Raises:
            StaleAttempt: The lease went to somebody else.
            NotFound: No such measurement.
            Invalid: ``bad_outcome``.
        """
        outcome, sha256 = leases.check_outcome(MEASUREMENT_OUTCOME, outcome)
        bare, samples = split_samples(outcome)
        sample_rows = [_sample_row(measurement_id, position, taken) for position, taken in samples.items()]
        with self._transaction() as connection:
            row = leases.lock_work(connection, measurement, measurement_id)
            if leases.is_written(row, attempt, sha256):
                return
            is_stale = (row.attempt, row.device_id, row.state) != (attempt, device_id, WorkState.LEASED)
            if is_stale:
                late = {"device_id": device_id, "attempt": attempt, "sha256": sha256, "outcome": outcome}
                keep = upsert(stale_outcome).values(measurement_id=measurement_id, **late).on_conflict_do_nothing()
                connection.execute(keep)
            else:
                state = leases.settle(connection, measurement, row, bare, sha256, _blamed(row, outcome))
                if state is WorkState.DONE and sample_rows:
                    connection.execute(insert(measurement_sample), sample_rows)
                told = {"attempt": attempt, "status": outcome.status}
                note(connection, _device(connection, device_id), "measurement.outcome", measurement_id, told)
        if is_stale:
            raise leases.stale("measurement", measurement_id, attempt)

    def release_measurement(self, measurement_id: str, device_id: str, attempt: int) -> None:
        """Hand a measurement back untouched; the attempt does not count. Raises StaleAttempt."""
        held = leases.is_held(measurement, measurement_id, attempt, device_id=device_id)
        with self._transaction() as connection:
            if not leases.hand_back(connection, measurement, held, counts=False):
                raise leases.stale("measurement", measurement_id, attempt)
            note(
                connection, _device(connection, device_id), "measurement.release", measurement_id, {"attempt": attempt}
            )

    def may_fetch(self, device_id: str, digest: str) -> bool:
        """Whether a device holds a measurement that names the file: its request, as text, holds the digest."""
        named = cast(measurement.c.request, Text).contains(digest, autoescape=True)
        held = exists().where(measurement.c.device_id == device_id, measurement.c.state == WorkState.LEASED, named)
        with self._transaction() as connection:
            return bool(connection.execute(select(held)).scalar_one())


def _device(connection: Connection, device_id: str) -> Principal:
    name = connection.execute(select(device.c.name).where(device.c.id == device_id)).scalar_one()
    return Principal(name, frozenset(), device_id=device_id)


def settle_silent(
    connection: Connection, table: Table, row: AnyRow, is_due: ColumnElement[bool] | None = None
) -> WorkState | None:
    """End or free a leased row whose holder fell silent.

    Args:
        connection: In a transaction.
        table: ``build`` or ``measurement``.
        row: As read before it is locked here.
        is_due: Asked again under the lock: a heartbeat may have come since.

    Returns:
        Its new state; None where it moved on meanwhile.
    """
    locked = leases.lock_work(connection, table, row.id)
    same = leases.is_held(table, row.id, row.attempt)
    if not connection.execute(select(exists().where(same, is_due if is_due is not None else true()))).scalar_one():
        return None
    if not locked.cancel_requested and locked.attempt - locked.released < MAX_ATTEMPTS:
        leases.hand_back(connection, table, same, counts=True)
        return WorkState.PENDING
    failed = leases.used_up(locked, blame=Blame.DEVICE if table is measurement else Blame.SYSTEM)
    return leases.settle(connection, table, locked, failed, sha256="")


def _trial_number(connection: Connection, row: AnyRow) -> int | None:
    # By the job first: its trials are an index away, and a few hundred.
    query = select(trial.c.number).where(trial.c.job_id == row.job_id, trial.c.measurement_id == row.id)
    return connection.execute(query.order_by(trial.c.number).limit(1)).scalar_one_or_none()


def _blamed(row: AnyRow, outcome: MeasurementOutcome) -> Mapping[str, Any]:
    is_blamed = isinstance(outcome, Failed) and outcome.blame is Blame.DEVICE
    if not is_blamed or row.selector_id is not None or row.device_id in row.avoid:
        return {}
    return {"avoid": [*row.avoid, row.device_id]}


def _sample_row(measurement_id: str, position: int, samples: Samples) -> dict[str, Any]:
    try:
        data = base64.b64decode(samples.data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Invalid(
            f"The samples of candidate {position} are not base64; send them as the agent of this version does.",
            code="bad_outcome",
        ) from error
    return {"measurement_id": measurement_id, "position": position, "pairs": samples.pairs, "data": data}


def _no_measurement(measurement_id: str) -> NotFound:
    return NotFound(f"There is no measurement {measurement_id}.", metadata={"id": measurement_id})
