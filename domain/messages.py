"""Wire messages between agents and the API. JSON only; unknown fields are ignored, so that one release apart still works."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from domain.device import Inventory
from domain.measurement import MeasurementOutcome, MeasurementRequest


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class JoinRequest(_Wire):
    """``POST /v1/devices`` with a join token."""

    name: str = Field(default="", max_length=200)
    labels: dict[str, str] = Field(default_factory=dict)
    inventory: Inventory


class BrokerAddress(_Wire):
    """Where a device's wakes arrive: it can touch keys with this prefix only."""

    url: str
    key_prefix: str
    queue: str


class JoinAnswer(_Wire):
    """Given once; the server keeps a hash of the token only."""

    device_id: str
    name: str
    device_token: str
    broker: BrokerAddress


class Claim(_Wire):
    """A leased measurement. ``attempt`` fences every later write."""

    measurement_id: str
    attempt: int
    lease_s: float
    request: MeasurementRequest


class ClaimRequest(_Wire):
    """What an agent says when it asks for work; ``inventory`` only when it changed."""

    clock: datetime | None = None
    inventory: Inventory | None = None


class ClaimAnswer(_Wire):
    """``claim`` is null where nothing waits or the device may take none (``reason`` says which)."""

    claim: Claim | None = None
    reason: str | None = None
    check_health: bool = Field(
        default=False, description="The device or a runtime of it failed its check: measure the golden model again now."
    )


class HeartbeatRequest(_Wire):
    """Alive; and, while measuring, which lease to extend."""

    measurement_id: str | None = None
    attempt: int | None = None
    stage: str | None = None
    clock: datetime | None = Field(default=None, description="The device's own clock: recorded as skew, never trusted.")
    conditions: dict[str, JsonValue] = Field(default_factory=dict)
    inventory: Inventory | None = None


class HeartbeatAction(StrEnum):
    CONTINUE = "continue"
    CANCEL = "cancel"  # kill the measuring child; the work is not wanted any more, or no longer yours
    DRAIN = "drain"  # finish, then take no more


class HeartbeatAnswer(_Wire):
    action: HeartbeatAction = HeartbeatAction.CONTINUE
    lease_s: float | None = None
    server_time: datetime


class OutcomeMessage(_Wire):
    """``PUT /v1/measurements/{id}/outcome``; 409 ``stale_attempt`` where the lease went to somebody else."""

    attempt: int
    outcome: MeasurementOutcome


class JoinTokenRequest(_Wire):
    expires_in_s: int = Field(default=3600, ge=1, le=30 * 86400)
    uses: int = Field(default=1, ge=1, le=10_000)
    labels: dict[str, str] = Field(default_factory=dict, description="Put on every device that joins with it.")


class JoinTokenAnswer(_Wire):
    token: str
    expires_at: datetime
    command: str = Field(default="", description="The one line to run on the device: it installs, joins and measures.")
    note: str = Field(default="", description="Why the line may not do elsewhere, where that is known.")
