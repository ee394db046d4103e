"""The six seams. Everything else is a plain function or a plain class.

JobStore        the tables, the truth                 db.store.SqlJobStore
ArtifactStore   content-addressed files               db.artifacts.FileArtifactStore
Builder         request -> built artifact             pruning.builder.TorchBuilder
Runner          request -> measured outcome           workers.agent.sandbox.SandboxRunner, replay
Launcher        wakes whoever carries work            workers.dispatch.CeleryLauncher
Clock           the time leases and budgets go by     the database's
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from pydantic import JsonValue

from domain.access import SYSTEM, ApiToken, AuditEntry, Principal, Scope
from domain.artifact import ArtifactKind, ArtifactRef
from domain.build import Build, BuildOutcome, BuildRequest
from domain.candidate import Candidate
from domain.device import Device, DeviceState, Inventory
from domain.health import HealthAnswer, HealthCheck, HealthRecord
from domain.job import DeviceSelector, EndedBy, Job, JobSpec, JobState, JobVerb, Stage
from domain.measurement import Measurement, MeasurementOutcome, MeasurementRequest
from domain.messages import BrokerAddress, Claim, HeartbeatAction
from domain.metrics import ProductNumbers
from domain.overview import JobStanding, JobTally
from domain.plan import Pace, QueuePlace
from domain.trial import Trial, TrialState, TrialValues
from domain.webhook import Delivery, DeliveryView

T = TypeVar("T")


@dataclass(frozen=True)
class Page(Generic[T]):
    """A slice of a list; ``next_page_token`` is empty on the last."""

    items: tuple[T, ...]
    next_page_token: str = ""


@dataclass(frozen=True)
class SearchLease:
    """The exclusive, expiring hold on a job's search. Every write of the loop carries it and is fenced by ``attempt``."""

    job_id: str
    owner: str
    attempt: int


@dataclass(frozen=True)
class NewBuild:
    """A build to be queued; the same ``key`` in one job is the same build."""

    key: str
    request: BuildRequest


@dataclass(frozen=True)
class NewMeasurement:
    """A measurement to be queued; the same ``key`` in one job is the same measurement."""

    key: str
    target: int
    selector: DeviceSelector
    request: MeasurementRequest


@dataclass(frozen=True)
class NewTrial:
    """A trial as asked; the store gives it its number within the job."""

    target: int
    study_number: int
    params: dict[str, JsonValue]
    distributions: dict[str, JsonValue]
    candidate: Candidate
    seed_name: str | None = None
    build: NewBuild | None = None
    duplicate_of: int | None = None


@dataclass(frozen=True)
class Event:
    """Something that happened to a job; ``id`` grows without gaps visible to a reader that resumes."""

    id: int
    job_id: str
    type: str
    data: dict[str, JsonValue]
    at: datetime


@dataclass(frozen=True)
class WorkToWake:
    """What the reaper found: who should be woken, and what it put right on the way.

    ``device_ids`` have work waiting; ``recheck_ids`` should measure the golden model again.
    """

    search: int = 0
    builds: int = 0
    device_ids: tuple[str, ...] = ()
    recheck_ids: tuple[str, ...] = ()
    expired: int = 0
    poisoned: int = 0


@dataclass(frozen=True)
class Registration:
    """A device as it is written when it joins."""

    name: str
    labels: Mapping[str, str]
    inventory: Inventory
    device_token: str
    broker_secret: str


class Clock(Protocol):
    def now(self) -> datetime:
        """Return the time that leases and budgets go by, timezone-aware UTC."""
        ...


class ArtifactStore(Protocol):
    """Content-addressed files: written whole or not at all, verified by digest on every read."""

    def put_file(self, path: Path, kind: ArtifactKind) -> ArtifactRef:
        """Store a copy of a file and return its reference. Storing the same bytes twice is one file."""
        ...

    def put_bytes(self, data: bytes, kind: ArtifactKind) -> ArtifactRef: ...

    def put_stream(self, chunks: Iterator[bytes], kind: ArtifactKind, *, max_bytes: int) -> ArtifactRef:
        """Store a stream. Raises Invalid ``too_large`` past ``max_bytes``, leaving nothing behind."""
        ...

    def read(self, digest: str) -> bytes:
        """Return the bytes. Raises NotFound, or Unavailable ``artifact_corrupt`` where they do not match the digest."""
        ...

    def local_path(self, digest: str) -> Path:
        """Return a verified local file that must not be changed."""
        ...

    def exists(self, digest: str) -> bool: ...

    def remove(self, digest: str, *, unused_for_s: float) -> bool:
        """Delete what was stored longer ago than that; whether it is gone now. Raises NotFound."""
        ...


