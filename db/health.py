"""Health checks of devices: kept, judged by their history, and what follows for the device and its measurements."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, and_, delete, exists, func, insert, or_, select, true, update

from db import leases
from db.audit import note
from db.devices import read_device
from db.mapping import AnyRow, as_json, plain
from db.models import device, device_health, measurement
from db.pages import coerce_page_size, make_page, read_page_token
from db.transactions import Transactions
from domain.access import Principal
from domain.device import DeviceState, LostRuntime, QuarantineCause
from domain.errors import NotFound
from domain.health import (
    COOL_DOWN_S,
    HISTORY_KEPT,
    MAIN_RUNTIME,
    RECHECK_S,
    ROWS_KEPT,
    GoldenTiming,
    HealthAnswer,
    HealthCheck,
    HealthRecord,
    HealthVerdict,
    judge,
)
from domain.ports import Page
from domain.work import WorkState

GOOD = tuple(verdict for verdict in HealthVerdict if verdict.is_good)


def is_recheck_due() -> Any:
    """The device, or a runtime of it, failed a check that may pass again, and the last one is long enough ago."""
    return and_(
        device.c.state.in_([DeviceState.ACTIVE, DeviceState.QUARANTINED]), device.c.recheck_at <= func.clock_timestamp()
    )


class HealthTables(Transactions):
    """The server decides; devices only measure."""

    def record_health(self, device_id: str, check: HealthCheck) -> HealthAnswer:
        """Judge a check and keep it.

        Out of its band (or not run at all) twice in a row, or wrong once: with the main runtime the device is quarantined, with
        any other it loses that runtime only. What was measured so since the last good check becomes suspect, and what is held
        goes back to the queue. A passing check ends what was about latency.

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
                _lose(connection, owner, check.runtime, QuarantineCause.WRONG_OUTPUT, reason)
            elif not found.verdict.is_good:
                is_second = bool(past) and not HealthVerdict(past[0].verdict).is_good
                if is_second:
                    _lose(connection, owner, check.runtime, QuarantineCause.LATENCY, f"Twice in a row: {reason}")
                else:
                    repeat_after_s = COOL_DOWN_S
            else:
                _regain(connection, owner, check.runtime, reason)
            _plan_recheck(connection, device_id, check.runtime)
            _forget_old(connection, device_id, check.runtime)
            told = {"runtime": check.runtime, "verdict": found.verdict.value}
            note(connection, Principal(owner.name, frozenset(), device_id=device_id), "device.health", device_id, told)
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
        """Whether a device, or a runtime of it, failed a check long enough ago to try again."""
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


def _lose(connection: Connection, owner: AnyRow, runtime: str, cause: QuarantineCause, reason: str) -> None:
    """Take the device out of work, or only one of its runtimes, and doubt what that measured since its last good check."""
    is_main = runtime == MAIN_RUNTIME
    last_good = (
        select(func.max(device_health.c.at))
        .where(
            device_health.c.device_id == owner.id,
            device_health.c.runtime == runtime,
            device_health.c.verdict.in_(GOOD),
        )
        .scalar_subquery()
    )
    touched = and_(measurement.c.device_id == owner.id, true() if is_main else measurement.c.runtime == runtime)
    is_doubted = or_(last_good.is_(None), measurement.c.finished_at > last_good)
    connection.execute(
        update(measurement).where(touched, measurement.c.state == WorkState.DONE, is_doubted).values(is_suspect=True)
    )
    leases.hand_back(connection, measurement, and_(touched, measurement.c.state == WorkState.LEASED), counts=False)
    if is_main:
        _quarantine(connection, owner, cause, reason)
    elif owner.lost_runtimes.get(runtime, {}).get("cause") != QuarantineCause.WRONG_OUTPUT:
        lost = {**owner.lost_runtimes, runtime: as_json(LostRuntime(cause=cause, reason=reason))}
        connection.execute(update(device).where(device.c.id == owner.id).values(lost_runtimes=lost))


def _quarantine(connection: Connection, owner: AnyRow, cause: QuarantineCause, reason: str) -> None:
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


def _regain(connection: Connection, owner: AnyRow, runtime: str, reason: str) -> None:
    """Give back what was lost for its latency."""
    values: dict[str, Any] = {}
    if runtime == MAIN_RUNTIME and owner.quarantine == QuarantineCause.LATENCY:
        note = f"The golden model passes again: {reason}"
        values = {"state": DeviceState.ACTIVE, "quarantine": None, "note": note}
    elif owner.lost_runtimes.get(runtime, {}).get("cause") == QuarantineCause.LATENCY:
        values = {"lost_runtimes": {name: lost for name, lost in owner.lost_runtimes.items() if name != runtime}}
    if values:
        connection.execute(update(device).where(device.c.id == owner.id).values(values))


def _plan_recheck(connection: Connection, device_id: str, runtime: str) -> None:
    """Ask again in a while if anything that may pass is still lost; a check of something else does not put that off."""
    row = connection.execute(select(device).where(device.c.id == device_id)).one()
    lost = {name for name, lost in row.lost_runtimes.items() if lost["cause"] == QuarantineCause.LATENCY}
    lost |= {MAIN_RUNTIME} if row.quarantine == QuarantineCause.LATENCY else set()
    if not lost:
        recheck_at: Any = None
    elif runtime in lost or row.recheck_at is None:
        recheck_at = func.clock_timestamp() + timedelta(seconds=RECHECK_S)
    else:
        return
    connection.execute(update(device).where(device.c.id == device_id).values(recheck_at=recheck_at))


def _forget_old(connection: Connection, device_id: str, runtime: str) -> None:
    mine = and_(device_health.c.device_id == device_id, device_health.c.runtime == runtime)
    newest_to_go = (
        select(device_health.c.id).where(mine).order_by(device_health.c.id.desc()).offset(ROWS_KEPT).limit(1)
    ).scalar_subquery()
    connection.execute(delete(device_health).where(mine, device_health.c.id <= newest_to_go))


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
