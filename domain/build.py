"""A build: what a builder is asked for and what it gives back. Three kinds, one lease.

``prepare``   once per (model, data, seed): dense weights, groups with sensitivity, dense artifact, dense accuracy.
``candidate`` once per trial architecture: prune, re-estimate batch norm, short recovery, evaluate, export.
``final``     for the front's best: long recovery from the trial's weights, export, the artifact run on the test split.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from domain.artifact import ArtifactRef
from domain.candidate import BlockInfo, Candidate, GroupInfo, UnprunableLayer
from domain.job import DataSpec, ModelSpec
from domain.network import LayerInfo
from domain.outcome import Failed
from domain.work import WorkState


class BuildKind(StrEnum):
    PREPARE = "prepare"
    CANDIDATE = "candidate"
    FINAL = "final"


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PrepareRequest(_Message):
    kind: Literal[BuildKind.PREPARE] = BuildKind.PREPARE
    model: ModelSpec
    data: DataSpec
    metric: str = "accuracy"
    batch: int = Field(default=1, ge=1, description="Batch of the exported files.")
    seed: int = 0
    precisions: tuple[str, ...] = Field(
        default=("fp32",),
        min_length=1,
        description="Precisions the dense model is exported in: a file each of every format that has it.",
    )
    formats: tuple[str, ...] = Field(
        default=("onnx",), min_length=1, description="Formats of the files, the one that is measured first."
    )
    exports: tuple[str, ...] = Field(
        default=(), description="Further formats that finals are wanted in: tried before any other work, and not kept."
    )


class Inherited(_Message):
    """A wider candidate that was built before: the network a narrower one is cut from, instead of the dense model."""

    candidate: Candidate
    weights: ArtifactRef = Field(description="Its recovered weights.")


class CandidateRequest(_Message):
    kind: Literal[BuildKind.CANDIDATE] = BuildKind.CANDIDATE
    model: ModelSpec
    data: DataSpec
    metric: str = "accuracy"
    batch: int = 1
    seed: int = 0
    weights: ArtifactRef = Field(description="Dense weights of the prepare build.")
    candidate: Candidate
    start: Inherited | None = Field(default=None, description="What to cut from; none: the dense model.")
    formats: tuple[str, ...] = Field(
        default=("onnx",), min_length=1, description="Formats of the files, the one that is measured first."
    )


class FinalRequest(_Message):
    kind: Literal[BuildKind.FINAL] = BuildKind.FINAL
    model: ModelSpec
    data: DataSpec
    metric: str = "accuracy"
    batch: int = 1
    seed: int = 0
    weights: ArtifactRef = Field(description="Dense weights: the teacher, and the shape surgery starts from.")
    start: ArtifactRef | None = Field(
        default=None, description="Recovered weights of the candidate build to go on from."
    )
    candidate: Candidate | None = Field(
        default=None, description="None: the dense model itself, evaluated on the test split."
    )
    epochs: float = Field(default=3.0, ge=0)
    precisions: tuple[str, ...] = Field(
        default=("fp32",), min_length=1, description="Of the dense model; a candidate says its own."
    )
    formats: tuple[str, ...] = Field(
        default=("onnx",), min_length=1, description="Formats of the files, the one that is measured first."
    )


BuildRequest = Annotated[PrepareRequest | CandidateRequest | FinalRequest, Field(discriminator="kind")]


class SplitSizes(_Message):
    train: int
    val: int
    test: int
    how: str = Field(default="", description="How a missing split was cut.")


class BuiltArtifact(_Message):
    """A deployable file and the inputs and outputs that prove it right in any runtime."""

    format: str
    artifact: ArtifactRef
    check: ArtifactRef = Field(
        description="npz: `input_<name>` arrays and the `output_<name>` arrays the file must give."
    )
    precision: str = "fp32"
    accuracy_search: float | None = Field(default=None, description="Of the file, on the search split.")
    accuracy_test: float | None = Field(default=None, description="Of the file, on the test split. Finals only.")
    compressed_bytes: int | None = Field(
        default=None, description="Size when deflated: of the dense model, and of files whose weights were set to zero."
    )


class LatencyProbe(_Message):
    """A network of some shape, narrowed and not trained: a device times it so that its latency is known before a search."""

    widths: dict[str, int]
    dropped: tuple[str, ...] = ()
    file: BuiltArtifact


class AccuracyReport(_Message):
    """The metric's score on the search split, and of finals on the test split: more is better, 1 is perfect."""

    metric: str = Field(
        default="accuracy",
        description="What the score is of: `agreement` where a job without labels asked for accuracy.",
    )

    search: float = Field(
        description="After recovery: what the search is told. Below fp32 it is the file's own, run in its runtime."
    )
    test: float | None = Field(
        default=None, description="The exported file, run in its runtime on the test split. Finals only."
    )
    test_samples: int | None = None
    spread_search: float | None = Field(
        default=None,
        description="Standard deviation of the search split's labels. `rmse` only: the error is (1 - score) times it.",
    )
    spread_test: float | None = None


class BuildResult(_Message):
    """What any kind of build gives.

    Of ``prepare`` only: ``groups``, ``blocks``, ``layers``, ``unprunable``, ``probes``, ``is_slow_to_recover``.
    """

    status: Literal["built"] = "built"
    kind: BuildKind
    accuracy: AccuracyReport
    macs: int = Field(description="Multiply-accumulates per sample.")
    params: int
    widths: dict[str, int] = Field(
        default_factory=dict, description="Channels really kept per group, read off the module."
    )
    weights: ArtifactRef
    artifacts: tuple[BuiltArtifact, ...]
    groups: tuple[GroupInfo, ...] = ()
    blocks: tuple[BlockInfo, ...] = Field(default=(), description="Blocks that can be dropped whole.")
    unprunable: tuple[UnprunableLayer, ...] = ()
    layers: tuple[LayerInfo, ...] = ()
    probes: tuple[LatencyProbe, ...] = Field(
        default=(), description="Untrained networks of a few shapes, to be timed for the latency model."
    )
    is_slow_to_recover: bool = Field(
        default=False,
        description="It has layer norms: a few epochs bring back less of what a bold cut takes than with batch norms.",
    )
    splits: SplitSizes | None = None
    stages_s: dict[str, float] = Field(
        default_factory=dict, description="Seconds per stage: load, train, prune, recover, ..."
    )
    versions: dict[str, str] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[ArtifactRef, ...]:
        """Every file this build made."""
        files = (*self.artifacts, *(probe.file for probe in self.probes))
        made = (ref for built in files for ref in (built.artifact, built.check))
        return (self.weights, *made)


BuildOutcome = Annotated[BuildResult | Failed, Field(discriminator="status")]


class BuilderSpent(Exception):
    """Raised by a builder that cannot build any more in this process; the build in hand ended as ``outcome`` says.

    A CUDA error stays with its process: every later build would fail by it, and be blamed for it.
    """

    def __init__(self, outcome: Failed) -> None:
        super().__init__(outcome.reason)
        self.outcome = outcome


class Build(BaseModel):
    """A build as stored: request, lease, outcome."""

    model_config = ConfigDict(frozen=True)

    id: str
    job_id: str
    key: str
    request: BuildRequest
    state: WorkState
    owner: str | None = Field(default=None, description="The build worker that claimed it last.")
    attempt: int = 0
    lease_until: datetime | None = None
    cancel_requested: bool = False
    progress: dict[str, JsonValue] = Field(default_factory=dict, description="Live: {stage, fraction}.")
    outcome: BuildOutcome | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
