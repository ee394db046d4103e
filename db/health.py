"""Health checks of devices: kept, judged by their history, and what follows for the device and its measurements."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, and_, exists, func, insert, or_, select, update
from sqlalchemy.dialects.postgresql import distinct_on

from db import leases
from db.devices import read_device
from db.mapping import AnyRow, as_json, plain
from db.models import device, device_health, measurement
from db.pages import coerce_page_size, make_page, read_page_token
from db.transactions import Transactions
from domain.device import DeviceState
from domain.errors import NotFound
from domain.health import (
    COOL_DOWN_S,
    HISTORY_KEPT,
    RECHECK_S,
    GoldenTiming,
    HealthAnswer,
    HealthCheck,
    HealthRecord,
    HealthVerdict,
    QuarantineCause,
    judge,
)
from domain.ports import Page
from domain.work import WorkState

GOOD = tuple(verdict for verdict in HealthVerdict if verdict.is_good)


def is_recheck_due() -> Any:
    """A quarantined device that a passing check may free, and whose last one is long enough ago."""
    was_checked = exists().where(
        device_health.c.device_id == device.c.id, device_health.c.at > leases.in_seconds(-RECHECK_S)
    )
    return and_(device.c.state == DeviceState.QUARANTINED, device.c.quarantine == QuarantineCause.LATENCY, ~was_checked)


class HealthTables(Transactions):
    """The server decides; devices only measure."""

    def record_health(self, device_id: str, check: HealthCheck) -> HealthAnswer:
        """Judge a check and keep it.

        Out of its band (or not run at all) twice in a row, or wrong once: the device is quarantined, what it measured since its
        last good check becomes suspect, and what it holds goes back to the queue. A passing check ends a quarantine for latency.

        Raises:
            NotFound: No such device.
        """
        with self._transaction() as connection:
            query = select(device).where(device.c.id == device_id).with_for_update(key_share=True)
            owner = connection.execute(query).one_or_none()
            if owner is None:
                raise NotFound(f"There is no device {device_id}.", metadata={"id": device_id})
            past = connection.execute(_same_kind(owner, check)).all()
            good = [
                GoldenTiming.model_validate(row.report["timing"])
                for row in past
                if HealthVerdict(row.verdict).is_good and row.report.get("timing")
            ]
            found = judge(check, good)
            reason = plain(found.reason) or ""
            kept = {"verdict": found.verdict, "reason": reason, "band": list(found.band) if found.band else None}
            connection.execute(
                insert(device_health).values(
                    device_id=device_id,
                    runtime=check.runtime,
                    runtime_version=check.runtime_version,
                    golden=check.golden,
                    report=as_json(check),
                    **kept,
                )
            )
            repeat_after_s = None
            if found.verdict is HealthVerdict.WRONG_OUTPUT:
                _quarantine(connection, owner, QuarantineCause.WRONG_OUTPUT, reason)
            elif not found.verdict.is_good:
                is_second = bool(past) and not HealthVerdict(past[0].verdict).is_good
                if is_second:
                    _quarantine(connection, owner, QuarantineCause.LATENCY, f"Twice in a row: {reason}")
                else:
                    repeat_after_s = COOL_DOWN_S
            elif owner.quarantine == QuarantineCause.LATENCY and _is_well_otherwise(connection, owner):
                note = f"The golden model passes again: {reason}"
                values = {"state": DeviceState.ACTIVE, "quarantine": None, "note": note}
                connection.execute(update(device).where(device.c.id == device_id).values(values))
            state = read_device(connection, device_id).state
        return HealthAnswer(verdict=found.verdict, state=state, reason=reason, repeat_after_s=repeat_after_s)

    def health(self, device_id: str, *, page_size: int = 50, page_token: str = "") -> Page[HealthRecord]:
        """Return a device's checks, the latest first. Raises NotFound, Invalid ``bad_page_token``."""
        list_name = f"health:{device_id}"
        after = read_page_token(list_name, page_token, int)
        size = coerce_page_size(page_size)
        query = (
            select(device_health)
            .where(device_health.c.device_id == device_id)
            .order_by(device_health.c.id.desc())
            .limit(size + 1)
        )
        if after is not None:
            query = query.where(device_health.c.id < after[0])
        with self._transaction() as connection:
            read_device(connection, device_id)
            rows = connection.execute(query).all()
        return make_page(rows, size, _record_of, list_name=list_name, key=lambda row: (row.id,))

    def is_health_check_due(self, device_id: str) -> bool:
        """Whether a device is quarantined and its last check is long enough ago to try again."""
        with self._transaction() as connection:
            return bool(
                connection.execute(
                    select(exists().where(device.c.id == device_id, is_recheck_due()).select_from(device))
                ).scalar_one()
            )


def _same_kind(owner: AnyRow, check: HealthCheck) -> Any:
    """Checks that this one can be compared with, the latest first."""
    query = select(device_health).where(
        device_health.c.device_id == owner.id,
        device_health.c.runtime == check.runtime,
        device_health.c.golden == check.golden,
    )
    if check.runtime_version:  # a file that does not run may not know its runtime's version either
        query = query.where(device_health.c.runtime_version == check.runtime_version)
    if owner.health_since is not None:
        query = query.where(device_health.c.at > owner.health_since)
    return query.order_by(device_health.c.id.desc()).limit(HISTORY_KEPT)


def _is_well_otherwise(connection: Connection, owner: AnyRow) -> bool:
    """Whether the latest check of every other runtime was good as well; called once the new one is kept."""
    latest = (
        select(device_health.c.verdict)
        .where(device_health.c.device_id == owner.id)
        .ext(distinct_on(device_health.c.runtime))
        .order_by(device_health.c.runtime, device_health.c.id.desc())
    )
    return all(HealthVerdict(verdict).is_good for verdict in connection.execute(latest).scalars())


def _quarantine(connection: Connection, owner: AnyRow, cause: QuarantineCause, reason: str) -> None:
    last_good = (
        select(func.max(device_health.c.at))
        .where(device_health.c.device_id == owner.id, device_health.c.verdict.in_(GOOD))
        .scalar_subquery()
    )
    connection.execute(
        update(measurement)
        .where(
            measurement.c.device_id == owner.id,
            measurement.c.state == WorkState.DONE,
            or_(last_good.is_(None), measurement.c.finished_at > last_good),
        )
        .values(is_suspect=True)
    )
    held = and_(measurement.c.device_id == owner.id, measurement.c.state == WorkState.LEASED)
    leases.hand_back(connection, measurement, held, counts=False)
    if owner.state in {DeviceState.ACTIVE, DeviceState.PAUSED}:
        is_held = owner.state == DeviceState.PAUSED and cause is QuarantineCause.LATENCY
        values = {
            "state": DeviceState.QUARANTINED,
            "quarantine": QuarantineCause.HELD if is_held else cause,
            "note": reason,
        }
        connection.execute(update(device).where(device.c.id == owner.id).values(values))
    elif owner.state == DeviceState.QUARANTINED and cause is QuarantineCause.WRONG_OUTPUT:
        connection.execute(update(device).where(device.c.id == owner.id).values(quarantine=cause, note=reason))


def _record_of(row: AnyRow) -> HealthRecord:
    return HealthRecord(
        id=row.id,
        device_id=row.device_id,
        at=row.at,
        check=HealthCheck.model_validate(row.report),
        verdict=row.verdict,
        band=row.band,
        reason=row.reason,
    )
