"""The tables. Two JSON types on purpose.

``JSON`` keeps a document as it was written (order of keys, any string): specs, requests, outcomes, the sampler's parameters.
``JSONB`` is for what SQL looks into: labels and inventories.
Changes go through ``db/migrations``; a test compares the two.
"""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from domain.artifact import ArtifactKind
from domain.build import BuildKind
from domain.device import DeviceState, QuarantineCause
from domain.health import HealthVerdict
from domain.job import EndedBy, JobState, Stage
from domain.trial import TrialState
from domain.work import WorkState

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

MOMENT = DateTime(timezone=True)
OPEN_WORK = text("state IN ('pending', 'leased')")


def _one_of(column: str, words: type[StrEnum]) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(repr(str(word)) for word in words)})", name=column)


def _created_at() -> Column[object]:
    return Column("created_at", MOMENT, nullable=False, server_default=func.now())


def _job_id() -> Column[str]:
    return Column("job_id", Text, ForeignKey("job.id", ondelete="CASCADE"), nullable=False)


job = Table(
    "job",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("created_by", Text, nullable=False, server_default=""),
    Column("spec", JSON, nullable=False),
    Column("labels", JSONB, nullable=False, server_default="{}", comment="As in the spec, to be looked into."),
    Column("priority", Integer, nullable=False, server_default="0", comment="As in the spec, to be ordered by."),
    Column("state", Text, nullable=False),
    Column("stage", Text, nullable=False),
    Column("reason", Text),
    Column("ended_by", Text),
    _created_at(),
    Column("started_at", MOMENT),
    Column("finished_at", MOMENT),
    Column("paused_s", Double, nullable=False, server_default="0"),
    Column("paused_at", MOMENT, comment="Set while paused."),
    Column("trials_asked", Integer, nullable=False, server_default="0"),
    Column("report", JSON, nullable=False, server_default="{}"),
    Column("event_seq", BigInteger, nullable=False, server_default="0", comment="Id of the job's last event."),
    Column("search_owner", Text),
    Column("search_until", MOMENT),
    Column("search_attempt", Integer, nullable=False, server_default="0"),
    Column("not_before", MOMENT, comment="Nobody searches on before this."),
    Column("waiting_since", MOMENT, nullable=False, server_default=func.now()),
    Column("kept_files", JSON(none_as_null=True), comment="Once collected: digests that its fronts refer to."),
    _one_of("state", JobState),
    _one_of("stage", Stage),
    _one_of("ended_by", EndedBy),
    Index("ix_job_created_at_id", "created_at", "id"),
    Index("ix_job_waiting", "waiting_since", "id", postgresql_where=text("state IN ('QUEUED', 'RUNNING', 'STOPPING')")),
    Index("ix_job_state_created_at_id", "state", "created_at", "id"),
    Index("ix_job_labels", "labels", postgresql_using="gin", postgresql_ops={"labels": "jsonb_path_ops"}),
    postgresql_with={"fillfactor": "70"},  # its event counter changes often: room for that on the same page
)

