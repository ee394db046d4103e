"""Health checks of devices, why one is quarantined, and which measurements are suspect for it.

Revision: 0002, after 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "device_health",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("runtime", sa.Text(), nullable=False),
        sa.Column("runtime_version", sa.Text(), nullable=False),
        sa.Column("golden", sa.Text(), nullable=False, comment="sha256 of the golden file."),
        sa.Column("report", sa.JSON(), nullable=False, comment="HealthCheck as it came."),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("band", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.CheckConstraint(
            "verdict IN ('learning', 'passed', 'out_of_band', 'wrong_output', 'failed')",
            name=op.f("ck_device_health_verdict"),
        ),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name="fk_device_health_device_id"),
        sa.PrimaryKeyConstraint("id", name="pk_device_health"),
    )
    op.create_index("ix_device_health_device_id_id", "device_health", ["device_id", "id"], unique=False)
    op.add_column(
        "device",
        sa.Column("quarantine", sa.Text(), nullable=True, comment="What its quarantine is about, while it lasts."),
    )
    op.add_column(
        "device",
        sa.Column(
            "health_since",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="Older checks say nothing any more: a person ended a quarantine then.",
        ),
    )
    op.create_check_constraint(
        op.f("ck_device_quarantine"), "device", "quarantine IN ('latency', 'wrong_output', 'held')"
    )
    op.add_column(
        "measurement",
        sa.Column(
            "is_suspect",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="Its device failed a health check afterwards.",
        ),
    )


def downgrade() -> None:
    op.drop_column("measurement", "is_suspect")
    op.drop_constraint(op.f("ck_device_quarantine"), "device")
    op.drop_column("device", "health_since")
    op.drop_column("device", "quarantine")
    op.drop_table("device_health")
