"""Jobs carry labels and a priority; their builds and measurements carry the priority too.

Revision: 0006, after 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    labels = sa.Column(
        "labels", JSONB, nullable=False, server_default="{}", comment="As in the spec, to be looked into."
    )
    op.add_column("job", labels)
    op.add_column("job", _priority("As in the spec, to be ordered by."))
    op.add_column("build", _priority("Its job's."))
    op.add_column("measurement", _priority("Its job's."))
    op.create_index("ix_job_state_created_at_id", "job", ["state", "created_at", "id"])
    op.create_index(
        "ix_job_labels", "job", ["labels"], postgresql_using="gin", postgresql_ops={"labels": "jsonb_path_ops"}
    )


def downgrade() -> None:
    op.drop_index("ix_job_labels", table_name="job")
    op.drop_index("ix_job_state_created_at_id", table_name="job")
    for table in ("measurement", "build", "job"):
        op.drop_column(table, "priority")
    op.drop_column("job", "labels")


def _priority(comment: str) -> sa.Column[int]:
    return sa.Column("priority", sa.Integer, nullable=False, server_default="0", comment=comment)
