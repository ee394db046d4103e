"""What a job would do, told before it is submitted; and where a submitted one stands in the queue."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from domain.device import DeviceState
from domain.job import JobSpec


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True)


class QueuePlace(_Told):
    """A place among the jobs that wait for a search worker. Higher priorities come first, then whoever waits longest."""

    ahead: int = Field(ge=0, description="Jobs that are taken before this one.")
    searchers: int = Field(ge=0, description="Search workers that hold a job now.")
    expected_wait_s: float | None = Field(
        default=None, description="Until its first turn, were they all to take whole turns; null: no worker is at work."
    )


class Pace(_Told):
    """How long work took lately, by the rows of what was finished last; null where nothing was."""

    builds: int = 0
    build_s: float | None = None
    measurements: int = 0
    measurement_s: float | None = None


class PlannedGroup(_Told):
    name: str
    channels: int


class Whole(_Told):
    """A layer that stays whole, and why."""

    name: str
    reason: str


class Network(_Told):
    """The model as the pruner sees it."""

    groups: tuple[PlannedGroup, ...]
    blocks: tuple[str, ...] = ()
    unprunable: tuple[Whole, ...] = ()
    macs: int
    params: int
    source: str = Field(description="`traced` for this answer, or `build`: an earlier job prepared the same model.")


class MatchedDevice(_Told):
    id: str
    name: str
    state: DeviceState
    is_online: bool
    queue_depth: int


class PlannedTarget(_Told):
    target: int
    devices: tuple[MatchedDevice, ...]
    reason: str | None = Field(default=None, description="Why it would wait now; null: a device stands ready.")


class Cost(_Told):
    """What the job would take. ``expected_s`` is an estimate by ``pace``; ``wall_budget_s`` is held."""

    trials: int = Field(description="At most.")
    finals: int = Field(description="Long recoveries at the end, at most.")
    measurements: int = Field(description="At most: a trial and a final each, and the dense model of every target.")
    wall_budget_s: float
    expected_s: float | None = Field(default=None, description="Null: nothing was built and measured here yet.")
    pace: Pace
    queue: QueuePlace


class JobPlan(_Told):
    """The answer of `validate_only`: the job is acceptable, and this is what it would do. Nothing was stored."""

    spec: JobSpec = Field(description="With every default filled in.")
    network: Network | None = None
    network_reason: str | None = Field(default=None, description="Why the network is not known here.")
    targets: tuple[PlannedTarget, ...]
    cost: Cost
