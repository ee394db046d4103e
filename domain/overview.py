"""What a picture of a job needs, compact: its trials as columns, its work as spans, one trial whole, one line a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from domain.build import Build
from domain.job import EndedBy, Job, JobState, Stage, TargetSpec
from domain.measurement import Measurement
from domain.trial import Trial


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True)


class JobTally(_Told):
    """Counts of a job's rows."""

    trials_by_state: dict[str, int] = Field(default_factory=dict)
    device_ids: tuple[str, ...] = Field(default=(), description="Devices that measured for it, or measure now.")


@dataclass(frozen=True)
class JobStanding:
    """A job, counts of its rows, and what is worked on, at one moment.

    ``trials_finished``: trials over that were built. ``now``: the moment, by the clock of the tables.
    """

    job: Job
    now: datetime
    trials_by_state: Mapping[str, int] = field(default_factory=dict)
    trials_finished: int = 0
    finals_done: int = 0
    finals_wanted: int = 0
    builds_waiting: int = 0
    measurements_waiting: int = 0
    builds_running: tuple[Build, ...] = ()
    measurements_running: tuple[Measurement, ...] = ()


class DeviceName(_Told):
    id: str
    name: str


class JobSummary(_Told):
    """A job as a list shows it: no report, no rows."""

    id: str
    name: str
    state: JobState
    stage: Stage
    reason: str | None
    ended_by: EndedBy | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    labels: dict[str, str]
    priority: int
    model: str = Field(description="Name of the model, or its source.")
    targets: tuple[TargetSpec, ...]
    max_drop: float
    trials_budget: int
    wall_budget_s: float
    trials_asked: int
    trials_by_state: dict[str, int]
    devices: tuple[DeviceName, ...]
    best_speedup: float | None = Field(description="Measured, within the accuracy drop the user allows.")
    best_speedup_by_target: dict[str, float] = Field(description="Index of the target, as text -> best speed-up.")


class ColumnGroup(_Told):
    """A group of channels, in the order of the columns."""

    name: str
    channels: int
    stage: int
    is_residual: bool
    macs: int
    params: int


class ColumnBlock(_Told):
    """A block that may go altogether, and the groups that go with it."""

    name: str
    groups: tuple[str, ...]
    macs: int


class TrialColumns(_Told):
    """All trials of one target as columns: entry *i* of each belongs to the *i*-th trial. Small enough to draw a thousand from."""

    target: int
    metric: str
    dense_accuracy: float | None = Field(description="Of the dense file, on the search split.")
    dense_latency_ms: float | None = Field(description="Measured; every latency here is this times a paired ratio.")
    groups: tuple[ColumnGroup, ...]
    blocks: tuple[ColumnBlock, ...]
    states: tuple[str, ...] = Field(description="What the numbers in `state` mean.")
    precisions: tuple[str, ...] = Field(description="What the numbers in `precision` mean.")
    number: tuple[int, ...]
    state: tuple[int, ...]
    precision: tuple[int, ...]
    seed_name: tuple[str | None, ...]
    duplicate_of: tuple[int | None, ...]
    accuracy_search: tuple[float | None, ...] = Field(description="On the search split, after the short recovery.")
    latency_ms: tuple[float | None, ...] = Field(description="Measured; null where it was not.")
    latency_low_ms: tuple[float | None, ...]
    latency_high_ms: tuple[float | None, ...]
    predicted_ms: tuple[float | None, ...] = Field(
        description="By the latency model, of trials that were built and not measured; null for the others."
    )
    speedup: tuple[float | None, ...] = Field(description="Paired, against the dense model in the same precision.")
    macs: tuple[int | None, ...]
    params: tuple[int | None, ...]
    finished_s: tuple[float | None, ...] = Field(description="Seconds since the job started.")
    widths: tuple[int, ...] = Field(description="Channels kept: trial-major, as many a trial as there are groups.")
    dropped: tuple[tuple[int, ...], ...] = Field(description="Indices into `blocks`.")
    hypervolume: tuple[tuple[float, float], ...] = Field(
        description="(seconds since the start, area under the dense model that the front covers), as it grew."
    )


class WorkSpan(_Told):
    """A build or a measurement: who did it, when it was asked, begun and done. Seconds since the job was submitted."""

    id: str
    kind: Literal["prepare", "candidate", "final", "measurement"]
    by: str | None = Field(description="Build worker or device that held it last.")
    state: str
    target: int | None
    trials: tuple[int, ...] = Field(
        description="Numbers of the trials it is for, the lowest first; empty: the dense model."
    )
    attempt: int
    asked_s: float
    started_s: float | None
    finished_s: float | None
    failure: str | None = None


class JobTimeline(_Told):
    """Everything that was carried out for a job, in the order it was asked."""

    submitted_at: datetime
    now_s: float
    spans: tuple[WorkSpan, ...]


class TrialMeasurement(_Told):
    """A measurement with the place of this trial's file in it; raw samples: ``GET /v1/measurements/{id}``."""

    stage: Literal["search", "final"]
    position: int
    measurement: Measurement


class TrialDetail(_Told):
    """One trial with all that was built and measured for it."""

    trial: Trial
    groups: tuple[ColumnGroup, ...]
    predicted_ms: float | None = Field(
        default=None, description="By the latency model as it is now; dense time times ratio."
    )
    builds: tuple[Build, ...]
    measurements: tuple[TrialMeasurement, ...]


class Influence(_Told):
    """How much one part of the network explains."""

    name: str
    kind: Literal["group", "block", "precision"]
    share: float = Field(description="Part of what the model explains, 0..1; all parts together are 1.")
    direction: float = Field(description="Sign and strength of the effect of removing more: -1..1, in ranks.")


class ImportanceOf(_Told):
    """Which parts explain one of the two things that matter."""

    value: Literal["accuracy", "latency"]
    explained: float = Field(
        description="Share of the ranks' variance explained in trials left out one at a time; <= 0: nothing."
    )
    influences: tuple[Influence, ...] = Field(description="The largest first.")


class ParameterImportance(_Told):
    """A ridge regression on ranks over all measured trials of a target: simple, and honest about how much it explains."""

    target: int
    trials: int
    reason: str | None = Field(default=None, description="Why nothing can be said.")
    of: tuple[ImportanceOf, ...] = ()
