"""A job: one prune request, its states and what each verb may do to them."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StrictBool,
    StringConstraints,
    field_validator,
    model_validator,
)

from domain.artifact import Digest
from domain.errors import WrongState
from domain.formats import format_of


def _refuse_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


Whole = Annotated[int, BeforeValidator(_refuse_boolean)]
Number = Annotated[float, BeforeValidator(_refuse_boolean)]
"""Numbers; ``true`` is none, whatever Python says."""


class JobState(StrEnum):
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    STOPPING = "STOPPING"
    SUCCEEDED = "SUCCEEDED"
    STOPPED = "STOPPED"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL_STATES


TERMINAL_STATES = frozenset({JobState.SUCCEEDED, JobState.STOPPED, JobState.CANCELLED, JobState.FAILED})

JOB_TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset(
        {JobState.RUNNING, JobState.PAUSED, JobState.STOPPED, JobState.CANCELLED, JobState.FAILED}
    ),
    JobState.RUNNING: frozenset(
        {JobState.PAUSED, JobState.STOPPING, JobState.SUCCEEDED, JobState.CANCELLED, JobState.FAILED}
    ),
    JobState.PAUSED: frozenset(
        {JobState.RUNNING, JobState.QUEUED, JobState.STOPPING, JobState.STOPPED, JobState.CANCELLED, JobState.FAILED}
    ),
    JobState.STOPPING: frozenset({JobState.STOPPED, JobState.CANCELLED, JobState.FAILED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.STOPPED: frozenset(),
    JobState.CANCELLED: frozenset(),
    JobState.FAILED: frozenset(),
}


class EndedBy(StrEnum):
    """Who ended a job."""

    USER = "user"
    SYSTEM = "system"
    BUDGET = "budget"
    PLATEAU = "plateau"


class JobVerb(StrEnum):
    PAUSE = "pause"
    RESUME = "resume"
    STOP = "stop"
    CANCEL = "cancel"


def state_after(verb: JobVerb, state: JobState, *, has_started: bool) -> JobState:
    """Return the state a verb leads to.

    Args:
        verb: What the user asks.
        state: The job's state now.
        has_started: Whether any trial was asked yet: a job that never began has nothing to wind down.

    Raises:
        WrongState: If the state forbids the verb.
    """
    wanted: JobState | None = None
    if verb is JobVerb.PAUSE and state in {JobState.QUEUED, JobState.RUNNING}:
        wanted = JobState.PAUSED
    elif verb is JobVerb.RESUME and state is JobState.PAUSED:
        wanted = JobState.RUNNING if has_started else JobState.QUEUED
    elif verb is JobVerb.STOP and state in {JobState.QUEUED, JobState.RUNNING, JobState.PAUSED}:
        wanted = JobState.STOPPING if has_started else JobState.STOPPED
    elif verb is JobVerb.CANCEL and not state.is_terminal:
        wanted = JobState.CANCELLED
    if wanted is None:
        raise WrongState(
            f"A job in state {state} cannot be asked to {verb}; read its state and choose a verb that fits.",
            metadata={"state": str(state), "verb": str(verb)},
        )
    return wanted


class Stage(StrEnum):
    """Where a running job is, for people; the state machine is ``JobState``."""

    QUEUED = "queued"
    WAITING = "waiting_for_device"
    PREPARING = "preparing"
    BASELINE = "baseline"
    SEARCHING = "searching"
    FINALS = "finals"
    REMEASURING = "remeasuring"
    DONE = "done"


LABEL_KEY = r"^[A-Za-z0-9][A-Za-z0-9_./-]{0,62}$"
MAX_LABELS = 32
LabelKey = Annotated[str, StringConstraints(pattern=LABEL_KEY)]
LabelValue = Annotated[str, StringConstraints(max_length=255)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSpec(_Strict):
    """The network to prune."""

    source: Literal["builtin", "plugin", "onnx"] = Field(
        default="builtin",
        description="Where it comes from: this server, a plug-in that the operator installed, or an ONNX file.",
    )
    name: str | None = Field(
        default=None, max_length=200, description="Which one of the source, for `builtin` and `plugin`."
    )
    params: dict[str, JsonValue] = Field(
        default_factory=dict, description="Arguments of the function that makes it, for `builtin` and `plugin`."
    )
    weights: Digest | None = Field(
        default=None, description="A safetensors artifact; absent: the model is trained first."
    )
    artifact: Digest | None = Field(default=None, description="The ONNX file, for `onnx`.")

    @model_validator(mode="after")
    def _has_what_its_source_needs(self) -> ModelSpec:
        if self.source == "onnx":
            if self.artifact is None:
                raise ValueError(
                    "source onnx needs `artifact`: upload the file with POST /v1/artifacts and give its digest"
                )
        elif not self.name:
            raise ValueError(f"source {self.source} needs `name`")
        return self


class DataSpec(_Strict):
    """Samples to recover, search and test with: by name, or as a file that is uploaded or lies where the builders may read."""

    source: Literal["builtin", "plugin", "npz", "images", "csv", "parquet", "huggingface"] = Field(
        default="builtin",
        description="Where they come from: this server, a plug-in that the operator installed, or a file or folder of that kind.",
    )
    name: str | None = Field(
        default=None, max_length=200, description="Which ones of the source, for `builtin` and `plugin`."
    )
    params: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Arguments of the function that loads them, for `builtin` and `plugin`; how a file is read, for the others.",
    )
    artifact: Digest | None = Field(
        default=None,
        description="An uploaded file of kind `data`: an npz, a CSV or Parquet file, or a zip of a folder.",
    )
    path: str | None = Field(
        default=None,
        max_length=1000,
        description="Instead of `artifact`: a file or folder inside PRUNELOOP_DATASETS_DIR of the builders, as seen from there.",
    )

    @property
    def is_file(self) -> bool:
        return self.source not in {"builtin", "plugin"}

    @model_validator(mode="after")
    def _has_what_its_source_needs(self) -> DataSpec:
        if not self.is_file:
            if not self.name:
                raise ValueError(f"source {self.source} needs `name`")
            if self.artifact is not None or self.path is not None:
                raise ValueError(f"source {self.source} goes by `name`; leave `artifact` and `path` out")
        elif (self.artifact is None) == (self.path is None):
            raise ValueError(
                f"source {self.source} needs `artifact`: upload the file with POST /v1/artifacts and give its digest; or"
                f" `path`, a place"
                " inside the folder that the operator allows. One of them, not both"
            )
        return self

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, value: str | None) -> str | None:
        if value is not None and (
            PurePosixPath(value).is_absolute() or ".." in PurePosixPath(value).parts or not value
        ):
            raise ValueError(
                "give a place inside the builders' PRUNELOOP_DATASETS_DIR, without `..`, such as `flowers/train`"
            )
        return value


class DeviceSelector(_Strict):
    """Which devices may measure a target: one by id, or every device that carries all the labels (``{}``: any)."""

    id: str | None = Field(default=None, description="This device and no other.")
    labels: dict[str, str] = Field(default_factory=dict, description="Every one of them must be the device's.")

    def matches(self, device_id: str, labels: dict[str, str]) -> bool:
        if self.id is not None and self.id != device_id:
            return False
        return all(labels.get(key) == value for key, value in self.labels.items())


class TargetSpec(_Strict):
    """(device, runtime, precision, batch, threads), and what the user hopes for there."""

    device: DeviceSelector = Field(default=DeviceSelector(), description="Which devices may measure it.")
    runtime: str = Field(default="onnxruntime", description="What executes the files there.")
    format: str | None = Field(
        default=None,
        max_length=64,
        description="The format of the files that are measured there, where the runtime reads several; default: its first.",
    )
    precision: tuple[Literal["fp32", "fp16", "int8"], ...] = Field(
        default=("fp32",),
        description="One or several: several are searched with the structure. `max_drop` is against the dense model in the first.",
    )
    batch: Whole = Field(default=1, ge=1, le=4096, description="Samples a run.")
    threads: Whole = Field(default=1, ge=1, le=256, description="Threads of the runtime.")
    speedup: float | None = Field(
        default=None,
        gt=1.0,
        le=1000.0,
        description="Wished for, against the dense model in the same precision: the search aims there.",
    )
    latency_ms: float | None = Field(default=None, gt=0, description="Wished for, instead of `speedup`, or with it.")

    @field_validator("speedup", "latency_ms", mode="before")
    @classmethod
    def _are_numbers(cls, value: object) -> object:
        return _refuse_boolean(value)

    @field_validator("precision", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("precision")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("give at least one precision, each once")
        return value

    @property
    def file_format(self) -> str:
        """The format of the files that are measured here."""
        return format_of(self.runtime, self.format)


class Objective(_Strict):
    """What must not be lost."""

    metric: str = Field(
        default="accuracy",
        description="`accuracy`, `pair_spearman` and, without labels, `agreement` or `fidelity`: pruning/metrics.py.",
    )
    max_drop: Number = Field(
        default=0.01, ge=0, le=1, description="How much of it a deployed network may lose: 0.01 is a point of accuracy."
    )


class Budget(_Strict):
    """When the search ends; what comes first counts."""

    trials: Whole = Field(
        default=40, ge=1, le=100_000, description="Candidates that are built; duplicates do not count."
    )
    wall_s: Number = Field(
        default=900.0,
        gt=0,
        le=30 * 86400,
        description="Seconds, finals included; pauses and waits for a device do not count.",
    )


class RecoverySpec(_Strict):
    """The short training after surgery, of every trial."""

    epochs: Number = Field(
        default=1.0,
        ge=0,
        le=1000,
        description="Of a wide candidate; narrow ones get up to three times as many, those of a model with layer norms twice that.",
    )
    distill: StrictBool = Field(
        default=True, description="Learn from the dense model's outputs as well as from labels."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description="Of the training: `auto` tries, and takes what trains this model faster on this machine.",
    )


class FinalSpec(_Strict):
    """The end: a few of the front are recovered at length, tested, and measured with the dense model in one session."""

    keep: Whole = Field(default=5, ge=1, le=100, description="Files to leave with, a target.")
    epochs: Number = Field(
        default=3.0,
        ge=0,
        le=1000,
        description="Of their long recovery; narrow networks, which train faster, get up to three times as many.",
    )


EXAMPLE: dict[str, JsonValue] = {
    "name": "resnet on the shelf",
    "model": {"name": "resnet20"},
    "data": {"name": "mnist-5k"},
    "targets": [{"device": {"labels": {"class": "edge"}}, "runtime": "onnxruntime", "speedup": 2.0}],
    "objective": {"max_drop": 0.01},
    "budget": {"trials": 40, "wall_s": 900},
}


class JobSpec(_Strict):
    """What a user submits. Only ``model``, ``data`` and one target are required."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    name: str = Field(default="", max_length=200, description="For people.")
    labels: dict[LabelKey, LabelValue] = Field(
        default_factory=dict,
        max_length=MAX_LABELS,
        description="For people and scripts to find it by: `?label=key=value`.",
    )
    priority: Whole = Field(
        default=0, ge=-10, le=10, description="Higher goes first, strictly, in every queue; equal ones take turns."
    )
    model: ModelSpec = Field(description="The network to prune.")
    data: DataSpec = Field(description="Samples to recover, search and test with.")
    targets: tuple[TargetSpec, ...] = Field(min_length=1, max_length=32, description="A front for each.")
    objective: Objective = Field(default=Objective(), description="What must not be lost.")
    levels: tuple[Literal["block", "channel", "weight"], ...] = Field(
        default=("block", "channel"), min_length=1, description="What may be removed."
    )
    budget: Budget = Field(default=Budget(), description="When the search ends.")
    recovery: RecoverySpec = Field(default=RecoverySpec(), description="The short training of every trial.")
    final: FinalSpec = Field(default=FinalSpec(), description="The long training of the best few.")
    exports: tuple[str, ...] = Field(
        default=("onnx",),
        description="Formats the final files are written in; what a target measures is written anyway.",
    )
    seed: Whole = Field(default=0, ge=0, lt=2**31, description="Of everything that is drawn.")
    when_no_device: Literal["wait", "fail"] = Field(
        default="wait", description="What to do while no device matches a target: wait with a reason, or fail."
    )

    @property
    def inputs(self) -> tuple[str, ...]:
        """Digests of the files a user gave."""
        given = (self.model.weights, self.model.artifact, self.data.artifact)
        return tuple(digest for digest in given if digest is not None)


class Job(BaseModel):
    """A job as stored."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    spec: JobSpec
    state: JobState
    stage: Stage = Stage.QUEUED
    reason: str | None = Field(default=None, description="Why it waits or failed, with the next step.")
    ended_by: EndedBy | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    paused_s: float = Field(default=0.0, description="Time spent paused so far: not counted in the wall-clock budget.")
    trials_asked: int = 0
    report: dict[str, JsonValue] = Field(
        default_factory=dict, description="Overhead, groups, what could not be pruned and why."
    )