class Launcher(Protocol):
    """Wakes whoever carries work. A wake carries no work and may be lost: the reaper wakes again. Never raises."""

    def wake_search(self) -> None: ...

    def wake_builders(self) -> None: ...

    def wake_device(self, device_id: str) -> None: ...

    def admit_device(self, device_id: str, broker_secret: str) -> BrokerAddress:
        """Give a device its own queue and a broker user that can touch nothing else. Raises Unavailable."""
        ...

    def dismiss_device(self, device_id: str) -> None:
        """Take the broker user away."""
        ...


BuildProgress = Callable[[str, float], None]
"""``(stage, fraction done 0..1)``; raises ``BuildAbandoned`` where the build should stop now (cancelled or draining)."""

Hold = Callable[[], AbstractContextManager[None]]
"""Entered around every batch of work: waits while a measurement on the same host asked for quiet."""


class BuildAbandoned(Exception):
    """Raised by a build's progress callback and let through by builders."""


class Builder(Protocol):
    """Turns a request into artifacts. Bad input and bad candidates come back as ``Failed``; ``BuilderSpent`` ends the process."""

    def build(self, request: BuildRequest, *, progress: BuildProgress, hold: Hold) -> BuildOutcome: ...


class Runner(Protocol):
    """Times files on this device. ``fetch`` gives a verified local path of an artifact; ``is_cancelled`` is polled."""

    def run(
        self,
        request: MeasurementRequest,
        *,
        fetch: Callable[[ArtifactRef], Path],
        report_stage: Callable[[str], None],
        is_cancelled: Callable[[], bool],
    ) -> MeasurementOutcome: ...


@dataclass(frozen=True)
class JobSnapshot:
    """Everything the loop needs of one job, read in one transaction."""

    job: Job
    trials: tuple[Trial, ...]
    builds: tuple[Build, ...] = field(default=())
    measurements: Sequence[Measurement] = field(default=())


