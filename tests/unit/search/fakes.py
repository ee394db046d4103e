"""A whole small world in memory: tables with leases, a builder and a device that take simulated time.

Time moves only when the loop waits: then whatever builds or measures next is finished. So a job of minutes runs in
milliseconds, and the same seed runs the same way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import JsonValue

from domain.access import SYSTEM, Principal
from domain.artifact import ArtifactKind, ArtifactRef, digest_of
from domain.build import (
    Build,
    BuildOutcome,
)
from domain.candidate import GroupInfo
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
from domain.measurement import Measurement, MeasurementOutcome
from domain.messages import BrokerAddress
from domain.outcome import Blame, Failed
from domain.ports import JobSnapshot, NewBuild, NewMeasurement, NewTrial, Page, SearchLease
from domain.trial import TRIAL_TRANSITIONS, Trial, TrialState, TrialValues
from domain.work import WorkState
from tests.unit.search.surfaces import (
    FEW,
    FakeBuilder,
    FakeRunner,
    length_of,
)

START = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)


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
    def create_job(
        self, spec: JobSpec, *, idempotency_key: str | None = None, by: Principal = SYSTEM
    ) -> tuple[Job, bool]:
        job = Job(id=self._id("job"), name=spec.name, spec=spec, state=JobState.QUEUED, created_at=self.time)
        self.job_rows[job.id] = job
        return job, True

    def job(self, job_id: str) -> Job:
        return self.job_rows[job_id]

    def apply_verb(self, job_id: str, verb: JobVerb, *, by: Principal = SYSTEM) -> Job:
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
                took_s = self.build_s * length_of(build.request)
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
