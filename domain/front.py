"""A front: what a user leaves with. Fields as in the contract; every latency here was measured, none predicted."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from domain.artifact import Digest


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class PointArtifact(_Part):
    format: str
    digest: Digest
    size_bytes: int
    precision: str = "fp32"
    accuracy: float | None = Field(
        default=None, description="Of this very file, run in its own runtime on the test split: finals only."
    )


class Point(_Part):
    """One deployable file on one target. ``accuracy`` is of the file, in its runtime, on the test split: finals only."""

    trial: int | None = Field(description="None for the dense model.")
    target: int
    stage: Literal["search", "final"] = Field(
        description="`search`: provisional, measured once; `final`: recovered long, re-measured together."
    )
    metric: str = Field(
        default="accuracy", description="What `accuracy` and `accuracy_search` are scores of: more is better."
    )
    metric_value: float | None = Field(
        default=None,
        description="The metric's own value, on the test split where that was touched: the score itself, but of `rmse` the error in"
        " the labels' unit, where less is better.",
    )
    accuracy: float | None = None
    accuracy_search: float
    test_samples: int | None = None
    latency_ms: float
    latency_ci_ms: tuple[float, float]
    speedup: float
    speedup_ci: tuple[float, float]
    is_noisy: bool = False
    is_suspect: bool = Field(default=False, description="The device failed its health check after this was measured.")
    within_max_drop: bool
    macs: int
    params: int
    size_bytes: int
    precision: str
    candidate: dict[str, float] = Field(description="Sparsity per group; empty for the dense model.")
    widths: dict[str, int] = Field(default_factory=dict)
    zeros: str = Field(default="", description="Single weights set to zero (`row:0.8`, `2:4`); empty: none.")
    artifacts: tuple[PointArtifact, ...]
    manifest: Digest | None = None
    measured_at: datetime
    conditions: dict[str, JsonValue]


class Front(_Part):
    """``dense``: the unpruned model in every precision asked. ``items``: non-dominated points, fastest first."""

    target: int
    is_final: bool
    dense: tuple[Point, ...]
    items: tuple[Point, ...]