class JobStore(Clock, Protocol):
    """The tables. Every method is one transaction; leases go by the database's clock; writes of a lost lease raise StaleAttempt."""

    # --- jobs -------------------------------------------------------------------------------------------------------
    def create_job(
        self, spec: JobSpec, *, idempotency_key: str | None = None, by: Principal = SYSTEM
    ) -> tuple[Job, bool]:
        """Insert a job; returns (job, is_new).

        Same key and body: the first job. Other body: Invalid ``idempotency_mismatch``. The first still under way: Conflict
        ``idempotency_in_progress``.
        """
        ...

    def job(self, job_id: str) -> Job: ...

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
        """Return a page of jobs, newest first; a label without a value matches any."""
        ...

    def queue_place(self, *, job_id: str | None = None, priority: int = 0) -> QueuePlace:
        """Return the place of a queued job, or of one of a priority that would be submitted now."""
        ...

    def tallies(self, job_ids: Sequence[str]) -> dict[str, JobTally]:
        """Return counts of the rows of some jobs, by id; a job without rows has an empty tally."""
        ...

    def pace(self) -> Pace:
        """Return how long builds and measurements took lately."""
        ...

    def apply_verb(self, job_id: str, verb: JobVerb, *, by: Principal = SYSTEM) -> Job:
        """Move a job by ``domain.job.state_after``; cancel also cancels its work. Raises WrongState, NotFound."""
        ...

    def standing(self, job_id: str) -> JobStanding: ...

    def snapshot(self, job_id: str) -> JobSnapshot: ...

    def trials(self, job_id: str, *, page_size: int = 100, page_token: str = "") -> Page[Trial]: ...

    def measurement(self, measurement_id: str) -> Measurement: ...

    def events(self, job_id: str, *, after: int = 0, limit: int = 200) -> tuple[Event, ...]: ...

    def follow(self, job_id: str, *, after: int, limit: int = 200) -> tuple[tuple[Event, ...], bool]:
        """Return the events of a job past an id, and whether it is over and these are its last. Raises NotFound."""
        ...

    def hear(self, timeout_s: float) -> frozenset[str]:
        """Block until some job changes or time is up; return those that did."""
        ...

    def wait_for_change(self, job_id: str, timeout_s: float) -> bool:
        """Block until something of the job changed or time is up; True if it changed."""
        ...

    def numbers(self) -> ProductNumbers:
        """Return what waits, what was done and what went wrong, in numbers that survive restarts."""
        ...

    # --- search, fenced by the lease --------------------------------------------------------------------------------
    def lease_search(self, owner: str, *, lease_s: float, job_id: str | None = None) -> SearchLease | None:
        """Take the longest-waiting QUEUED, RUNNING or STOPPING job without a live lease (or this one); QUEUED becomes RUNNING."""
        ...

    def renew_search(self, lease: SearchLease, *, lease_s: float) -> JobState: ...

    def release_search(self, lease: SearchLease, *, retry_after_s: float = 0.0) -> None:
        """Give the job back; nobody takes it before ``retry_after_s``."""
        ...

    def set_stage(self, lease: SearchLease, stage: Stage, *, reason: str | None = None) -> None: ...

    def merge_report(self, lease: SearchLease, report: Mapping[str, JsonValue]) -> None:
        """Merge top-level keys into the job's report."""
        ...

    def end_job(self, lease: SearchLease, state: JobState, *, ended_by: EndedBy, reason: str | None = None) -> None: ...

    def add_trial(self, lease: SearchLease, trial: NewTrial) -> Trial:
        """Insert a trial and its build, if any, in one transaction."""
        ...

    def add_build(self, lease: SearchLease, build: NewBuild) -> Build: ...

    def add_measurement(
        self, lease: SearchLease, measurement: NewMeasurement, *, trial_id: str | None = None
    ) -> Measurement:
        """Queue a measurement; with ``trial_id`` the trial moves to MEASURING in the same transaction."""
        ...

    def finish_trial(
        self,
        lease: SearchLease,
        trial_id: str,
        state: TrialState,
        *,
        values: TrialValues | None = None,
        reason: str | None = None,
    ) -> None: ...

    def find_build(self, key: str) -> Build | None:
        """Return a finished build of any job with this key: prepare builds are paid once."""
        ...

    def adopt_build(self, lease: SearchLease, build: Build) -> Build:
        """Write another job's finished build into this job as done, at no cost."""
        ...

    # --- work, fenced by the attempt --------------------------------------------------------------------------------
    def claim_build(self, owner: str, *, lease_s: float) -> Build | None: ...

    def heartbeat_build(
        self, build_id: str, attempt: int, *, lease_s: float, progress: Mapping[str, JsonValue] | None = None
    ) -> HeartbeatAction: ...

    def finish_build(self, build_id: str, attempt: int, outcome: BuildOutcome) -> None:
        """Write the outcome; a retryable failure with attempts left goes back to PENDING. Raises StaleAttempt."""
        ...

    def release_build(self, build_id: str, attempt: int) -> None:
        """Hand a build back untouched: it goes to PENDING and the attempt does not count."""
        ...

    def claim_measurement(self, device_id: str, *, lease_s: float) -> Claim | None:
        """Lease the oldest waiting measurement this device may do; its own unfinished one first, as a new attempt."""
        ...

    def heartbeat_measurement(
        self, measurement_id: str, device_id: str, attempt: int, *, lease_s: float
    ) -> HeartbeatAction: ...

    def finish_measurement(
        self, measurement_id: str, device_id: str, attempt: int, outcome: MeasurementOutcome
    ) -> None:
        """Write the outcome. A stale one is kept in a table apart and raises StaleAttempt; the same one twice is accepted once."""
        ...

    def release_measurement(self, measurement_id: str, device_id: str, attempt: int) -> None: ...

    def free_leases(self, owners: Sequence[str]) -> int:
        """Let the leases of search and build workers known to be dead run out now; return how many."""
        ...

    def reap(self) -> WorkToWake:
        """Poison what has used up its attempts and say who should be woken. Idempotent; any number may run."""
        ...

    # --- devices and tokens -----------------------------------------------------------------------------------------
    def create_join_token(
        self, token: str, *, expires_in: timedelta, uses: int, labels: Mapping[str, str], by: Principal = SYSTEM
    ) -> datetime: ...

    def register_device(self, join_token: str, registration: Registration, *, address: str = "") -> Device:
        """Use up one use of the token and insert the device, in one transaction. Raises Unauthorized ``bad_join_token``."""
        ...

    def device(self, device_id: str) -> Device: ...

    def devices(self, *, page_size: int = 100, page_token: str = "") -> Page[Device]: ...

    def set_device_state(
        self, device_id: str, state: DeviceState, *, note: str | None = None, by: Principal = SYSTEM
    ) -> Device: ...

    def touch_device(
        self,
        device_id: str,
        *,
        clock: datetime | None = None,
        conditions: Mapping[str, JsonValue] | None = None,
        inventory: Inventory | None = None,
    ) -> Device:
        """Note that the device was heard of, by the database's clock."""
        ...

    def record_health(self, device_id: str, check: HealthCheck) -> HealthAnswer:
        """Judge a check by the device's history and keep it.

        Out of its band twice in a row, or wrong once: the device is quarantined, or loses the runtime where that is not the main
        one. What was measured so since the last good check becomes suspect and what is held goes back to the queue. A passing
        check ends what was about latency.
        """
        ...

    def health(self, device_id: str, *, page_size: int = 50, page_token: str = "") -> Page[HealthRecord]:
        """Return a device's checks, the latest first."""
        ...

    def is_health_check_due(self, device_id: str) -> bool:
        """Whether a device, or a runtime of it, failed a check long enough ago to try again."""
        ...

    def broker_users(self) -> tuple[tuple[str, str], ...]:
        """Return (device id, sha256 of its broker secret) of every device not removed, to rebuild the broker's users."""
        ...

    def principal(self, token: str) -> Principal | None:
        """Return whom a bearer token stands for; None if nobody, expired or revoked."""
        ...

    def set_token(self, name: str, token: str, scopes: frozenset[str]) -> bool:
        """Create or replace a named token that never expires; False where just this one was revoked, which stays so."""
        ...

    def create_token(
        self, token: str, *, name: str, scopes: Sequence[Scope], expires_in: timedelta | None, by: Principal = SYSTEM
    ) -> ApiToken:
        """Insert a token, of which only the hash is kept. Raises Conflict ``name_taken``."""
        ...

    def tokens(self, *, page_size: int = 50, page_token: str = "") -> Page[ApiToken]:
        """Return a page of the named tokens, revoked and expired ones too, newest first."""
        ...

    def revoke_token(self, token_id: str, *, by: Principal = SYSTEM) -> None:
        """Let a token and its sessions stand for nobody from now on. Raises NotFound, Conflict ``last_admin``."""
        ...

    def open_session(self, token: str, session: str, *, lasts: timedelta, address: str = "") -> datetime | None:
        """Let a session stand for whom a named token stands for; returns when it ends, None where the token is nobody's."""
        ...

    def session_principal(self, session: str) -> Principal | None:
        """Return whom a session stands for; None if nobody, or where it or its token is over."""
        ...

    def close_session(self, session: str, *, by: Principal = SYSTEM) -> None: ...

    def audit(
        self, *, actor: str | None = None, subject: str | None = None, page_size: int = 50, page_token: str = ""
    ) -> Page[AuditEntry]:
        """Return a page of the audit log, the latest first."""
        ...

    def forget_old(self, *, audit_days: int) -> int:
        """Delete sessions that are over and audit entries older than some days (0: none)."""
        ...

    # --- webhooks ---------------------------------------------------------------------------------------------------
    def spread_ends(self, hooks: Sequence[str]) -> int:
        """Make a delivery for each hook out of each job that ended since."""
        ...

    def take_delivery(self, hooks: Sequence[str], *, hold_s: float) -> Delivery | None:
        """Take the delivery that is due for longest, of one of the hooks; nobody else gets it for a while."""
        ...

    def settle_delivery(self, taken: Delivery, *, error: str | None, is_final: bool = False) -> None:
        """Write what came of a try; a failed one is due again after its pause, unless that was the last."""
        ...

    def deliveries(self, *, page_size: int = 50, page_token: str = "") -> Page[DeliveryView]: ...

    # --- artifacts --------------------------------------------------------------------------------------------------
    def record_artifact(self, ref: ArtifactRef, *, by: Principal | None = None) -> None: ...

    def artifact(self, digest: str) -> ArtifactRef: ...

    def may_fetch(self, device_id: str, digest: str) -> bool:
        """Whether a device holds a measurement that names the file."""
        ...

    # --- health -----------------------------------------------------------------------------------------------------
    def schema_is_current(self) -> bool: ...
