"""Is a device still the device it was? A fixed file, timed against a second fixed file, says so.

The *golden ratio* is the latency of the golden file over that of the yardstick, from one paired measurement: what disturbs both
alike cancels, so that a busy machine does not look like a sick one. The device measures; the server judges, from the history it
keeps: a ratio should lie within median ± 3 MAD of the device's own good checks, and less than 5 % from the median is never out.

Source: health jobs of LAVA; 3 MAD and 5 % are our choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from statistics import median

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from domain.artifact import Digest
from domain.device import DeviceState

MAIN_RUNTIME = "onnxruntime"  # the one that stands for the machine; any other that fails is lost alone
BAND_MADS = 3.0
BAND_LEAST = 0.05
HISTORY_NEEDED = 5  # good checks before a ratio can be judged
HISTORY_KEPT = 50  # the latest good checks are what the band is made of
COOL_DOWN_S = 20.0  # before a check that was out of its band is repeated
ROWS_KEPT = 500  # checks of one runtime of one device; older ones go
RECHECK_S = 600.0  # what failed its check is asked to check again this long after it


class HealthTrigger(StrEnum):
    """Why a check was made."""

    START = "start"
    PERIODIC = "periodic"
    THROTTLED = "throttled"
    CRASHED = "crashed"
    REPEAT = "repeat"  # the one before was out of its band
    ASKED = "asked"  # by the server, of a quarantined device


class HealthVerdict(StrEnum):
    """LEARNING: too little history to judge by. FAILED: the golden file could not be run at all."""

    LEARNING = "learning"
    PASSED = "passed"
    OUT_OF_BAND = "out_of_band"
    WRONG_OUTPUT = "wrong_output"
    FAILED = "failed"

    @property
    def is_good(self) -> bool:
        return self in {HealthVerdict.LEARNING, HealthVerdict.PASSED}


class GoldenTiming(BaseModel):
    """Golden file against yardstick, in one pass. ``ratio`` = golden latency / yardstick latency."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    latency_ms: float = Field(gt=0, description="Of the golden file: kept as history, not judged.")
    yardstick_ms: float = Field(gt=0)
    ratio: float = Field(gt=0)
    ratio_ci: tuple[float, float]


class HealthCheck(BaseModel):
    """``POST /v1/devices/{id}/health``: either ``timing``, or what went wrong (``code`` and ``reason``)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    runtime: str = Field(max_length=200)
    runtime_version: str = Field(default="", max_length=200, description="Another version starts a history of its own.")
    golden: Digest = Field(description="sha256 of the golden file; another file starts a history of its own.")
    trigger: HealthTrigger
    timing: GoldenTiming | None = None
    code: str | None = Field(default=None, max_length=100)
    reason: str | None = Field(default=None, max_length=2000)
    conditions: dict[str, JsonValue] = Field(default_factory=dict)


class HealthRecord(BaseModel):
    """A check as stored and judged."""

    model_config = ConfigDict(frozen=True)

    id: int
    device_id: str
    at: datetime
    check: HealthCheck
    verdict: HealthVerdict
    band: tuple[float, float] | None = Field(default=None, description="What the ratio was held against.")
    reason: str


class HealthAnswer(BaseModel):
    """What the server makes of a check. ``repeat_after_s``: cool down that long, then check again."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    verdict: HealthVerdict
    state: DeviceState
    reason: str = ""
    repeat_after_s: float | None = None


class Judgement(BaseModel):
    """A verdict with its numbers in words."""

    model_config = ConfigDict(frozen=True)

    verdict: HealthVerdict
    reason: str
    band: tuple[float, float] | None = None


def band_of(ratios: Sequence[float]) -> tuple[float, float] | None:
    """Return median ± 3 MAD, at least 5 % to either side; None below five ratios."""
    if len(ratios) < HISTORY_NEEDED:
        return None
    middle = median(ratios)
    half = max(BAND_MADS * median(abs(ratio - middle) for ratio in ratios), BAND_LEAST * middle)
    return middle - half, middle + half


def judge(check: HealthCheck, good: Sequence[GoldenTiming]) -> Judgement:
    """Judge a check by the device's good ones of the same file and runtime.

    A ratio is out only where its whole interval is: one that is merely noisy proves nothing.
    """
    if check.timing is None:
        said = check.reason or check.code or "no reason was given"
        if check.code == "wrong_output":
            return Judgement(
                verdict=HealthVerdict.WRONG_OUTPUT,
                reason=f"The golden model gives wrong outputs with {check.runtime}: {said}",
            )
        return Judgement(
            verdict=HealthVerdict.FAILED, reason=f"The golden model does not run with {check.runtime}: {said}"
        )
    timing = check.timing
    band = band_of([past.ratio for past in good])
    if band is None:
        return Judgement(
            verdict=HealthVerdict.LEARNING,
            reason=f"golden ratio {timing.ratio:.3f} recorded; {len(good) + 1} of {HISTORY_NEEDED} needed to judge",
        )
    usual_ms = median(past.latency_ms for past in good)
    numbers = (
        f"golden ratio {timing.ratio:.3f} [{timing.ratio_ci[0]:.3f}, {timing.ratio_ci[1]:.3f}], "
        f"band {band[0]:.3f} to {band[1]:.3f} of {len(good)} checks; "
        f"latency {timing.latency_ms:.3f} ms, usually {usual_ms:.3f} ms ({check.runtime})"
    )
    is_out = timing.ratio_ci[1] < band[0] or timing.ratio_ci[0] > band[1]
    return Judgement(verdict=HealthVerdict.OUT_OF_BAND if is_out else HealthVerdict.PASSED, reason=numbers, band=band)
