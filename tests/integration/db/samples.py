"""Nouns for the tests of the tables, and the shortest ways to have them stored."""

from __future__ import annotations

import base64
import itertools
from datetime import timedelta

from db.store import SqlJobStore
from domain.artifact import ArtifactKind, ArtifactRef, digest_of
from domain.build import AccuracyReport, BuildKind, BuildResult, BuiltArtifact, CandidateRequest, PrepareRequest
from domain.candidate import Candidate
from domain.device import Device, Inventory, RuntimeInfo
from domain.job import DataSpec, DeviceSelector, Job, JobSpec, ModelSpec, TargetSpec
from domain.measurement import (
    CandidateTiming,
    FileTiming,
    Measured,
    MeasuredFile,
    Measurement,
    MeasurementRequest,
    Samples,
    Verdict,
)
from domain.outcome import Blame, Failed
from domain.ports import NewBuild, NewMeasurement, NewTrial, Registration, SearchLease
from domain.trial import Trial

LEASE_S = 30.0
RAW = b"\x00\x01raw float32 blocks\xff"
MODEL = ModelSpec(name="net")
DATA = DataSpec(name="digits")


def ref(name: str = "file", kind: ArtifactKind = ArtifactKind.ONNX) -> ArtifactRef:
    return ArtifactRef(digest=digest_of(name.encode()), size_bytes=len(name), kind=kind)


def spec(name: str = "") -> JobSpec:
    return JobSpec(name=name, model=MODEL, data=DATA, targets=(TargetSpec(),))


def inventory(*runtimes: str, cores: int = 2) -> Inventory:
    return Inventory(
        hostname="box",
        machine="x86_64",
        cpu="test",
        cores=cores,
        memory_bytes=2**30,
        os="linux",
        kernel="6",
        python="3.11",
        agent_version="0",
        runtimes=tuple(RuntimeInfo(name=name, available=True) for name in runtimes or ("onnxruntime",)),
    )


def built(kind: BuildKind = BuildKind.CANDIDATE) -> BuildResult:
    return BuildResult(
        kind=kind,
        accuracy=AccuracyReport(search=0.9),
        macs=1000,
        params=100,
        weights=ref("weights", ArtifactKind.WEIGHTS),
        artifacts=(BuiltArtifact(format="onnx", artifact=ref(), check=ref("check", ArtifactKind.CHECK)),),
    )


def measured(raw: bytes | None = RAW, latency_ms: float = 5.0) -> Measured:
    samples = Samples(pairs=3, data=base64.b64encode(raw).decode()) if raw is not None else None
    timing = FileTiming(load_ms=1, first_ms=1, latency_ms=latency_ms, runs=50)
    candidate = CandidateTiming(
        digest=ref().digest,
        timing=timing,
        latency_ms=latency_ms,
        latency_ci_ms=(4.9, 5.1),
        speedup=2.0,
        speedup_ci=(1.9, 2.1),
        verdict=Verdict.FASTER,
        pairs=20,
        samples=samples,
    )
    return Measured(baseline=timing, candidates=(candidate,), conditions={"load": 0.1})


def failed(blame: Blame, reason: str = "it broke") -> Failed:
    return Failed(stage="measure", reason=reason, blame=blame, retryable=blame is not Blame.CANDIDATE)


def prepare(key: str = "prepare") -> NewBuild:
    return NewBuild(key, PrepareRequest(model=MODEL, data=DATA))


def candidate_build(key: str) -> NewBuild:
    candidate = Candidate(sparsity={"b": 0.5, "a": 0.25}, widths={"b": 8, "a": 12})
    weights = ref("weights", ArtifactKind.WEIGHTS)
    return NewBuild(key, CandidateRequest(model=MODEL, data=DATA, weights=weights, candidate=candidate))


def new_trial(study_number: int = 0, *, build: NewBuild | None = None, target: int = 0) -> NewTrial:
    return NewTrial(
        target=target,
        study_number=study_number,
        params={"width_b": 0.5, "width_a": 0.25},
        distributions={"width_b": "{}", "width_a": "{}"},
        candidate=Candidate(sparsity={"b": 0.5, "a": 0.25}, widths={"b": 8, "a": 12}),
        build=build,
    )


def new_measurement(
    key: str, selector: DeviceSelector | None = None, runtime: str = "onnxruntime", precision: str = "fp32"
) -> NewMeasurement:
    request = MeasurementRequest(
        runtime=runtime,
        precision=precision,
        baseline=MeasuredFile(artifact=ref("dense")),
        candidates=(MeasuredFile(artifact=ref()),),
    )
    return NewMeasurement(key=key, target=0, selector=selector or DeviceSelector(), request=request)


class Seeds:
    """Stores rows for a test."""

    def __init__(self, store: SqlJobStore) -> None:
        self._store = store
        self._numbers = itertools.count(1)

    def job(self, name: str = "") -> tuple[Job, SearchLease]:
        """A RUNNING job and the lease of its search."""
        job, _ = self._store.create_job(spec(name))
        lease = self._store.lease_search(f"search-{job.id}", lease_s=LEASE_S, job_id=job.id)
        assert lease is not None
        return self._store.job(job.id), lease

    def device(
        self, labels: dict[str, str] | None = None, *, runtimes: tuple[str, ...] = ("onnxruntime",), token: str = ""
    ) -> Device:
        number = next(self._numbers)
        self._store.create_join_token(f"join-{number}", expires_in=timedelta(hours=1), uses=1, labels={})
        registration = Registration(
            name=f"box-{number}",
            labels=labels or {},
            inventory=inventory(*runtimes),
            device_token=token or f"device-token-{number}",
            broker_secret=f"secret-{number}",
        )
        return self._store.register_device(f"join-{number}", registration)

    def measurement(self, lease: SearchLease, selector: DeviceSelector | None = None) -> Measurement:
        number = next(self._numbers)
        return self._store.add_measurement(lease, new_measurement(f"m{number}", selector))

    def trial(self, lease: SearchLease, study_number: int = 0) -> Trial:
        build = candidate_build(f"b{study_number}")
        return self._store.add_trial(lease, new_trial(study_number, build=build))
