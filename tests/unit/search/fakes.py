"""A whole small world in memory: tables with leases, a builder and a device that take simulated time.

Time moves only when the loop waits: then whatever builds or measures next is finished. So a job of minutes runs in
milliseconds, and the same seed runs the same way.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import JsonValue

from domain.artifact import ArtifactKind, ArtifactRef, digest_of
from domain.build import (
    AccuracyReport,
    Build,
    BuildKind,
    BuildOutcome,
    BuildRequest,
    BuildResult,
    BuiltArtifact,
    FinalRequest,
    PrepareRequest,
    SplitSizes,
)
from domain.candidate import GroupInfo, UnprunableLayer
from domain.device import Device, DeviceState, Inventory, RuntimeInfo
from domain.errors import NotFound, StaleAttempt
from domain.job import (
    DataSpec,
    DeviceSelector,
    EndedBy,
    Job,
    JobSpec,
    JobState,
    JobVerb,
    ModelSpec,
    Stage,
    TargetSpec,
    state_after,
)
from domain.measurement import CandidateTiming, FileTiming, Measured, Measurement, MeasurementOutcome, Verdict
from domain.messages import BrokerAddress
from domain.outcome import Blame, Failed
from domain.ports import JobSnapshot, NewBuild, NewMeasurement, NewTrial, Page, SearchLease
from domain.trial import TRIAL_TRANSITIONS, Trial, TrialState, TrialValues
from domain.work import WorkState

START = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
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


def make_device(
    name: str = "box",
    *,
    labels: Mapping[str, str] | None = None,
    online: bool = True,
    precisions: tuple[str, ...] = ("fp32", "fp16", "int8"),
) -> Device:
    inventory = Inventory(
        hostname=name,
        machine="x86_64",
        cpu="test",
        cores=2,
        memory_bytes=2**30,
        os="linux",
        kernel="6",
        python="3.11",
        agent_version="0",
        runtimes=(
            RuntimeInfo(name="onnxruntime", available=True, version="1", formats=("onnx",), precisions=precisions),
        ),
    )
    return Device(
        id=f"device-{name}",
        name=name,
        labels=dict(labels or {}),
        state=DeviceState.ACTIVE,
        inventory=inventory,
        is_online=online,
        created_at=START,
    )


def make_spec(**changes: object) -> JobSpec:
    values: dict[str, object] = {
        "model": ModelSpec(name="net"),
        "data": DataSpec(name="digits"),
        "targets": (TargetSpec(),),
    }
    return JobSpec.model_validate({**values, **changes})


def _ref(text: str, kind: ArtifactKind = ArtifactKind.ONNX, size_bytes: int = 1000) -> ArtifactRef:
    return ArtifactRef(digest=digest_of(text.encode()), size_bytes=size_bytes, kind=kind)


class FakeBuilder:
    """Answers with an accuracy surface: narrow fragile groups cost accuracy, long recovery brings two thirds back."""

    def __init__(self, groups: tuple[GroupInfo, ...] = FEW) -> None:
        self.groups = groups
        self.fault: Callable[[BuildRequest], Failed | None] = lambda request: None
        self.latency_by_digest: dict[str, float] = {}

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
        if isinstance(request, FinalRequest) and candidate is not None:
            lost /= 3
        is_dense_final = isinstance(request, FinalRequest) and candidate is None
        name = f"{request.kind}/{request.batch}/{sorted(widths.items())}/{candidate.key if candidate else 'dense'}"
        is_dense = is_dense_final or isinstance(request, PrepareRequest)
        precisions = (candidate.precision,) if candidate is not None else request.precisions
        total = sum(g.macs for g in self.groups) or 1
        work = sum(g.macs * share[g.name] ** 2 for g in self.groups) / total
        artifacts = []
        for precision in precisions:
            cost, share_of_time = QUANTISED[precision]
            in_fp32 = "dense" if is_dense else name
            file = _ref(in_fp32 if precision == "fp32" else f"{in_fp32}/{precision}")
            self.latency_by_digest[file.digest] = (0.2 + 0.8 * work) * share_of_time
            artifacts.append(
                BuiltArtifact(
                    format="onnx",
                    artifact=file,
                    check=_ref(f"check/{name}/{precision}", ArtifactKind.CHECK),
                    precision=precision,
                    accuracy_search=DENSE_ACCURACY - lost - cost,
                    accuracy_test=DENSE_ACCURACY - 0.01 - lost - cost if isinstance(request, FinalRequest) else None,
                )
            )
        return BuildResult(
            kind=request.kind,
            accuracy=AccuracyReport(
                search=artifacts[0].accuracy_search or 0.0,
                test=artifacts[0].accuracy_test,
                test_samples=1000 if isinstance(request, FinalRequest) else None,
            ),
            macs=int(total * work),
            params=int(1000 * work),
            widths=dict(widths),
            weights=_ref(f"weights/{name}", ArtifactKind.WEIGHTS),
            artifacts=tuple(artifacts),
            groups=self.groups if isinstance(request, PrepareRequest) else (),
            unprunable=(UnprunableLayer(name="head", reason="gives the classes"),),
            splits=SplitSizes(train=800, val=100, test=1000),
            stages_s={"recover": 2.0},
            versions={"torch": "test"},
        )


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


class FakeLauncher:
    """Counts wakes: the world needs none, for it looks for itself."""

    def __init__(self) -> None:
        self.woken: list[str] = []

    def wake_search(self) -> None:
        self.woken.append("search")

    def wake_builders(self) -> None:
        self.woken.append("builders")

    def wake_device(self, device_id: str) -> None:
        self.woken.append(device_id)

    def admit_device(self, device_id: str, broker_secret: str) -> BrokerAddress:
        return BrokerAddress(url="redis://test", key_prefix=device_id, queue=device_id)

    def dismiss_device(self, device_id: str) -> None:
        self.woken.append(f"dismissed {device_id}")


class MemoryArtifacts:
    """Content-addressed bytes in a dict."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def put_bytes(self, data: bytes, kind: ArtifactKind) -> ArtifactRef:
        self.files[digest_of(data)] = data
        return ArtifactRef(digest=digest_of(data), size_bytes=len(data), kind=kind)

    def put_file(self, path: Path, kind: ArtifactKind) -> ArtifactRef:
        return self.put_bytes(path.read_bytes(), kind)

    def put_stream(self, chunks: Iterator[bytes], kind: ArtifactKind, *, max_bytes: int) -> ArtifactRef:
        return self.put_bytes(b"".join(chunks)[:max_bytes], kind)

    def read(self, digest: str) -> bytes:
        return self.files[digest]

    def local_path(self, digest: str) -> Path:
        raise NotFound(f"{digest} is in memory only")

    def exists(self, digest: str) -> bool:
        return digest in self.files


