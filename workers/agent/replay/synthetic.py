"""Latencies computed from the file, for tests of the search: a pure function of the weights' shapes.

Not a prediction of any device. It has what makes devices hard to search: a cost for every layer, and steps, so that one channel
less is worth nothing until eight are gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from domain.artifact import ArtifactRef
from domain.errors import PruneloopError
from domain.measurement import (
    CandidateTiming,
    FileTiming,
    Measured,
    MeasurementOutcome,
    MeasurementRequest,
    Verdict,
)
from domain.outcome import Blame, Failed
from workers.agent.runtimes.base import UnreadableArtifact
from workers.agent.runtimes.names import REPLAY

STEP = 8  # channels come in registers of so many
CALL_MS = 0.02
LAYER_MS = 0.005
WEIGHT_MS = 4e-5  # a 4-byte weight, a sample
# TensorProto.DataType -> bytes; whole numbers of 32 and 64 bits are shapes and indices, not weights
WEIGHT_BYTES = {1: 4, 2: 1, 3: 1, 10: 2, 11: 8, 16: 2}
# Field numbers. Source: onnx/onnx.proto
MODEL_GRAPH, GRAPH_INITIALIZER, TENSOR_DIMS, TENSOR_TYPE = 7, 5, 1, 2
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Weight:
    """A tensor stored in a file: its shape, and the bytes of an element."""

    shape: tuple[int, ...]
    element_bytes: int


def weights_of(path: Path) -> tuple[Weight, ...]:
    """Return the shapes of an ONNX file's weights, two axes or more, without the onnx package.

    Raises:
        UnreadableArtifact: If it is no ONNX file.
    """
    graphs = [value for number, value in _fields(memoryview(path.read_bytes())) if number == MODEL_GRAPH]
    if len(graphs) != 1 or isinstance(graphs[0], int):
        raise UnreadableArtifact(f"The file holds {len(graphs)} graphs; an ONNX file holds one.")
    weights = []
    for number, value in _fields(graphs[0]):
        if number == GRAPH_INITIALIZER and not isinstance(value, int):
            weight = _weight(value)
            if weight is not None:
                weights.append(weight)
    return tuple(weights)


def latency_ms(weights: tuple[Weight, ...], *, batch: int, threads: int) -> float:
    """Return the made-up latency of one call; more threads share the work, not the calls."""
    work_ms = sum(prod(_stepped(weight.shape)) * weight.element_bytes / 4 * WEIGHT_MS for weight in weights)
    return CALL_MS + LAYER_MS * len(weights) + work_ms * batch / threads


class SyntheticRunner:
    """Times nothing: answers with ``latency_ms`` of each file. Implements ``domain.ports.Runner``."""

    def run(
        self,
        request: MeasurementRequest,
        *,
        fetch: Callable[[ArtifactRef], Path],
        report_stage: Callable[[str], None],
        is_cancelled: Callable[[], bool],
    ) -> MeasurementOutcome:
        stage, blame = "fetch", Blame.SYSTEM
        found_ms = []
        try:
            for index, file in enumerate((request.baseline, *request.candidates)):
                stage, blame = "fetch", Blame.SYSTEM
                report_stage(stage)
                path = fetch(file.artifact)
                stage, blame = "load", Blame.CANDIDATE if index else Blame.DEVICE
                report_stage(stage)
                found_ms.append(latency_ms(weights_of(path), batch=request.batch, threads=request.threads))
        except PruneloopError as error:
            is_ours = blame is not Blame.CANDIDATE
            return Failed(stage=stage, reason=error.message, blame=blame, retryable=is_ours, code=error.code)
        if is_cancelled():
            return Failed(stage=stage, reason="Cancelled.", blame=Blame.SYSTEM, retryable=False, code="cancelled")
        baseline_ms, *candidates_ms = found_ms
        return Measured(
            baseline=_timing(baseline_ms),
            candidates=tuple(
                _candidate(file.artifact.digest, baseline_ms, found, request.plan.resolution)
                for file, found in zip(request.candidates, candidates_ms, strict=True)
            ),
            conditions={
                "runtime": REPLAY,
                "provider": "synthetic",
                "precision": request.precision,
                "batch": request.batch,
                "threads": request.threads,
            },
            warnings=("synthetic: computed from the file, nothing was timed",),
        )


def _timing(found_ms: float) -> FileTiming:
    return FileTiming(load_ms=0.0, first_ms=found_ms, latency_ms=found_ms, p50_ms=found_ms, runs=0)


def _candidate(digest: str, baseline_ms: float, found_ms: float, resolution: float) -> CandidateTiming:
    speedup, reach = baseline_ms / found_ms, 1 + resolution
    low, high = speedup / reach, speedup * reach
    return CandidateTiming(
        digest=digest,
        timing=_timing(found_ms),
        latency_ms=found_ms,
        latency_ci_ms=(found_ms / reach, found_ms * reach),
        speedup=speedup,
        speedup_ci=(low, high),
        verdict=Verdict.FASTER if low > 1 else Verdict.SLOWER if high < 1 else Verdict.TIE,
        pairs=0,
    )


def _stepped(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Round the channel axes up to full steps; one channel in (depthwise) stays one."""
    return tuple(-(-size // STEP) * STEP if axis < 2 and size > 1 else size for axis, size in enumerate(shape))


def _weight(tensor: memoryview) -> Weight | None:
    dims: list[int] = []
    kind = 0
    for number, value in _fields(tensor):
        if number == TENSOR_DIMS:
            dims += [value] if isinstance(value, int) else _packed(value)
        elif number == TENSOR_TYPE and isinstance(value, int):
            kind = value
    return Weight(tuple(dims), WEIGHT_BYTES[kind]) if len(dims) > 1 and kind in WEIGHT_BYTES else None


def _packed(data: memoryview) -> list[int]:
    values, place = [], 0
    while place < len(data):
        value, place = _varint(data, place)
        values.append(value)
    return values


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value) of a protobuf message: numbers as they are, everything else as bytes.

    Source: protobuf.dev/programming-guides/encoding
    """
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise UnreadableArtifact("The file is no ONNX file: a field has no number.")
        if wire == VARINT:
            value, place = _varint(data, place)
            yield number, value
            continue
        if wire == BYTES:
            size, place = _varint(data, place)
        elif wire in {FIXED64, FIXED32}:
            size = 8 if wire == FIXED64 else 4
        else:
            raise UnreadableArtifact(f"The file is no ONNX file: wire type {wire} at byte {place}.")
        if place + size > len(data):
            raise UnreadableArtifact("The file is cut off, or no ONNX file: a field is longer than what is left.")
        yield number, data[place : place + size]
        place += size


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise UnreadableArtifact("The file is cut off, or no ONNX file: a number has no end.")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise UnreadableArtifact("The file is no ONNX file: a number of more than ten bytes.")
