"""In-memory stand-ins for the ports, as far as the API touches them. The real adapters are tested under integration."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

from domain.access import SYSTEM, ApiToken, AuditEntry, Principal, Scope
from domain.artifact import ArtifactKind, ArtifactRef, digest_of, digest_of_file
from domain.device import Device, DeviceState, Inventory, RuntimeInfo
from domain.errors import Invalid, NotFound, StaleAttempt, Unauthorized
from domain.front import Front
from domain.health import HealthAnswer, HealthCheck, HealthRecord, HealthVerdict, judge
from domain.job import Job, JobSpec, JobState, JobVerb, state_after
from domain.measurement import Measurement, MeasurementOutcome
from domain.messages import BrokerAddress, Claim, HeartbeatAction
from domain.metrics import DURATION_BOUNDS_S, DeviceNumbers, Durations, ProductNumbers, Queue
from domain.overview import JobStanding, JobTally
from domain.plan import JobPlan, Pace, QueuePlace
from domain.ports import Event, JobSnapshot, JobStore, Page, Registration
from domain.trial import Trial
from domain.webhook import DeliveryView
from domain.work import WorkState
from search.planning import make_plan, no_builder_here
from search.service import Capabilities

ADMIN_TOKEN = "admin-secret"
DEVICE_TOKEN = "device-secret"
OTHER_DEVICE_TOKEN = "other-device-secret"
NOBODY_TOKEN = "scopeless-secret"
SUBMIT_TOKEN = "submit-secret"
READ_TOKEN = "read-secret"
NOW = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)

INVENTORY = Inventory(
    hostname="box",
    machine="x86_64",
    cpu="A CPU",
    cores=2,
    memory_bytes=4 * 1024**3,
    os="Linux",
    kernel="6.1",
    python="3.11.2",
    agent_version="0.1.0",
    runtimes=(RuntimeInfo(name="onnxruntime", available=True, version="1.24", formats=("onnx",)),),
)


def device(device_id: str, name: str = "box", **changes: object) -> Device:
    known = Device(
        id=device_id,
        name=name,
        labels={"class": "edge"},
        state=DeviceState.ACTIVE,
        inventory=INVENTORY,
        created_at=NOW,
        is_online=True,
        last_seen_at=NOW,
    )
    return known.model_copy(update=changes)


@dataclass
class FakeStore:
    """Just enough of a JobStore; every write is kept for a test to look at."""

    principals: dict[str, Principal] = field(default_factory=dict)
    jobs_by_id: dict[str, Job] = field(default_factory=dict)
    devices_by_id: dict[str, Device] = field(default_factory=dict)
    measurements_by_id: dict[str, Measurement] = field(default_factory=dict)
    artifacts_by_digest: dict[str, ArtifactRef] = field(default_factory=dict)
    trials_by_job: dict[str, list[Trial]] = field(default_factory=dict)
    events_by_job: dict[str, list[Event]] = field(default_factory=dict)
    join_tokens: dict[str, int] = field(default_factory=dict)
    idempotent: dict[str, tuple[JobSpec, str]] = field(default_factory=dict)
    outcomes: list[tuple[str, str, int]] = field(default_factory=list)
    tokens_by_id: dict[str, ApiToken] = field(default_factory=dict)
    sessions: dict[str, Principal] = field(default_factory=dict)
    checks: list[HealthRecord] = field(default_factory=list)
    is_check_due: bool = False
    is_current: bool = True
    crash: Exception | None = None

    def now(self) -> datetime:
        if self.crash is not None:
            raise self.crash
        return NOW

    def schema_is_current(self) -> bool:
        return self.is_current

    def principal(self, token: str) -> Principal | None:
        return self.principals.get(token)

    # jobs
    def create_job(
        self, spec: JobSpec, *, idempotency_key: str | None = None, by: Principal = SYSTEM
    ) -> tuple[Job, bool]:
        if idempotency_key in self.idempotent:
            first, job_id = self.idempotent[idempotency_key]
            if first != spec:
                raise Invalid("Another job was submitted under that key; use a new one.", code="idempotency_mismatch")
            return self.jobs_by_id[job_id], False
        job_id = f"job{len(self.jobs_by_id) + 1}"
        self.jobs_by_id[job_id] = Job(id=job_id, name=spec.name, spec=spec, state=JobState.QUEUED, created_at=NOW)
        if idempotency_key is not None:
            self.idempotent[idempotency_key] = (spec, job_id)
        return self.jobs_by_id[job_id], True

    def job(self, job_id: str) -> Job:
        if self.crash is not None:
            raise self.crash
        try:
            return self.jobs_by_id[job_id]
        except KeyError:
            raise NotFound(f"There is no job {job_id}; GET /v1/jobs lists them.") from None

    def jobs(
        self,
        *,
        states: Sequence[JobState] = (),
        labels: Mapping[str, str | None] | None = None,
        created_from: datetime | None = None,
        created_before: datetime | None = None,
        page_size: int = 50,
        page_token: str = "",
    ) -> Page[Job]:
        found = [job for job in self.jobs_by_id.values() if not states or job.state in states]
        for key, value in (labels or {}).items():
            found = [job for job in found if key in job.spec.labels and value in {None, job.spec.labels[key]}]
        start = int(page_token or 0)
        end = start + page_size
        return Page(tuple(found[start:end]), str(end) if end < len(found) else "")

    def queue_place(self, *, job_id: str | None = None, priority: int = 0) -> QueuePlace:
        return QueuePlace(ahead=0, searchers=1, expected_wait_s=0.0)

    def tallies(self, job_ids: Sequence[str]) -> dict[str, JobTally]:
        return {
            job_id: JobTally(
                trials_by_state=dict(Counter(trial.state.value for trial in self.trials_by_job.get(job_id, ()))),
                device_ids=tuple(
                    sorted(
                        {
                            item.device_id
                            for item in self.measurements_by_id.values()
                            if item.job_id == job_id and item.device_id is not None
                        }
                    )
                ),
            )
            for job_id in job_ids
        }

    def standing(self, job_id: str) -> JobStanding:
        job, trials = self.job(job_id), self.trials_by_job.get(job_id, [])
        mine = [item for item in self.measurements_by_id.values() if item.job_id == job_id]
        return JobStanding(
            job=job,
            now=NOW,
            trials_by_state=Counter(trial.state.value for trial in trials),
            trials_finished=sum(trial.build_id is not None and trial.state.is_terminal for trial in trials),
            measurements_waiting=sum(item.state is WorkState.PENDING for item in mine),
            measurements_running=tuple(item for item in mine if item.state is WorkState.LEASED),
        )

    def pace(self) -> Pace:
        return Pace()

    def find_build(self, key: str) -> None:
        return None

    def apply_verb(self, job_id: str, verb: JobVerb, *, by: Principal = SYSTEM) -> Job:
        job = self.job(job_id)
        changed = job.model_copy(update={"state": state_after(verb, job.state, has_started=job.trials_asked > 0)})
        self.jobs_by_id[job_id] = changed
        return changed

    def snapshot(self, job_id: str) -> JobSnapshot:
        measurements = tuple(item for item in self.measurements_by_id.values() if item.job_id == job_id)
        trials = tuple(self.trials_by_job.get(job_id, ()))
        return JobSnapshot(job=self.job(job_id), trials=trials, measurements=measurements)

    def trials(self, job_id: str, *, page_size: int = 100, page_token: str = "") -> Page[Trial]:
        return Page(tuple(self.trials_by_job.get(self.job(job_id).id, ())[:page_size]))

    def events(self, job_id: str, *, after: int = 0, limit: int = 200) -> tuple[Event, ...]:
        return tuple(event for event in self.events_by_job.get(job_id, ()) if event.id > after)[:limit]

    def follow(self, job_id: str, *, after: int, limit: int = 200) -> tuple[tuple[Event, ...], bool]:
        events = self.events(job_id, after=after, limit=limit)
        return events, self.job(job_id).state.is_terminal and len(events) < limit

    def hear(self, timeout_s: float) -> frozenset[str]:
        time.sleep(0.05)
        return frozenset(self.jobs_by_id)

    # devices
    def create_join_token(
        self, token: str, *, expires_in: timedelta, uses: int, labels: Mapping[str, str], by: Principal = SYSTEM
    ) -> datetime:
        self.join_tokens[token] = uses
        return NOW + expires_in

    def register_device(self, join_token: str, registration: Registration, *, address: str = "") -> Device:
        if self.join_tokens.get(join_token, 0) < 1:
            raise Unauthorized("That join token is spent or unknown; make a new one.", code="bad_join_token")
        self.join_tokens[join_token] -= 1
        joined = device(f"dev{len(self.devices_by_id) + 1}", registration.name)
        self.devices_by_id[joined.id] = joined
        self.principals[registration.device_token] = Principal(joined.name, frozenset({"device"}), joined.id)
        return joined

    def device(self, device_id: str) -> Device:
        try:
            return self.devices_by_id[device_id]
        except KeyError:
            raise NotFound(f"There is no device {device_id}; GET /v1/devices lists them.") from None

    def devices(self, *, page_size: int = 100, page_token: str = "") -> Page[Device]:
        return Page(tuple(self.devices_by_id.values()))

    def numbers(self) -> ProductNumbers:
        devices = tuple(
            DeviceNumbers(one.id, one.name, one.state, one.is_online, Queue(one.queue_depth, 0.0), 0, 12.5, 1.0, 3, 4.5)
            for one in self.devices_by_id.values()
        )
        counts = (0, 2, 1, *(0 for _ in DURATION_BOUNDS_S[2:]))
        return ProductNumbers(
            jobs={("RUNNING", "search"): 2},
            open_trials={"building": 1},
            queues={"search": Queue(), "build": Queue(3, 12.0), "measurement": Queue(1, 2.5)},
            devices=devices,
            ended={("job", "SUCCEEDED"): 4, ("measurement", "done"): 3, ("health", "good"): 2},
            asked=9,
            expired={"build": 1},
            fenced={"measurement": 2},
            durations={"measurement": Durations(counts, 3.25)},
        )

    def set_device_state(
        self, device_id: str, state: DeviceState, *, note: str | None = None, by: Principal = SYSTEM
    ) -> Device:
        self.devices_by_id[device_id] = self.device(device_id).model_copy(update={"state": state, "note": note})
        return self.devices_by_id[device_id]

    def touch_device(self, device_id: str, **_: object) -> Device:
        return self.device(device_id)

    def record_health(self, device_id: str, check: HealthCheck) -> HealthAnswer:
        found = judge(check, [])
        record = HealthRecord(
            id=len(self.checks) + 1,
            device_id=device_id,
            at=NOW,
            check=check,
            verdict=found.verdict,
            reason=found.reason,
        )
        self.checks.append(record)
        if found.verdict is HealthVerdict.WRONG_OUTPUT:
            self.set_device_state(device_id, DeviceState.QUARANTINED, note=found.reason)
        return HealthAnswer(verdict=found.verdict, state=self.device(device_id).state, reason=found.reason)

    def health(self, device_id: str, *, page_size: int = 50, page_token: str = "") -> Page[HealthRecord]:
        own = tuple(record for record in reversed(self.checks) if record.device_id == device_id)
        return Page(own[:page_size])

    def is_health_check_due(self, device_id: str) -> bool:
        return self.is_check_due

    # measurements
    def measurement(self, measurement_id: str) -> Measurement:
        try:
            return self.measurements_by_id[measurement_id]
        except KeyError:
            raise NotFound(f"There is no measurement {measurement_id}.") from None

    def claim_measurement(self, device_id: str, *, lease_s: float) -> Claim | None:
        for item in self.measurements_by_id.values():
            if item.state is WorkState.PENDING:
                changes = {"state": WorkState.LEASED, "attempt": item.attempt + 1, "device_id": device_id}
                leased = item.model_copy(update=changes)
                self.measurements_by_id[item.id] = leased
                return Claim(measurement_id=item.id, attempt=leased.attempt, lease_s=lease_s, request=leased.request)
        return None

    def heartbeat_measurement(
        self, measurement_id: str, device_id: str, attempt: int, *, lease_s: float
    ) -> HeartbeatAction:
        held = self.measurement(measurement_id)
        is_held = (held.device_id, held.attempt) == (device_id, attempt)
        return HeartbeatAction.CONTINUE if is_held else HeartbeatAction.CANCEL

    def finish_measurement(
        self, measurement_id: str, device_id: str, attempt: int, outcome: MeasurementOutcome
    ) -> None:
        self._fence(measurement_id, device_id, attempt)
        self.outcomes.append((measurement_id, device_id, attempt))

    def release_measurement(self, measurement_id: str, device_id: str, attempt: int) -> None:
        self._fence(measurement_id, device_id, attempt)
        changes = {"state": WorkState.PENDING, "attempt": attempt - 1}
        self.measurements_by_id[measurement_id] = self.measurement(measurement_id).model_copy(update=changes)

    def _fence(self, measurement_id: str, device_id: str, attempt: int) -> None:
        held = self.measurement(measurement_id)
        if (held.device_id, held.attempt) != (device_id, attempt):
            raise StaleAttempt("That lease went to somebody else; drop the work and claim anew.")

    # artifacts
    def may_fetch(self, device_id: str, digest: str) -> bool:
        held = [item for item in self.measurements_by_id.values() if item.device_id == device_id]
        return any(digest in item.request.model_dump_json() for item in held if item.state is WorkState.LEASED)

    # tokens
    def create_token(
        self, token: str, *, name: str, scopes: Sequence[Scope], expires_in: timedelta | None, by: Principal = SYSTEM
    ) -> ApiToken:
        made = ApiToken(id=f"token{len(self.tokens_by_id) + 1}", name=name, scopes=tuple(scopes), created_at=NOW)
        self.tokens_by_id[made.id] = made
        self.principals[token] = Principal(name, frozenset(scopes), token_id=made.id)
        return made

    def tokens(self, *, page_size: int = 50, page_token: str = "") -> Page[ApiToken]:
        return Page(tuple(self.tokens_by_id.values()))

    def revoke_token(self, token_id: str, *, by: Principal = SYSTEM) -> None:
        if token_id not in self.tokens_by_id:
            raise NotFound(f"There is no token {token_id}.")
        self.principals = {text: who for text, who in self.principals.items() if who.token_id != token_id}

    def open_session(self, token: str, session: str, *, lasts: timedelta, address: str = "") -> datetime | None:
        self.sessions[session] = self.principals[token]
        return NOW + lasts

    def session_principal(self, session: str) -> Principal | None:
        return self.sessions.get(session)

    def close_session(self, session: str, *, by: Principal = SYSTEM) -> None:
        self.sessions.pop(session, None)

    def audit(
        self, *, actor: str | None = None, subject: str | None = None, page_size: int = 50, page_token: str = ""
    ) -> Page[AuditEntry]:
        return Page(())

    def deliveries(self, *, page_size: int = 50, page_token: str = "") -> Page[DeliveryView]:
        return Page(())

    def record_artifact(self, ref: ArtifactRef, *, by: Principal | None = None) -> None:
        self.artifacts_by_digest[ref.digest] = ref

    def artifact(self, digest: str) -> ArtifactRef:
        try:
            return self.artifacts_by_digest[digest]
        except KeyError:
            raise NotFound(f"There is no artifact {digest}.") from None


@dataclass
class FakeLauncher:
    """Counts wakes and admits everybody, unless told to fail."""

    searches: int = 0
    woken: list[str] = field(default_factory=list)
    dismissed: list[str] = field(default_factory=list)
    failure: Exception | None = None

    def wake_search(self) -> None:
        self.searches += 1

    def wake_builders(self) -> None: ...

    def wake_device(self, device_id: str) -> None:
        self.woken.append(device_id)

    def admit_device(self, device_id: str, broker_secret: str) -> BrokerAddress:
        if self.failure is not None:
            raise self.failure
        return BrokerAddress(url=f"redis://{device_id}:{broker_secret}@h/0", key_prefix="d:", queue=device_id)

    def dismiss_device(self, device_id: str) -> None:
        self.dismissed.append(device_id)


@dataclass
class FakeArtifacts:
    """Files in a folder, by digest."""

    folder: Path

    def put_file(self, path: Path, kind: ArtifactKind) -> ArtifactRef:
        digest = digest_of_file(path)
        self._path(digest).write_bytes(path.read_bytes())
        return ArtifactRef(digest=digest, size_bytes=path.stat().st_size, kind=kind)

    def put_bytes(self, data: bytes, kind: ArtifactKind) -> ArtifactRef:
        self._path(digest_of(data)).write_bytes(data)
        return ArtifactRef(digest=digest_of(data), size_bytes=len(data), kind=kind)

    def put_stream(self, chunks: Iterator[bytes], kind: ArtifactKind, *, max_bytes: int) -> ArtifactRef:
        return self.put_bytes(b"".join(chunks), kind)

    def read(self, digest: str) -> bytes:
        return self._path(digest).read_bytes()

    def local_path(self, digest: str) -> Path:
        if not self.exists(digest):
            raise NotFound(f"There is no artifact {digest}.")
        return self._path(digest)

    def exists(self, digest: str) -> bool:
        return self._path(digest).exists()

    def _path(self, digest: str) -> Path:
        return self.folder / digest.removeprefix("sha256:")


@dataclass(frozen=True)
class FakePlugin:
    group: str
    name: str
    source: str
    error: str | None = None


@dataclass
class FakeService:
    """The use cases straight on the fake store."""

    store: FakeStore
    fronts: dict[tuple[str, int], Front] = field(default_factory=dict)
    capabilities: Capabilities = field(
        default_factory=lambda: Capabilities(models=("resnet8",), datasets=("mnist-5k",))
    )
    known_plugins: tuple[FakePlugin, ...] = (FakePlugin("pruneloop.models", "resnet8", "builtin"),)

    def create_job(
        self, spec: JobSpec, *, idempotency_key: str | None = None, by: Principal = SYSTEM
    ) -> tuple[Job, bool]:
        return self.store.create_job(spec, idempotency_key=idempotency_key, by=by)

    def apply_verb(self, job_id: str, verb: JobVerb, *, by: Principal = SYSTEM) -> Job:
        return self.store.apply_verb(job_id, verb, by=by)

    def plan(self, spec: JobSpec) -> JobPlan:
        return make_plan(spec, cast(JobStore, self.store), no_builder_here)

    def front(self, job_id: str, target: int) -> Front:
        self.store.job(job_id)
        return self.fronts.get((job_id, target), Front(target=target, is_final=False, dense=(), items=()))

    def job_artifacts(self, job_id: str) -> list[object]:
        self.store.job(job_id)
        return []

    def plugins(self) -> list[FakePlugin]:
        return list(self.known_plugins)


def seeded_store() -> FakeStore:
    """Return a store with two devices and their tokens, an admin, and a token without scopes."""
    store = FakeStore()
    store.devices_by_id = {"dev1": device("dev1"), "dev2": device("dev2", "other")}
    store.principals = {
        ADMIN_TOKEN: Principal("admin", frozenset({"admin"})),
        DEVICE_TOKEN: Principal("box", frozenset({"device"}), "dev1"),
        OTHER_DEVICE_TOKEN: Principal("other", frozenset({"device"}), "dev2"),
        NOBODY_TOKEN: Principal("nobody", frozenset()),
        SUBMIT_TOKEN: Principal("submitter", frozenset({"submit"}), token_id="token_submit"),
        READ_TOKEN: Principal("reader", frozenset({"read"}), token_id="token_read"),
    }
    return store


def event(number: int, job_id: str = "job1", type_: str = "job.state") -> Event:
    return Event(id=number, job_id=job_id, type=type_, data={"n": number}, at=NOW)
