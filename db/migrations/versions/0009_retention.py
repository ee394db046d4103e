"""What a collected job keeps, and when a file was last stored or named.

Revision: 0009, after 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    kept = sa.Column("kept_files", sa.JSON, nullable=True, comment="Once collected: digests that its fronts refer to.")
    op.add_column("job", kept)
    used = sa.Column("used_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now())
    op.add_column("artifact", used)


def downgrade() -> None:
    op.drop_column("artifact", "used_at")
    op.drop_column("job", "kept_files")
