"""What a simulated builder and device answer: an accuracy surface and a latency surface over widths."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import product

from domain.artifact import ArtifactKind, ArtifactRef, digest_of
from domain.build import (
    AccuracyReport,
    BuildOutcome,
    BuildRequest,
    BuildResult,
    BuiltArtifact,
    FinalRequest,
    LatencyProbe,
    PrepareRequest,
    SplitSizes,
)
from domain.candidate import Candidate, GroupInfo, UnprunableLayer
from domain.formats import why_not
from domain.measurement import CandidateTiming, FileTiming, Measured, Measurement, MeasurementOutcome, Verdict
from domain.outcome import Failed
from pruning.latency_probes import shapes

SPREAD = 25.0  # of the labels, where the metric is the error in their unit
DENSE_ACCURACY = 0.95
# What a precision does to any file: accuracy it costs, share of the fp32 time it takes.
QUANTISED = {"fp32": (0.0, 1.0), "fp16": (0.0, 1.25), "int8": (0.008, 0.4)}


def group(name: str, channels: int = 64, *, stage: int = 0, residual: bool = False, fragile: float = 0.05) -> GroupInfo:
    return GroupInfo(
        name=name,
        channels=channels,
        stage=stage,
        is_residual=residual,
        topology="conv-bn",
        members=(f"{name}.weight",),
        params=channels * 100,
        macs=channels * 10_000,
        sensitivity={"0.25": fragile * 0.2, "0.5": fragile, "0.75": fragile * 4},
    )


FEW = (group("a", 32), group("b", 64, fragile=0.02), group("c", 128, fragile=0.01))
MANY = tuple(
    group(f"layer{stage}.{block}", 16 * 2**stage, stage=stage, residual=block == 0, fragile=0.01 * (1 + stage + block))
    for stage in range(3)
    for block in range(4)
)


def ref_of(text: str, kind: ArtifactKind = ArtifactKind.ONNX, size_bytes: int = 1000) -> ArtifactRef:
    return ArtifactRef(digest=digest_of(text.encode()), size_bytes=size_bytes, kind=kind)


class FakeBuilder:
    """Answers with an accuracy surface: narrow fragile groups cost accuracy, long recovery brings two thirds back."""

    def __init__(self, groups: tuple[GroupInfo, ...] = FEW) -> None:
        self.groups = groups
        self.fault: Callable[[BuildRequest], Failed | None] = lambda request: None
        self.mishap: Callable[[Candidate], float] = lambda candidate: 0.0  # what a recovery gone wrong costs more
        self.latency_by_digest: dict[str, float] = {}
        self.is_slow_to_recover = False
        self.zeros_gain: dict[str, float] = {}  # what a pattern of zeros divides the latency by; none: nothing

    def build(self, request: BuildRequest) -> BuildOutcome:
        failed = self.fault(request)
        if failed is not None:
            return failed
        candidate = None if isinstance(request, PrepareRequest) else request.candidate
        widths = candidate.widths if candidate is not None else {g.name: g.channels for g in self.groups}
        share = {g.name: widths[g.name] / g.channels for g in self.groups}
        lost = sum(g.sensitivity["0.75"] * (1 - share[g.name]) ** 3 for g in self.groups)
        if candidate is not None:
            lost *= 1.0 - 0.2 * candidate.importance.taylor
            lost += 0.01 * abs(math.log(candidate.recovery.learning_rate / 0.03))
            lost += 0.004 if candidate.zeros else 0.0
            lost += self.mishap(candidate)
        if isinstance(request, FinalRequest) and candidate is not None:
            lost /= 3
        is_dense_final = isinstance(request, FinalRequest) and candidate is None
        name = f"{request.kind}/{request.batch}/{sorted(widths.items())}/{candidate.key if candidate else 'dense'}"
        is_dense = is_dense_final or isinstance(request, PrepareRequest)
        precisions = (candidate.precision,) if candidate is not None else request.precisions
        total = sum(g.macs for g in self.groups) or 1
        work = sum(g.macs * share[g.name] ** 2 for g in self.groups) / total
        artifacts = []
        for format, precision in product(request.formats, precisions):
            if why_not(format, precision=precision) is not None:
                continue
            cost, share_of_time = QUANTISED[precision]
            in_fp32 = "dense" if is_dense else name
            told = [in_fp32, *([precision] if precision != "fp32" else []), *([format] if format != "onnx" else [])]
            file = ref_of("/".join(told), ArtifactKind(format))
            gain = self.zeros_gain.get(candidate.zeros, 1.0) if candidate is not None else 1.0
            self.latency_by_digest[file.digest] = (0.2 + 0.8 * work) * share_of_time / gain
            artifacts.append(
                BuiltArtifact(
                    format=format,
                    artifact=file,
                    check=ref_of(f"check/{name}/{precision}", ArtifactKind.CHECK),
                    precision=precision,
                    accuracy_search=DENSE_ACCURACY - lost - cost,
                    compressed_bytes=500 if candidate is not None and candidate.zeros else 900 if is_dense else None,
                    accuracy_test=DENSE_ACCURACY - 0.01 - lost - cost if isinstance(request, FinalRequest) else None,
                )
            )
        return BuildResult(
            kind=request.kind,
            accuracy=AccuracyReport(
                metric=request.metric,
                spread_search=SPREAD if request.metric == "rmse" else None,
                spread_test=SPREAD if request.metric == "rmse" and isinstance(request, FinalRequest) else None,
                search=artifacts[0].accuracy_search or 0.0,
                test=artifacts[0].accuracy_test,
                test_samples=1000 if isinstance(request, FinalRequest) else None,
            ),
            macs=int(total * work),
            params=int(1000 * work),
            widths=dict(widths),
            weights=ref_of(f"weights/{name}", ArtifactKind.WEIGHTS),
            artifacts=tuple(artifacts),
            groups=self.groups if isinstance(request, PrepareRequest) else (),
            probes=self._probes() if isinstance(request, PrepareRequest) and request.formats[0] == "onnx" else (),
            unprunable=(UnprunableLayer(name="head", reason="gives the classes"),),
            is_slow_to_recover=self.is_slow_to_recover,
            splits=SplitSizes(train=800, val=100, test=1000),
            stages_s={"recover": 2.0},
            versions={"torch": "test"},
        )

    def _probes(self) -> tuple[LatencyProbe, ...]:
        found = []
        for candidate in shapes(self.groups, ()):
            name = f"probe/{sorted(candidate.widths.items())}"
            file = ref_of(name)
            work = sum(g.macs * (candidate.widths[g.name] / g.channels) ** 2 for g in self.groups)
            self.latency_by_digest[file.digest] = 0.2 + 0.8 * work / (sum(g.macs for g in self.groups) or 1)
            built = BuiltArtifact(format="onnx", artifact=file, check=ref_of(f"check/{name}", ArtifactKind.CHECK))
            found.append(LatencyProbe(widths=candidate.widths, file=built))
        return tuple(found)


def length_of(request: BuildRequest) -> float:
    """Return how long a build takes, in candidate builds: two thirds of those are recovery, which grows with the epochs."""
    if not isinstance(request, FinalRequest) or request.candidate is None or not request.candidate.recovery.epochs:
        return 1.0
    return (1 + 2 * request.epochs / request.candidate.recovery.epochs) / 3


class FakeRunner:
    """Times files by the builder's latency surface, with a little noise seeded by the file."""

    def __init__(self, builder: FakeBuilder) -> None:
        self._builder = builder
        self.fault: Callable[[Measurement], Failed | None] = lambda measurement: None
        self.drift: Callable[[Measurement], float] = lambda measurement: 1.0

    def run(self, measurement: Measurement) -> MeasurementOutcome:
        failed = self.fault(measurement)
        if failed is not None:
            return failed
        baseline = self._builder.latency_by_digest[measurement.request.baseline.artifact.digest]
        baseline_ms = 10.0 * baseline * self.drift(measurement)
        timings = []
        for file in measurement.request.candidates:
            digest = file.artifact.digest
            noise = random.Random(digest).uniform(0.995, 1.005)
            ratio = self._builder.latency_by_digest[digest] / baseline * noise
            latency_ms = baseline_ms * ratio
            timings.append(
                CandidateTiming(
                    digest=digest,
                    timing=FileTiming(load_ms=1, first_ms=1, latency_ms=latency_ms, runs=50),
                    latency_ms=latency_ms,
                    latency_ci_ms=(latency_ms * 0.99, latency_ms * 1.01),
                    speedup=1 / ratio,
                    speedup_ci=(0.99 / ratio, 1.01 / ratio),
                    verdict=Verdict.FASTER,
                    pairs=20,
                )
            )
        return Measured(
            baseline=FileTiming(load_ms=1, first_ms=1, latency_ms=baseline_ms, p50_ms=baseline_ms, runs=50),
            candidates=tuple(timings),
            conditions={"load": 0.1},
            stages_s={"measure": 1.0},
        )
