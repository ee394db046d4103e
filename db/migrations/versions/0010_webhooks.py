"""Webhooks: an outbox of jobs that ended, and the messages made of it.

Revision: 0010, after 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "job_end",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False, server_default=sa.func.now()),
        sa.PrimaryKeyConstraint("id", name="pk_job_end"),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], ondelete="CASCADE", name="fk_job_end_job_id"),
        comment="Jobs whose end is still to be told.",
    )
    op.create_table(
        "webhook_delivery",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("hook", sa.Text, nullable=False),
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("created_at", MOMENT, nullable=False, server_default=sa.func.now()),
        sa.Column("next_at", MOMENT, comment="Null: delivered or given up."),
        sa.Column("delivered_at", MOMENT),
        sa.Column("last_error", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_delivery"),
        sa.UniqueConstraint("job_id", "hook", name="uq_webhook_delivery_job_id_hook"),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], ondelete="CASCADE", name="fk_webhook_delivery_job_id"),
    )
    op.create_index(
        "ix_webhook_delivery_due", "webhook_delivery", ["next_at"], postgresql_where=sa.text("next_at IS NOT NULL")
    )
    op.create_index("ix_webhook_delivery_created_at_id", "webhook_delivery", ["created_at", "id"])


def downgrade() -> None:
    op.drop_table("webhook_delivery")
    op.drop_table("job_end")
