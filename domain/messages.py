"""Wire messages between agents and the API. JSON only; unknown fields are ignored, so that one release apart still works."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from domain.device import Inventory
from domain.errors import Conflict
from domain.measurement import MeasurementOutcome, MeasurementRequest

# What agents and servers say to one another, counted up when a side comes to need what the other did not say before. A side that
# tells no number speaks 1. Each understands the other one number away, so that releases may be mixed while one rolls out.
PROTOCOL = 2
OLDEST_PROTOCOL = 1
Protocol = Annotated[int, Field(ge=1, le=1_000_000, description="Of the wire; one that tells none speaks 1.")]


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class JoinRequest(_Wire):
    """``POST /v1/devices`` with a join token."""

    name: str = Field(default="", max_length=200)
    labels: dict[str, str] = Field(default_factory=dict)
    inventory: Inventory
    protocol: Protocol = 1


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
    protocol: Protocol = 1


class Claim(_Wire):
    """A leased measurement. ``attempt`` fences every later write."""

    measurement_id: str
    attempt: int
    lease_s: float
    request: MeasurementRequest
    job_id: str | None = Field(default=None, description="For the device's log and traces; as is `trial`.")
    trial: int | None = Field(default=None, description="Number of the trial within the job; null: none is behind it.")


class ClaimRequest(_Wire):
    """What an agent says when it asks for work; ``inventory`` only when it changed."""

    clock: datetime | None = None
    inventory: Inventory | None = None
    protocol: Protocol = 1


class ClaimAnswer(_Wire):
    """``claim`` is null where nothing waits or the device may take none (``reason`` says which)."""

    claim: Claim | None = None
    reason: str | None = None
    check_health: bool = Field(
        default=False, description="The device or a runtime of it failed its check: measure the golden model again now."
    )
    protocol: Protocol = 1


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
    model_config = ConfigDict(json_schema_extra={"examples": [{"uses": 4, "labels": {"class": "edge"}}]})

    expires_in_s: int = Field(default=3600, ge=1, le=30 * 86400)
    uses: int = Field(default=1, ge=1, le=10_000)
    labels: dict[str, str] = Field(default_factory=dict, description="Put on every device that joins with it.")


class JoinTokenAnswer(_Wire):
    token: str
    expires_at: datetime
    command: str = Field(default="", description="The one line to run on the device: it installs, joins and measures.")
    note: str = Field(default="", description="Why the line may not do elsewhere, where that is known.")


def check_protocol(theirs: int, who: str) -> None:
    """Refuse a side that is more than one number away, before it misunderstands.

    Args:
        theirs: What the other side tells.
        who: The other side: agent or server.

    Raises:
        Conflict: ``protocol_too_old`` or ``protocol_too_new``, with which side to update.
    """
    metadata = {"theirs": theirs, "ours": PROTOCOL}
    if theirs < OLDEST_PROTOCOL:
        raise Conflict(
            f"This {who} speaks protocol {theirs}, and {OLDEST_PROTOCOL} is the oldest understood here; update the {who}.",
            code="protocol_too_old",
            metadata=metadata,
        )
    if theirs > PROTOCOL + 1:
        other = "server" if who == "agent" else "agent"
        raise Conflict(
            f"This {who} speaks protocol {theirs}, and {PROTOCOL + 1} is the newest understood here; update the {other} first.",
            code="protocol_too_new",
            metadata=metadata,
        )
