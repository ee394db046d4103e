"""A job as the API shows it: the stored job and how far it is."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from domain.artifact import Digest
from domain.job import Job
from domain.plan import QueuePlace


class RunningMeasurement(BaseModel):
    """A measurement a device holds now."""

    measurement_id: str
    device_id: str | None
    device: str = Field(description="The device's name.")
    target: int
    attempt: int
    started_at: datetime | None


class RunningBuild(BaseModel):
    """A build a worker holds now."""

    build_id: str
    kind: str
    progress: dict[str, JsonValue] = Field(default_factory=dict, description="`stage` and `fraction` done.")
    started_at: datetime | None


class JobProgress(BaseModel):
    """How far a job is. ``best_speedup`` is measured, within the accuracy drop the user allows; None: nothing yet."""

    elapsed_s: float = Field(description="Used of the wall budget: less pauses and waits for a device.")
    wall_budget_s: float
    trials_asked: int = Field(description="Trials so far, duplicates too.")
    trials_finished: int = Field(description="Trials over that count against the budget: those that were built.")
    finals_done: int
    finals_wanted: int
    trials_budget: int
    trials_by_state: dict[str, int]
    best_speedup: float | None = None
    best_speedup_by_target: dict[str, float] = Field(
        default_factory=dict, description="Index of the target, as text -> best speed-up so far."
    )
    builds_waiting: int
    builds_running: list[RunningBuild]
    measurements_waiting: int
    measurements_running: list[RunningMeasurement]


class JobView(Job):
    """``GET /v1/jobs/{id}``."""

    progress: JobProgress
    queue: QueuePlace | None = Field(default=None, description="While it is QUEUED.")


class JobChanges(BaseModel):
    """What differs in a clone: any top-level field of a job, whole."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]


class JobArtifact(BaseModel):
    """A file on a job's front and the point it belongs to; ``trial`` is null for the dense model."""

    model_config = ConfigDict(from_attributes=True)

    trial: int | None
    target: int
    stage: str
    format: str
    digest: Digest
    size_bytes: int
    manifest: Digest | None = None
