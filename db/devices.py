"""Devices: who they are, what they last said of themselves, and what waits for them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import JsonValue
from sqlalchemy import Connection, and_, case, func, or_, select, tuple_, update

from db import audit, leases
from db.mapping import AnyRow, as_json
from db.measurements import is_online, suits
from db.models import device, measurement
from db.pages import coerce_page_size, make_page, moment_in_token, read_page_token
from db.transactions import Transactions
from domain.access import SYSTEM, Principal
from domain.device import Device, DeviceState, Inventory
from domain.errors import NotFound, WrongState
from domain.ports import Page
from domain.work import WorkState

TOUCH_EVERY_S = 2.0  # an idle device that polls is not worth a write each time
VERB = {
    DeviceState.ACTIVE: "resume",
    DeviceState.PAUSED: "pause",
    DeviceState.DRAINING: "drain",
    DeviceState.QUARANTINED: "quarantine",
    DeviceState.REMOVED: "remove",
}

QUEUE_DEPTH = (
    select(func.count())
    .select_from(measurement)
    .where(leases.is_claimable(measurement), suits(device))
    .correlate(device)
    .scalar_subquery()
)
CURRENT = (
    select(measurement.c.id)
    .where(measurement.c.device_id == device.c.id, measurement.c.state == WorkState.LEASED)
    .correlate(device)
    .scalar_subquery()
)
DEVICE_COLUMNS = (
    *(device.c[name] for name in ("id", "name", "labels", "state", "note", "inventory", "lost_runtimes", "conditions")),
    *(device.c[name] for name in ("clock_offset_ms", "created_at", "last_seen_at")),
    and_(device.c.state != DeviceState.REMOVED, is_online(device)).label("is_online"),
    case((device.c.state == DeviceState.ACTIVE, QUEUE_DEPTH), else_=0).label("queue_depth"),
    CURRENT.label("current_measurement_id"),
)


class DeviceTables(Transactions):
    """Devices as operators see them and as agents report."""

    def device(self, device_id: str) -> Device:
        """Return a device, a removed one too. Raises NotFound."""
        with self._reading() as connection:
            return read_device(connection, device_id)

    def devices(self, *, page_size: int = 100, page_token: str = "") -> Page[Device]:
        """Return a page of the devices not removed, oldest first. Raises Invalid ``bad_page_token``."""
        after = read_page_token("devices", page_token, str, str)
        size = coerce_page_size(page_size)
        query = (
            select(*DEVICE_COLUMNS)
            .where(device.c.state != DeviceState.REMOVED)
            .order_by(device.c.created_at, device.c.id)
            .limit(size + 1)
        )
        if after is not None:
            created_at = moment_in_token(after[0])
            query = query.where(tuple_(device.c.created_at, device.c.id) > tuple_(created_at, after[1]))
        with self._reading() as connection:
            rows = connection.execute(query).all()
        return make_page(
            rows, size, _device_of, list_name="devices", key=lambda row: (row.created_at.isoformat(), row.id)
        )

    def set_device_state(
        self, device_id: str, state: DeviceState, *, note: str | None = None, by: Principal = SYSTEM
    ) -> Device:
        """Write a device's state and why. A removed one stays removed, and what it held goes back to the queue.

        Ending a quarantine this way, or giving lost runtimes back by ACTIVE, begins the history of health checks anew: a person
        has looked.

        Raises:
            NotFound: No such device.
            WrongState: The device was removed.
        """
        with self._transaction() as connection:
            query = select(device.c.state, device.c.lost_runtimes).where(device.c.id == device_id)
            row = connection.execute(query.with_for_update(key_share=True)).one_or_none()
            if row is None:
                raise _no_device(device_id)
            before = row.state
            if before == DeviceState.REMOVED:
                if state is DeviceState.REMOVED:
                    return read_device(connection, device_id)
                raise WrongState(
                    f"Device {device_id} was removed; join it again with `pruneloop agent join`.",
                    metadata={"state": before, "wanted": state.value},
                )
            values: dict[str, Any] = {"state": state, "note": note}
            is_freed = before == DeviceState.QUARANTINED and state is not DeviceState.QUARANTINED
            if is_freed or (row.lost_runtimes and state is DeviceState.ACTIVE):
                values |= {"quarantine": None, "lost_runtimes": {}, "recheck_at": None}
                values |= {"health_since": func.clock_timestamp()}
            connection.execute(update(device).where(device.c.id == device_id).values(values))
            if state is DeviceState.REMOVED:
                held = and_(measurement.c.device_id == device_id, measurement.c.state == WorkState.LEASED)
                leases.hand_back(connection, measurement, held, counts=False)
            audit.note(connection, by, f"device.{VERB[state]}", device_id, {"note": note} if note else {})
            return read_device(connection, device_id)

    def touch_device(
        self,
        device_id: str,
        *,
        clock: datetime | None = None,
        conditions: Mapping[str, JsonValue] | None = None,
        inventory: Inventory | None = None,
    ) -> Device:
        """Note that the device was heard of, by the database's clock; written every two seconds at most, an inventory always.

        Args:
            device_id: Who.
            clock: Its own clock, of which only the offset is kept.
            conditions: Its latest load, clocks and temperatures.
            inventory: What it found on itself, where that changed.

        Raises:
            NotFound: No such device.
        """
        values: dict[str, Any] = {"last_seen_at": func.now()}
        if clock is not None:
            values["clock_offset_ms"] = func.extract("epoch", clock - func.clock_timestamp()) * 1000.0
        if conditions is not None:
            values["conditions"] = as_json(conditions)
        is_due = or_(device.c.last_seen_at.is_(None), device.c.last_seen_at < leases.in_seconds(-TOUCH_EVERY_S))
        touch = update(device).where(device.c.id == device_id)
        if inventory is not None:
            values |= inventory_columns(inventory)
        else:
            touch = touch.where(is_due)
        with self._transaction() as connection:
            connection.execute(touch.values(values))
            return read_device(connection, device_id)


def inventory_columns(inventory: Inventory) -> dict[str, Any]:
    """Return the columns of an inventory: the whole, and the runtimes a claim is matched by."""
    runtimes = sorted({runtime.name for runtime in inventory.runtimes if runtime.available})
    return {"inventory": inventory, "runtimes": runtimes}


def read_device(connection: Connection, device_id: str) -> Device:
    row = connection.execute(select(*DEVICE_COLUMNS).where(device.c.id == device_id)).one_or_none()
    if row is None:
        raise _no_device(device_id)
    return _device_of(row)


def _device_of(row: AnyRow) -> Device:
    return Device.model_validate(dict(row._mapping))


def _no_device(device_id: str) -> NotFound:
    return NotFound(
        f"There is no device {device_id}; GET /v1/devices lists those there are.", metadata={"id": device_id}
    )
