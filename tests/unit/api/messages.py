"""Requests and outcomes as they travel, for tests."""

from __future__ import annotations

from typing import Any

from domain.artifact import ArtifactKind, ArtifactRef
from domain.job import DeviceSelector
from domain.measurement import MeasuredFile, Measurement, MeasurementRequest
from domain.work import WorkState
from tests.unit.api.fakes import NOW

BASELINE = "sha256:" + "a" * 64
CANDIDATE = "sha256:" + "b" * 64
SPEC: dict[str, Any] = {
    "name": "small",
    "model": {"name": "resnet8"},
    "data": {"name": "mnist-5k"},
    "targets": [{"speedup": 2.0}],
}


def file_of(digest: str) -> MeasuredFile:
    return MeasuredFile(artifact=ArtifactRef(digest=digest, size_bytes=10, kind=ArtifactKind.ONNX))


def measurement(measurement_id: str = "m1", **changes: Any) -> Measurement:
    request = MeasurementRequest(runtime="onnxruntime", baseline=file_of(BASELINE), candidates=(file_of(CANDIDATE),))
    known = Measurement(
        id=measurement_id,
        job_id="job1",
        key="k",
        target=0,
        selector=DeviceSelector(),
        request=request,
        state=WorkState.PENDING,
        created_at=NOW,
    )
    return known.model_copy(update=changes)


def timing(latency_ms: float = 1.0, **changes: Any) -> dict[str, Any]:
    return {"load_ms": 1.0, "first_ms": 2.0, "latency_ms": latency_ms, "runs": 100, **changes}


def candidate(**changes: Any) -> dict[str, Any]:
    return {
        "digest": CANDIDATE,
        "timing": timing(0.5),
        "latency_ms": 0.5,
        "latency_ci_ms": [0.49, 0.51],
        "speedup": 2.0,
        "speedup_ci": [1.96, 2.04],
        "verdict": "faster",
        "pairs": 30,
        **changes,
    }


def measured(**changes: Any) -> dict[str, Any]:
    return {"status": "measured", "baseline": timing(), "candidates": [candidate()], "conditions": {}, **changes}


FAILED = {"status": "failed", "stage": "load", "reason": "it broke", "blame": "device", "retryable": True}