class World:
    """The tables, the clock, one builder and one machine of every device."""

    def __init__(
        self,
        *,
        groups: tuple[GroupInfo, ...] = FEW,
        devices: tuple[Device, ...] | None = None,
        build_s: float = 3.0,
        measure_s: float = 2.0,
    ) -> None:
        self.builder = FakeBuilder(groups)
        self.runner = FakeRunner(self.builder)
        self.devices_known = list((make_device(),) if devices is None else devices)
        self.build_s = build_s
        self.measure_s = measure_s
        self.time = START
        self.job_rows: dict[str, Job] = {}
        self.trial_rows: dict[str, Trial] = {}
        self.build_rows: dict[str, Build] = {}
        self.measurement_rows: dict[str, Measurement] = {}
        self.lease_attempts: dict[str, int] = {}
        self.retry_after: dict[str, datetime] = {}
        self.recorded: list[ArtifactRef] = []
        self.before_wait: Callable[[World], None] = lambda world: None
        self._ids = 0

    # --- jobs
    def create_job(self, spec: JobSpec, *, idempotency_key: str | None = None, principal: str = "") -> tuple[Job, bool]:
        job = Job(id=self._id("job"), name=spec.name, spec=spec, state=JobState.QUEUED, created_at=self.time)
        self.job_rows[job.id] = job
        return job, True

    def job(self, job_id: str) -> Job:
        return self.job_rows[job_id]

    def apply_verb(self, job_id: str, verb: JobVerb) -> Job:
        job = self.job_rows[job_id]
        has_started = any(trial.job_id == job_id for trial in self.trial_rows.values())
        changes: dict[str, object] = {"state": state_after(verb, job.state, has_started=has_started)}
        self._change_job(job_id, **changes)
        return self.job_rows[job_id]

    def snapshot(self, job_id: str) -> JobSnapshot:
        return JobSnapshot(
            job=self.job_rows[job_id],
            trials=tuple(t for t in self.trial_rows.values() if t.job_id == job_id),
            builds=tuple(b for b in self.build_rows.values() if b.job_id == job_id),
            measurements=tuple(m for m in self.measurement_rows.values() if m.job_id == job_id),
        )

    def now(self) -> datetime:
        return self.time

    def wait_for_change(self, job_id: str, timeout_s: float) -> bool:
        self.before_wait(self)
        return self.advance(timeout_s)

    def devices(self, *, page_size: int = 100, page_token: str = "") -> Page[Device]:
        return Page(tuple(self.devices_known))

    def record_artifact(self, ref: ArtifactRef) -> None:
        self.recorded.append(ref)

    # --- search
    def lease_search(self, owner: str, *, lease_s: float, job_id: str | None = None) -> SearchLease | None:
        for job in self.job_rows.values():
            if job_id not in {None, job.id} or job.state not in {JobState.QUEUED, JobState.RUNNING, JobState.STOPPING}:
                continue
            if self.retry_after.get(job.id, self.time) > self.time:
                continue
            attempt = self.lease_attempts[job.id] = self.lease_attempts.get(job.id, 0) + 1
            if job.state is JobState.QUEUED:
                self._change_job(job.id, state=JobState.RUNNING, started_at=self.time)
            return SearchLease(job.id, owner, attempt)
        return None

    def renew_search(self, lease: SearchLease, *, lease_s: float) -> JobState:
        self._fence(lease)
        return self.job_rows[lease.job_id].state

    def release_search(self, lease: SearchLease, *, retry_after_s: float = 0.0) -> None:
        self._fence(lease)
        self.lease_attempts[lease.job_id] += 1
        self.retry_after[lease.job_id] = self.time + timedelta(seconds=retry_after_s)

    def set_stage(self, lease: SearchLease, stage: Stage, *, reason: str | None = None) -> None:
        self._fence(lease)
        self._change_job(lease.job_id, stage=stage, reason=reason)

    def merge_report(self, lease: SearchLease, report: Mapping[str, JsonValue]) -> None:
        self._fence(lease)
        self._change_job(lease.job_id, report={**self.job_rows[lease.job_id].report, **report})

    def end_job(self, lease: SearchLease, state: JobState, *, ended_by: EndedBy, reason: str | None = None) -> None:
        self._fence(lease)
        assert not self.job_rows[lease.job_id].state.is_terminal
        self._change_job(lease.job_id, state=state, ended_by=ended_by, reason=reason, finished_at=self.time)

    def add_trial(self, lease: SearchLease, trial: NewTrial) -> Trial:
        self._fence(lease)
        build = self.add_build(lease, trial.build) if trial.build is not None else None
        row = Trial(
            id=self._id("trial"),
            job_id=lease.job_id,
            number=sum(t.job_id == lease.job_id for t in self.trial_rows.values()),
            target=trial.target,
            study_number=trial.study_number,
            state=TrialState.BUILDING,
            params=trial.params,
            distributions=trial.distributions,
            seed_name=trial.seed_name,
            candidate=trial.candidate,
            build_id=build.id if build is not None else None,
            duplicate_of=trial.duplicate_of,
            created_at=self.time,
        )
        self.trial_rows[row.id] = row
        return row

    def add_build(self, lease: SearchLease, build: NewBuild) -> Build:
        self._fence(lease)
        for row in self.build_rows.values():
            if row.job_id == lease.job_id and row.key == build.key:
                return row
        row = Build(
            id=self._id("build"),
            job_id=lease.job_id,
            key=build.key,
            request=build.request,
            state=WorkState.PENDING,
            created_at=self.time,
        )
        self.build_rows[row.id] = row
        return row

    def find_build(self, key: str) -> Build | None:
        return next((b for b in self.build_rows.values() if b.key == key and b.state is WorkState.DONE), None)

    def adopt_build(self, lease: SearchLease, build: Build) -> Build:
        self._fence(lease)
        row = build.model_copy(update={"id": self._id("build"), "job_id": lease.job_id})
        self.build_rows[row.id] = row
        return row

    def add_measurement(
        self, lease: SearchLease, measurement: NewMeasurement, *, trial_id: str | None = None
    ) -> Measurement:
        self._fence(lease)
        rows = [m for m in self.measurement_rows.values() if (m.job_id, m.key) == (lease.job_id, measurement.key)]
        row = (
            rows[0]
            if rows
            else Measurement(
                id=self._id("measurement"),
                job_id=lease.job_id,
                key=measurement.key,
                target=measurement.target,
                selector=measurement.selector,
                request=measurement.request,
                state=WorkState.PENDING,
                created_at=self.time,
            )
        )
        self.measurement_rows[row.id] = row
        if trial_id is not None:
            self._change_trial(trial_id, TrialState.MEASURING, measurement_id=row.id)
        return row

    def finish_trial(
        self,
        lease: SearchLease,
        trial_id: str,
        state: TrialState,
        *,
        values: TrialValues | None = None,
        reason: str | None = None,
    ) -> None:
        self._fence(lease)
        self._change_trial(trial_id, state, values=values, reason=reason, finished_at=self.time)

    # --- the world goes on
    def advance(self, timeout_s: float) -> bool:
        """Let builder and devices take work, move the clock to what is finished first and finish it."""
        self._claim()
        finishing: list[tuple[datetime, str]] = []
        for build in self.build_rows.values():
            if build.state is WorkState.LEASED and build.started_at is not None:
                took_s = self.build_s * (3 if build.request.kind is BuildKind.FINAL else 1)
                finishing.append((build.started_at + timedelta(seconds=took_s), build.id))
        for measurement in self.measurement_rows.values():
            if measurement.state is WorkState.LEASED and measurement.started_at is not None:
                took_s = self.measure_s * len(measurement.request.candidates)
                finishing.append((measurement.started_at + timedelta(seconds=took_s), measurement.id))
        if not finishing:
            self.time += timedelta(seconds=timeout_s)
            return False
        self.time, found = min(finishing)
        if found in self.build_rows:
            build = self.build_rows[found]
            outcome: BuildOutcome | MeasurementOutcome = self.builder.build(build.request)
            self.build_rows[found] = build.model_copy(update=self._done(outcome))
        else:
            measurement = self.measurement_rows[found]
            outcome = self.runner.run(measurement)
            self.measurement_rows[found] = measurement.model_copy(update=self._done(outcome))
        return True

    def _done(self, outcome: BuildOutcome | MeasurementOutcome) -> dict[str, object]:
        state = WorkState.FAILED if isinstance(outcome, Failed) else WorkState.DONE
        return {"state": state, "outcome": outcome, "finished_at": self.time}

    def _claim(self) -> None:
        started: dict[str, object] = {"state": WorkState.LEASED, "started_at": self.time, "attempt": 1}
        if not any(b.state is WorkState.LEASED for b in self.build_rows.values()):
            for build in self.build_rows.values():
                if build.state is WorkState.PENDING:
                    self.build_rows[build.id] = build.model_copy(update=started)
                    break
        for device in self.devices_known:
            busy = {m.device_id for m in self.measurement_rows.values() if m.state is WorkState.LEASED}
            if device.id in busy or not device.is_online or device.state is not DeviceState.ACTIVE:
                continue
            for row in self.measurement_rows.values():
                if row.state is WorkState.PENDING and row.selector.matches(device.id, device.labels):
                    self.measurement_rows[row.id] = row.model_copy(update={**started, "device_id": device.id})
                    break

    def _fence(self, lease: SearchLease) -> None:
        if self.lease_attempts.get(lease.job_id) != lease.attempt:
            raise StaleAttempt("the lease went to somebody else")
        if self.job_rows[lease.job_id].state.is_terminal:
            raise StaleAttempt("the job is over")

    def _change_job(self, job_id: str, **changes: object) -> None:
        self.job_rows[job_id] = self.job_rows[job_id].model_copy(update=changes)

    def _change_trial(self, trial_id: str, state: TrialState, **changes: object) -> None:
        trial = self.trial_rows[trial_id]
        assert state in TRIAL_TRANSITIONS[trial.state], (trial.state, state)
        self.trial_rows[trial_id] = trial.model_copy(update={"state": state, **changes})

    def _id(self, kind: str) -> str:
        self._ids += 1
        return f"{kind}-{self._ids:04d}-{hashlib.sha256(kind.encode()).hexdigest()[:4]}"


def anywhere() -> DeviceSelector:
    return DeviceSelector()


def failed(blame: Blame, reason: str = "it broke", stage: str = "recover") -> Failed:
    return Failed(stage=stage, reason=reason, blame=blame)
