"""Fronts for the tests of the client, as a finished job leaves them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from domain.front import Front, Point, PointArtifact

NOW = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)


def point(trial: int | None, speedup: float = 1.0, half_width: float = 0.02, **changes: Any) -> Point:
    latency_ms = 1.234 / speedup
    values: dict[str, Any] = {
        "trial": trial,
        "target": 0,
        "stage": "final",
        "accuracy": 0.971,
        "accuracy_search": 0.975,
        "test_samples": 1000,
        "latency_ms": latency_ms,
        "latency_ci_ms": (latency_ms * (1 - half_width), latency_ms * (1 + half_width)),
        "speedup": speedup,
        "speedup_ci": (speedup * (1 - half_width), speedup * (1 + half_width)) if trial is not None else (1.0, 1.0),
        "within_max_drop": True,
        "macs": int(41_300_000 / speedup),
        "params": int(78_000 / speedup),
        "size_bytes": int(320_000 / speedup),
        "precision": "fp32",
        "candidate": {},
        "artifacts": (
            PointArtifact(format="onnx", digest=f"sha256:{trial if trial is not None else 999:064x}", size_bytes=10),
        ),
        "measured_at": NOW,
        "conditions": {},
        **changes,
    }
    return Point(**values)


def front(*items: Point, is_final: bool = True) -> Front:
    return Front(target=0, is_final=is_final, dense=(point(None),), items=items)
