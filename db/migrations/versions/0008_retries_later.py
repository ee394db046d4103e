"""When failed work may be tried again.

Revision: 0008, after 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("build", "measurement"):
        not_before = sa.Column(
            "not_before", sa.DateTime(timezone=True), nullable=True, comment="Nobody tries it again before this."
        )
        op.add_column(table, not_before)


def downgrade() -> None:
    for table in ("build", "measurement"):
        op.drop_column(table, "not_before")
