"""Runtimes that a device lost, and when it is asked to check again.

Revision: 0003, after 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "device",
        sa.Column(
            "lost_runtimes",
            postgresql.JSONB(),
            server_default=sa.text("'{}'"),
            nullable=False,
            comment="Name -> LostRuntime.",
        ),
    )
    op.add_column(
        "device",
        sa.Column(
            "recheck_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="When it is asked to check again what failed and may pass.",
        ),
    )
    op.execute("UPDATE device SET recheck_at = now() WHERE state = 'quarantined' AND quarantine = 'latency'")


def downgrade() -> None:
    op.drop_column("device", "recheck_at")
    op.drop_column("device", "lost_runtimes")
