"""Tokens: how a device joins, and whom a bearer token stands for. Only sha256 hashes are kept: a token holds 256 random bits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy import func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from db import models
from db.devices import inventory_columns, read_device
from db.ids import new_id
from db.models import api_token, device
from db.transactions import Transactions
from domain.device import Device, DeviceState
from domain.errors import Unauthorized
from domain.ports import Principal, Registration

DEVICE_SCOPES = frozenset({"device"})


class TokenTables(Transactions):
    """Joining and being recognised."""

    def create_join_token(self, token: str, *, expires_in: timedelta, uses: int, labels: Mapping[str, str]) -> datetime:
        """Let a token admit some devices for a while; its labels are put on each. Returns when it expires."""
        values = {
            "token_sha256": _sha256(token),
            "expires_at": func.now() + expires_in,
            "uses_left": uses,
            "labels": dict(labels),
        }
        with self._transaction() as connection:
            added = connection.execute(
                insert(models.join_token).values(values).returning(models.join_token.c.expires_at)
            )
            expires_at: datetime = added.scalar_one()
            return expires_at

    def register_device(self, join_token: str, registration: Registration) -> Device:
        """Use up one use of a join token and insert the device, in one transaction. The token's labels win over the device's own.

        Raises:
            Unauthorized: ``bad_join_token``: unknown, expired or used up.
        """
        use = (
            update(models.join_token)
            .where(models.join_token.c.token_sha256 == _sha256(join_token))
            .where(models.join_token.c.uses_left > 0, models.join_token.c.expires_at > func.now())
            .values(uses_left=models.join_token.c.uses_left - 1)
            .returning(models.join_token.c.labels)
        )
        with self._transaction() as connection:
            labels = connection.execute(use).scalar_one_or_none()
            if labels is None:
                raise Unauthorized(
                    "This join token is unknown, expired or used up; ask for a new one with POST /v1/join_tokens.",
                    code="bad_join_token",
                )
            device_id = new_id("device")
            values = {
                "id": device_id,
                "name": registration.name,
                "labels": {**registration.labels, **labels},
                "state": DeviceState.ACTIVE,
                "token_sha256": _sha256(registration.device_token),
                "broker_secret_sha256": _sha256(registration.broker_secret),
                "last_seen_at": func.now(),
                **inventory_columns(registration.inventory),
            }
            connection.execute(insert(device).values(values))
            return read_device(connection, device_id)

    def broker_users(self) -> tuple[tuple[str, str], ...]:
        """Return (device id, sha256 of its broker secret) of every device not removed."""
        query = select(device.c.id, device.c.broker_secret_sha256).where(device.c.state != DeviceState.REMOVED)
        with self._transaction() as connection:
            return tuple((row.id, row.broker_secret_sha256) for row in connection.execute(query.order_by(device.c.id)))

    def principal(self, token: str) -> Principal | None:
        """Return whom a bearer token stands for; None if nobody, or a device that was removed. A join token is nobody."""
        sha256 = _sha256(token)
        with self._transaction() as connection:
            named = select(api_token.c.name, api_token.c.scopes).where(api_token.c.token_sha256 == sha256)
            row = connection.execute(named).one_or_none()
            if row is not None:
                return Principal(name=row.name, scopes=frozenset(row.scopes))
            own = select(device.c.id, device.c.name).where(
                device.c.token_sha256 == sha256, device.c.state != DeviceState.REMOVED
            )
            row = connection.execute(own).one_or_none()
            return Principal(name=row.name, scopes=DEVICE_SCOPES, device_id=row.id) if row is not None else None

    def set_token(self, name: str, token: str, scopes: frozenset[str]) -> None:
        """Create or replace a named token; the one before it stands for nobody from now on."""
        values = {"token_sha256": _sha256(token), "scopes": sorted(scopes)}
        put = upsert(api_token).values(name=name, **values).on_conflict_do_update(index_elements=["name"], set_=values)
        with self._transaction() as connection:
            connection.execute(put)


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
