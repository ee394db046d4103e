"""How a device joins: its join token, its own token and its broker secret, of which only sha256 hashes are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy import func, insert, select, update

from db import models
from db.audit import note
from db.devices import inventory_columns, read_device
from db.ids import new_id
from db.models import device
from db.transactions import Transactions
from domain.access import SYSTEM, Principal
from domain.device import Device, DeviceState
from domain.errors import Unauthorized
from domain.ports import Registration


class JoiningTables(Transactions):
    """Joining."""

    def create_join_token(
        self, token: str, *, expires_in: timedelta, uses: int, labels: Mapping[str, str], by: Principal = SYSTEM
    ) -> datetime:
        """Let a token admit some devices for a while; its labels are put on each. Returns when it expires."""
        sha256 = sha256_of(token)
        values = {
            "token_sha256": sha256,
            "expires_at": func.now() + expires_in,
            "uses_left": uses,
            "labels": dict(labels),
        }
        with self._transaction() as connection:
            added = connection.execute(
                insert(models.join_token).values(values).returning(models.join_token.c.expires_at)
            )
            expires_at: datetime = added.scalar_one()
            # A join token is named by what is public of it: the start of its hash.
            name = f"join_{sha256[:12]}"
            note(connection, by, "join_token.create", name, {"uses": uses, "labels": dict(labels)})
            return expires_at

    def register_device(self, join_token: str, registration: Registration, *, address: str = "") -> Device:
        """Use up one use of a join token and insert the device, in one transaction. The token's labels win over the device's own.

        Raises:
            Unauthorized: ``bad_join_token``: unknown, expired or used up.
        """
        use = (
            update(models.join_token)
            .where(models.join_token.c.token_sha256 == sha256_of(join_token))
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
                "token_sha256": sha256_of(registration.device_token),
                "broker_secret_sha256": sha256_of(registration.broker_secret),
                "last_seen_at": func.now(),
                **inventory_columns(registration.inventory),
            }
            connection.execute(insert(device).values(values))
            joined = Principal(registration.name, frozenset(), device_id=device_id, address=address)
            note(connection, joined, "device.join", device_id, {"join_token": f"join_{sha256_of(join_token)[:12]}"})
            return read_device(connection, device_id)

    def broker_users(self) -> tuple[tuple[str, str], ...]:
        """Return (device id, sha256 of its broker secret) of every device not removed."""
        query = select(device.c.id, device.c.broker_secret_sha256).where(device.c.state != DeviceState.REMOVED)
        with self._transaction() as connection:
            return tuple((row.id, row.broker_secret_sha256) for row in connection.execute(query.order_by(device.c.id)))


def sha256_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
