"""A device: a physical thing with an identity that measures, and what it says of itself."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictBool


class DeviceState(StrEnum):
    """ACTIVE takes work; PAUSED and DRAINING finish what they hold; QUARANTINED failed its health check; REMOVED is gone."""

    ACTIVE = "active"
    PAUSED = "paused"
    DRAINING = "draining"
    QUARANTINED = "quarantined"
    REMOVED = "removed"


class QuarantineCause(StrEnum):
    """What a quarantine, or the loss of a runtime, is about. A passing check ends LATENCY; the others need a person."""

    LATENCY = "latency"
    WRONG_OUTPUT = "wrong_output"
    HELD = "held"  # it was paused when its check failed


class LostRuntime(BaseModel):
    """Why a runtime of a device takes no work: the golden model failed in it."""

    model_config = ConfigDict(frozen=True)

    cause: QuarantineCause
    reason: str


class RuntimeInfo(BaseModel):
    """A runtime as found on a device: whether it works, its version, what it can do, or what to install."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    available: StrictBool
    version: str | None = None
    formats: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ("fp32",)
    detail: str = Field(default="", description="Providers, or why it does not work and what to install.")


class Inventory(BaseModel):
    """What an agent reports at start."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hostname: str
    machine: str = Field(description="Architecture: x86_64, aarch64, ...")
    cpu: str
    cores: int = Field(ge=1)
    memory_bytes: int = Field(ge=0)
    os: str
    kernel: str
    python: str
    agent_version: str
    runtimes: tuple[RuntimeInfo, ...]
    extra: dict[str, JsonValue] = Field(default_factory=dict)


class Device(BaseModel):
    """A device as stored."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    labels: dict[str, str]
    state: DeviceState
    note: str | None = None
    inventory: Inventory
    lost_runtimes: dict[str, LostRuntime] = Field(
        default_factory=dict,
        description="Runtimes that are installed but failed the golden model; the others take work.",
    )
    conditions: dict[str, JsonValue] = Field(
        default_factory=dict, description="Latest load, clocks and temperatures it sent."
    )
    clock_offset_ms: float | None = Field(default=None, description="Agent's clock minus the database's.")
    is_online: bool = False
    queue_depth: int = 0
    current_measurement_id: str | None = None
    created_at: datetime
    last_seen_at: datetime | None = None