trial = Table(
    "trial",
    metadata,
    Column("id", Text, primary_key=True),
    _job_id(),
    Column("number", Integer, nullable=False),
    Column("target", Integer, nullable=False),
    Column("study_number", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("params", JSON, nullable=False),
    Column("distributions", JSON, nullable=False),
    Column("seed_name", Text),
    Column("candidate", JSON, nullable=False),
    Column("build_id", Text, ForeignKey("build.id", ondelete="CASCADE")),
    Column("measurement_id", Text, ForeignKey("measurement.id", ondelete="CASCADE")),
    Column("duplicate_of", Integer),
    Column("told", JSON(none_as_null=True), comment="Trial.values: what the search was told."),
    Column("reason", Text),
    _created_at(),
    Column("finished_at", MOMENT),
    UniqueConstraint("job_id", "number"),
    UniqueConstraint("job_id", "target", "study_number"),
    _one_of("state", TrialState),
    CheckConstraint("number >= 0 AND target >= 0 AND study_number >= 0", name="numbers"),
    Index("ix_trial_open", "state", postgresql_where=text("state IN ('building', 'measuring')")),
)


def _work_columns() -> list[Column[object] | CheckConstraint]:
    """What every leased row has. ``attempt`` only grows, so that it fences; handing work back raises ``released``."""
    return [
        Column("state", Text, nullable=False),
        Column("priority", Integer, nullable=False, server_default="0", comment="Its job's."),
        Column("attempt", Integer, nullable=False, server_default="0"),
        Column("released", Integer, nullable=False, server_default="0", comment="Attempts that do not count."),
        Column("lease_until", MOMENT),
        Column("cancel_requested", Boolean, nullable=False, server_default=text("false")),
        Column("outcome", JSON(none_as_null=True)),
        Column("last_failure", JSON(none_as_null=True), comment="Why the attempt before this one failed."),
        Column("not_before", MOMENT, comment="Nobody tries it again before this."),
        Column("written_attempt", Integer, comment="Attempt whose outcome was accepted last, and its sha256:"),
        Column("written_sha256", Text, comment="the same outcome sent twice is accepted once."),
        _created_at(),
        Column("started_at", MOMENT),
        Column("finished_at", MOMENT),
        _one_of("state", WorkState),
        CheckConstraint("attempt >= released AND released >= 0", name="attempts"),
        CheckConstraint("state <> 'leased' OR lease_until IS NOT NULL", name="lease"),
    ]


build = Table(
    "build",
    metadata,
    Column("id", Text, primary_key=True),
    _job_id(),
    Column("key", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("request", JSON, nullable=False),
    Column("owner", Text),
    Column("progress", JSON, nullable=False, server_default="{}"),
    Column("adopted_from", Text, comment="The other job's build whose outcome this is."),
    *_work_columns(),
    UniqueConstraint("job_id", "key"),
    _one_of("kind", BuildKind),
    Index("ix_build_open", "created_at", "id", postgresql_where=OPEN_WORK),
    Index("ix_build_done_key", "key", postgresql_where=text("state = 'done'")),
)

measurement = Table(
    "measurement",
    metadata,
    Column("id", Text, primary_key=True),
    _job_id(),
    Column("key", Text, nullable=False),
    Column("target", Integer, nullable=False),
    Column("selector_id", Text, comment="The one device that may do it; null: any that carries the labels."),
    Column("selector_labels", JSONB, nullable=False),
    Column("runtime", Text, nullable=False),
    Column("request", JSON, nullable=False),
    Column("device_id", Text, ForeignKey("device.id"), comment="Who claimed it last."),
    Column("avoid", ARRAY(Text), nullable=False, server_default="{}", comment="Devices blamed for a failure of it."),
    Column(
        "is_suspect",
        Boolean,
        nullable=False,
        server_default=text("false"),
        comment="Its device failed a health check afterwards.",
    ),
    *_work_columns(),
    UniqueConstraint("job_id", "key"),
    Index("ix_measurement_open", "created_at", "id", postgresql_where=OPEN_WORK),
    # A device times one thing at a time; two leases on it would disturb each other's numbers.
    Index("uq_measurement_leased_device", "device_id", unique=True, postgresql_where=text("state = 'leased'")),
)

measurement_sample = Table(
    "measurement_sample",
    metadata,
    Column("measurement_id", Text, ForeignKey("measurement.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True, comment="Index of the candidate in the outcome."),
    Column("pairs", Integer, nullable=False),
    Column("data", LargeBinary, nullable=False, comment="Samples.data without its base64."),
)

stale_outcome = Table(
    "stale_outcome",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("measurement_id", Text, ForeignKey("measurement.id", ondelete="CASCADE"), nullable=False),
    Column("device_id", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("outcome", JSON, nullable=False),
    _created_at(),
    UniqueConstraint("measurement_id", "device_id", "attempt", "sha256"),
)

device = Table(
    "device",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("labels", JSONB, nullable=False),
    Column("state", Text, nullable=False),
    Column("note", Text),
    Column("inventory", JSONB, nullable=False),
    Column("runtimes", ARRAY(Text), nullable=False, comment="Names of the inventory's runtimes that work."),
    Column("conditions", JSON, nullable=False, server_default="{}"),
    Column("clock_offset_ms", Double),
    Column("token_sha256", Text, nullable=False, unique=True),
    Column("broker_secret_sha256", Text, nullable=False),
    _created_at(),
    Column("last_seen_at", MOMENT),
    Column("quarantine", Text, comment="What its quarantine is about, while it lasts."),
    Column("lost_runtimes", JSONB, nullable=False, server_default="{}", comment="Name -> LostRuntime."),
    Column("recheck_at", MOMENT, comment="When it is asked to check again what failed and may pass."),
    Column("health_since", MOMENT, comment="Older checks say nothing any more: a person ended a quarantine then."),
    _one_of("state", DeviceState),
    _one_of("quarantine", QuarantineCause),
)

device_health = Table(
    "device_health",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("device_id", Text, ForeignKey("device.id"), nullable=False),
    Column("runtime", Text, nullable=False),
    Column("runtime_version", Text, nullable=False),
    Column("golden", Text, nullable=False, comment="sha256 of the golden file."),
    Column("report", JSON, nullable=False, comment="HealthCheck as it came."),
    Column("verdict", Text, nullable=False),
    Column("band", JSON(none_as_null=True)),
    Column("reason", Text, nullable=False),
    Column("at", MOMENT, nullable=False, server_default=func.clock_timestamp()),
    _one_of("verdict", HealthVerdict),
    Index("ix_device_health_device_id_id", "device_id", "id"),
)

join_token = Table(
    "join_token",
    metadata,
    Column("token_sha256", Text, primary_key=True),
    Column("expires_at", MOMENT, nullable=False),
    Column("uses_left", Integer, nullable=False),
    Column("labels", JSONB, nullable=False),
    _created_at(),
    CheckConstraint("uses_left >= 0", name="uses_left"),
)

api_token = Table(
    "api_token",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("token_sha256", Text, nullable=False, unique=True),
    Column("scopes", ARRAY(Text), nullable=False),
    _created_at(),
    Column("created_by", Text, nullable=False, server_default=""),
    Column("expires_at", MOMENT, comment="Null: never."),
    Column("revoked_at", MOMENT),
    Column("last_used_at", MOMENT, comment="To the minute."),
    Index("uq_api_token_name", "name", unique=True, postgresql_where=text("revoked_at IS NULL")),
)

web_session = Table(
    "web_session",
    metadata,
    Column("session_sha256", Text, primary_key=True),
    Column("token_id", Text, ForeignKey("api_token.id", ondelete="CASCADE"), nullable=False),
    Column("expires_at", MOMENT, nullable=False),
    _created_at(),
)

job_end = Table(
    "job_end",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    _job_id(),
    _created_at(),
    comment="Jobs whose end is still to be told.",
)

webhook_delivery = Table(
    "webhook_delivery",
    metadata,
    Column("id", Text, primary_key=True),
    Column("hook", Text, nullable=False),
    _job_id(),
    Column("body", JSON, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    _created_at(),
    Column("next_at", MOMENT, comment="Null: delivered or given up."),
    Column("delivered_at", MOMENT),
    Column("last_error", Text),
    UniqueConstraint("job_id", "hook"),
    Index("ix_webhook_delivery_due", "next_at", postgresql_where=text("next_at IS NOT NULL")),
    Index("ix_webhook_delivery_created_at_id", "created_at", "id"),
)

audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("at", MOMENT, nullable=False, server_default=func.clock_timestamp()),
    Column("actor", Text, nullable=False),
    Column("actor_id", Text),
    Column("address", Text, nullable=False, server_default=""),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", JSON, nullable=False, server_default="{}"),
    Index("ix_audit_subject_id", "subject", "id"),
    Index("ix_audit_actor_id", "actor", "id"),
    Index("ix_audit_at", "at"),
)

artifact = Table(
    "artifact",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    _created_at(),
    Column("used_at", MOMENT, nullable=False, server_default=func.now()),
    _one_of("kind", ArtifactKind),
    CheckConstraint("size_bytes >= 0", name="size_bytes"),
)

event = Table(
    "event",
    metadata,
    Column("job_id", Text, ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("type", Text, nullable=False),
    Column("data", JSON, nullable=False),
    Column("at", MOMENT, nullable=False, server_default=func.clock_timestamp()),
)

idempotency_key = Table(
    "idempotency_key",
    metadata,
    Column("principal", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("body_sha256", Text, nullable=False),
    Column(
        "job_id",
        Text,
        # Deferred: the key is taken first, so that a second request waits for the first one instead of inserting a job.
        ForeignKey("job.id", ondelete="CASCADE", deferrable=True, initially="DEFERRED"),
        nullable=False,
    ),
    _created_at(),
)


def _tally_columns(*, is_key: bool) -> list[Column[object]]:
    return [
        Column("what", Text, primary_key=is_key, nullable=False),
        Column("label", Text, primary_key=is_key, nullable=False),
        Column("class", Integer, primary_key=is_key, nullable=False, server_default="0", comment="Of its duration."),
        Column("number", BigInteger, nullable=False, server_default="1"),
        Column("seconds", Double, nullable=False, server_default="0"),
    ]


# Notes that triggers leave when something ends, and what the reaper has added up of them: see ``db.metrics``.
tally = Table(
    "tally",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    *_tally_columns(is_key=False),
)
tally_sum = Table("tally_sum", metadata, *_tally_columns(is_key=True))

# One row: the oldest revision whose code works on this schema. A migration that only adds leaves it; one that takes something
# away raises it to the first revision whose code can do without. See docs/adr/0010.
schema_floor = Table("schema_floor", metadata, Column("revision", Text, nullable=False))
