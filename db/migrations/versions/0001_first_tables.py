"""The first tables, and the triggers that hold their state machines.

The transitions are written out, not imported: a migration must do the same next year as today. A test compares them with
``domain``; a change there needs a migration of its own.

Revision: 0001, after nothing
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from db.transitions import create_transition_trigger, drop_transition_trigger

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

JOB = {
    "QUEUED": ["RUNNING", "PAUSED", "STOPPED", "CANCELLED", "FAILED"],
    "RUNNING": ["PAUSED", "STOPPING", "SUCCEEDED", "CANCELLED", "FAILED"],
    "PAUSED": ["RUNNING", "QUEUED", "STOPPING", "STOPPED", "CANCELLED", "FAILED"],
    "STOPPING": ["STOPPED", "CANCELLED", "FAILED"],
}
TRIAL = {
    "building": ["measuring", "rejected", "infeasible", "failed", "duplicate", "cancelled"],
    "measuring": ["succeeded", "infeasible", "failed", "duplicate", "cancelled"],
}
WORK = {
    "pending": ["leased", "cancelled", "failed"],
    "leased": ["pending", "done", "failed", "cancelled"],
}
TRANSITIONS = {"job": JOB, "trial": TRIAL, "build": WORK, "measurement": WORK}


def upgrade() -> None:
    op.create_table(
        "api_token",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("token_sha256", sa.Text(), nullable=False),
        sa.Column("scopes", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_api_token"),
        sa.UniqueConstraint("token_sha256", name="uq_api_token_token_sha256"),
    )
    op.create_table(
        "artifact",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("kind IN ('onnx', 'weights', 'data', 'check', 'manifest')", name=op.f("ck_artifact_kind")),
        sa.CheckConstraint("size_bytes >= 0", name=op.f("ck_artifact_size_bytes")),
        sa.PrimaryKeyConstraint("digest", name="pk_artifact"),
    )
    op.create_table(
        "device",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("labels", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("inventory", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "runtimes", sa.ARRAY(sa.Text()), nullable=False, comment="Names of the inventory's runtimes that work."
        ),
        sa.Column("conditions", sa.JSON(), server_default="{}", nullable=False),
        sa.Column("clock_offset_ms", sa.Double(), nullable=True),
        sa.Column("token_sha256", sa.Text(), nullable=False),
        sa.Column("broker_secret_sha256", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('active', 'paused', 'draining', 'quarantined', 'removed')", name=op.f("ck_device_state")
        ),
        sa.PrimaryKeyConstraint("id", name="pk_device"),
        sa.UniqueConstraint("token_sha256", name="uq_device_token_sha256"),
    )
    op.create_table(
        "job",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Text(), server_default="", nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("ended_by", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("paused_s", sa.Double(), server_default="0", nullable=False),
        sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True, comment="Set while paused."),
        sa.Column("trials_asked", sa.Integer(), server_default="0", nullable=False),
        sa.Column("report", sa.JSON(), server_default="{}", nullable=False),
        sa.Column(
            "event_seq", sa.BigInteger(), server_default="0", nullable=False, comment="Id of the job's last event."
        ),
        sa.Column("search_owner", sa.Text(), nullable=True),
        sa.Column("search_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("search_attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True, comment="Nobody searches on before this."),
        sa.Column("waiting_since", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("ended_by IN ('user', 'system', 'budget', 'plateau')", name=op.f("ck_job_ended_by")),
        sa.CheckConstraint(
            "stage IN ('queued', 'waiting_for_device', 'preparing', 'baseline', 'searching', 'finals', 'remeasuring', 'done')",
            name=op.f("ck_job_stage"),
        ),
        sa.CheckConstraint(
            "state IN ('QUEUED', 'RUNNING', 'PAUSED', 'STOPPING', 'SUCCEEDED', 'STOPPED', 'CANCELLED', 'FAILED')",
            name=op.f("ck_job_state"),
        ),
        sa.PrimaryKeyConstraint("id", name="pk_job"),
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index("ix_job_created_at_id", "job", ["created_at", "id"], unique=False)
    op.create_index(
        "ix_job_waiting",
        "job",
        ["waiting_since", "id"],
        unique=False,
        postgresql_where=sa.text("state IN ('QUEUED', 'RUNNING', 'STOPPING')"),
    )
    op.create_table(
        "join_token",
        sa.Column("token_sha256", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("uses_left", sa.Integer(), nullable=False),
        sa.Column("labels", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("uses_left >= 0", name=op.f("ck_join_token_uses_left")),
        sa.PrimaryKeyConstraint("token_sha256", name="pk_join_token"),
    )
    op.create_table(
        "build",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("progress", sa.JSON(), server_default="{}", nullable=False),
        sa.Column("adopted_from", sa.Text(), nullable=True, comment="The other job's build whose outcome this is."),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("released", sa.Integer(), server_default="0", nullable=False, comment="Attempts that do not count."),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancel_requested", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("outcome", sa.JSON(none_as_null=True), nullable=True),
        sa.Column(
            "last_failure", sa.JSON(none_as_null=True), nullable=True, comment="Why the attempt before this one failed."
        ),
        sa.Column(
            "written_attempt",
            sa.Integer(),
            nullable=True,
            comment="Attempt whose outcome was accepted last, and its sha256:",
        ),
        sa.Column("written_sha256", sa.Text(), nullable=True, comment="the same outcome sent twice is accepted once."),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("kind IN ('prepare', 'candidate', 'final')", name=op.f("ck_build_kind")),
        sa.CheckConstraint("state <> 'leased' OR lease_until IS NOT NULL", name=op.f("ck_build_lease")),
        sa.CheckConstraint(
            "state IN ('pending', 'leased', 'done', 'failed', 'cancelled')", name=op.f("ck_build_state")
        ),
        sa.CheckConstraint("attempt >= released AND released >= 0", name=op.f("ck_build_attempts")),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name="fk_build_job_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_build"),
        sa.UniqueConstraint("job_id", "key", name="uq_build_job_id_key"),
    )
    op.create_index("ix_build_done_key", "build", ["key"], unique=False, postgresql_where=sa.text("state = 'done'"))
    op.create_index(
        "ix_build_open",
        "build",
        ["created_at", "id"],
        unique=False,
        postgresql_where=sa.text("state IN ('pending', 'leased')"),
    )
    op.create_table(
        "event",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name="fk_event_job_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "id", name="pk_event"),
    )
    op.create_table(
        "idempotency_key",
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("body_sha256", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"],
            ["job.id"],
            name="fk_idempotency_key_job_id",
            ondelete="CASCADE",
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("principal", "key", name="pk_idempotency_key"),
    )
    op.create_table(
        "measurement",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("target", sa.Integer(), nullable=False),
        sa.Column(
            "selector_id",
            sa.Text(),
            nullable=True,
            comment="The one device that may do it; null: any that carries the labels.",
        ),
        sa.Column("selector_labels", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("runtime", sa.Text(), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=True, comment="Who claimed it last."),
        sa.Column(
            "avoid",
            sa.ARRAY(sa.Text()),
            server_default="{}",
            nullable=False,
            comment="Devices blamed for a failure of it.",
        ),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("released", sa.Integer(), server_default="0", nullable=False, comment="Attempts that do not count."),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancel_requested", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("outcome", sa.JSON(none_as_null=True), nullable=True),
        sa.Column(
            "last_failure", sa.JSON(none_as_null=True), nullable=True, comment="Why the attempt before this one failed."
        ),
        sa.Column(
            "written_attempt",
            sa.Integer(),
            nullable=True,
            comment="Attempt whose outcome was accepted last, and its sha256:",
        ),
        sa.Column("written_sha256", sa.Text(), nullable=True, comment="the same outcome sent twice is accepted once."),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state <> 'leased' OR lease_until IS NOT NULL", name=op.f("ck_measurement_lease")),
        sa.CheckConstraint(
            "state IN ('pending', 'leased', 'done', 'failed', 'cancelled')", name=op.f("ck_measurement_state")
        ),
        sa.CheckConstraint("attempt >= released AND released >= 0", name=op.f("ck_measurement_attempts")),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name="fk_measurement_device_id"),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name="fk_measurement_job_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_measurement"),
        sa.UniqueConstraint("job_id", "key", name="uq_measurement_job_id_key"),
    )
    op.create_index(
        "ix_measurement_open",
        "measurement",
        ["created_at", "id"],
        unique=False,
        postgresql_where=sa.text("state IN ('pending', 'leased')"),
    )
    op.create_index(
        "uq_measurement_leased_device",
        "measurement",
        ["device_id"],
        unique=True,
        postgresql_where=sa.text("state = 'leased'"),
    )
    op.create_table(
        "measurement_sample",
        sa.Column("measurement_id", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False, comment="Index of the candidate in the outcome."),
        sa.Column("pairs", sa.Integer(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False, comment="Samples.data without its base64."),
        sa.ForeignKeyConstraint(
            ["measurement_id"], ["measurement.id"], name="fk_measurement_sample_measurement_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("measurement_id", "position", name="pk_measurement_sample"),
    )
    op.create_table(
        "stale_outcome",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("measurement_id", sa.Text(), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("outcome", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["measurement_id"], ["measurement.id"], name="fk_stale_outcome_measurement_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_stale_outcome"),
        sa.UniqueConstraint(
            "measurement_id",
            "device_id",
            "attempt",
            "sha256",
            name="uq_stale_outcome_measurement_id_device_id_attempt_sha256",
        ),
    )
    op.create_table(
        "trial",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("target", sa.Integer(), nullable=False),
        sa.Column("study_number", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("params", sa.JSON(), nullable=False),
        sa.Column("distributions", sa.JSON(), nullable=False),
        sa.Column("seed_name", sa.Text(), nullable=True),
        sa.Column("candidate", sa.JSON(), nullable=False),
        sa.Column("build_id", sa.Text(), nullable=True),
        sa.Column("measurement_id", sa.Text(), nullable=True),
        sa.Column("duplicate_of", sa.Integer(), nullable=True),
        sa.Column("told", sa.JSON(none_as_null=True), nullable=True, comment="Trial.values: what the search was told."),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('building', 'measuring', 'succeeded', 'rejected', 'infeasible', 'failed', 'duplicate', 'cancelled')",
            name=op.f("ck_trial_state"),
        ),
        sa.CheckConstraint("number >= 0 AND target >= 0 AND study_number >= 0", name=op.f("ck_trial_numbers")),
        sa.ForeignKeyConstraint(["build_id"], ["build.id"], name="fk_trial_build_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name="fk_trial_job_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["measurement_id"], ["measurement.id"], name="fk_trial_measurement_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_trial"),
        sa.UniqueConstraint("job_id", "number", name="uq_trial_job_id_number"),
        sa.UniqueConstraint("job_id", "target", "study_number", name="uq_trial_job_id_target_study_number"),
    )
    for table, transitions in TRANSITIONS.items():
        for statement in create_transition_trigger(table, transitions):
            op.execute(statement)


def downgrade() -> None:
    for table in TRANSITIONS:
        for statement in drop_transition_trigger(table):
            op.execute(statement)
    op.drop_table("trial")
    op.drop_table("stale_outcome")
    op.drop_table("measurement_sample")
    op.drop_table("measurement")
    op.drop_table("idempotency_key")
    op.drop_table("event")
    op.drop_table("build")
    op.drop_table("join_token")
    op.drop_table("job")
    op.drop_table("device")
    op.drop_table("artifact")
    op.drop_table("api_token")
