"""A measurement: artifacts timed on a device against the dense model, paired and interleaved.

The number, as arithmetic: ``latency`` is the time of one ``run`` call of the exported file on inputs already in memory.
A *block* is ``runs_per_block`` calls in a row, as many on both sides; its value is its fastest call (interference only ever adds
time). A *pair* is one block of the baseline and one of the candidate, next to each other, in random order. ``speedup`` = median
over pairs of (baseline block / candidate block), and its interval a bootstrap over instances and pairs.
``latency_ms`` of a candidate = baseline latency of the same pass / speedup.

Source: duet benchmarking, arXiv:2001.05811; the minimum, arXiv:1608.04295; details and figures in docs/measurement.md.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictBool

from domain.artifact import ArtifactRef, Digest
from domain.job import DeviceSelector
from domain.outcome import Failed, require_status
from domain.work import WorkState


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MeasurementPlan(_Message):
    """Warm-up, pairs and limits of one measurement."""

    instances: int = Field(
        default=4, ge=1, le=16, description="Fresh sessions of each side; one is drawn at random a block."
    )
    warmup_s: float = Field(
        default=0.2, ge=0, description="Longest warm-up of one session; over once two 5-run medians agree within 2 %."
    )
    block_ms: float = Field(default=5.0, gt=0, description="A pair is at least two of these long.")
    min_pairs: int = Field(default=40, ge=4)
    max_s: float = Field(
        default=2.0, gt=0, description="Timed region of one candidate; then the interval is what it is."
    )
    half_width: float = Field(
        default=0.0075, gt=0, description="Stop when the interval's half-width over the ratio is below this."
    )
    resolution: float = Field(
        default=0.006,
        ge=0,
        description="No interval is given narrower than this to either side: what pairs in one process cannot see.",
    )
    bootstrap: int = Field(default=1000, ge=100)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    seed: int = 0


class MeasuredFile(_Message):
    """A file to time and the check it must pass first."""

    artifact: ArtifactRef
    check: ArtifactRef | None = None


class MeasurementRequest(_Message):
    """Candidates timed against one baseline, round robin, in one session of the device."""

    runtime: str
    precision: str = "fp32"
    batch: int = 1
    threads: int = 1
    baseline: MeasuredFile
    candidates: tuple[MeasuredFile, ...] = Field(min_length=1)
    plan: MeasurementPlan = MeasurementPlan()


class Verdict(StrEnum):
    """``FASTER`` only if the interval of the speed-up lies above 1, ``SLOWER`` only if below; else a tie."""

    FASTER = "faster"
    SLOWER = "slower"
    TIE = "tie"


class Samples(_Message):
    """Raw blocks in order. ``data``: base64 of zlib of little-endian float32, shape (pairs, 3):
    baseline ms, candidate ms, start of the pair in s since the session began."""

    pairs: int
    data: str


class FileTiming(_Message):
    """What one file took on its own: load, first call, steady latency. Milliseconds and bytes."""

    load_ms: float
    first_ms: float
    latency_ms: float = Field(description="Median of its blocks, this file alone.")
    latency_ci_ms: tuple[float, float] | None = Field(
        default=None, description="Interval of that median over its blocks."
    )
    throughput_per_s: float | None = Field(
        default=None,
        description="Samples a second at the batch of the request, one run after the other: batch / latency_ms.",
    )
    p50_ms: float | None = None
    p90_ms: float | None = Field(default=None, description="Of single runs; null below 64 of them.")
    p99_ms: float | None = Field(default=None, description="Of single runs; null below 662 of them.")
    runs: int = Field(ge=0, description="Timed calls in all.")
    peak_memory_bytes: int | None = None
    energy_mj: float | None = Field(
        default=None,
        description="Of one run, the whole package or GPU with its idle draw; null where no counter can be read.",
    )


class CandidateTiming(_Message):
    """One candidate against the baseline of the same pass."""

    digest: Digest
    timing: FileTiming
    latency_ms: float
    latency_ci_ms: tuple[float, float]
    throughput_per_s: float | None = Field(
        default=None,
        description="Samples a second at the batch of the request: batch / latency_ms, as paired as that is.",
    )
    speedup: float
    speedup_ci: tuple[float, float]
    verdict: Verdict
    pairs: int
    discarded_pairs: int = 0
    is_noisy: StrictBool = Field(
        default=False, description="Time was up before the interval was tight enough; see `unmet`."
    )
    unmet: str | None = None
    samples: Samples | None = None


class Measured(_Message):
    """An accepted pass: the baseline, every candidate in the order asked, and the conditions."""

    model_config = ConfigDict(json_schema_extra=require_status)

    status: Literal["measured"] = "measured"
    baseline: FileTiming
    candidates: tuple[CandidateTiming, ...]
    conditions: dict[str, JsonValue] = Field(
        description="Device, runtime and its version, options, clocks, load, temperatures."
    )
    stages_s: dict[str, float] = Field(
        default_factory=dict, description="Seconds: fetch, wait_for_quiet, load, check, warm_up, measure."
    )
    warnings: tuple[str, ...] = ()


MeasurementOutcome = Annotated[Measured | Failed, Field(discriminator="status")]


class Measurement(BaseModel):
    """A measurement as stored: what to time and for whom, lease, outcome."""

    model_config = ConfigDict(frozen=True)

    id: str
    job_id: str
    key: str
    target: int
    selector: DeviceSelector
    request: MeasurementRequest
    state: WorkState
    device_id: str | None = Field(default=None, description="Who claimed it last.")
    attempt: int = 0
    lease_until: datetime | None = None
    cancel_requested: bool = False
    is_suspect: bool = Field(default=False, description="Its device failed a health check afterwards.")
    outcome: MeasurementOutcome | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
