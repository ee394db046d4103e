"""Named tokens with an id, an expiry, a last use; sessions of the dashboard; the audit log.

Revision: 0007, after 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("api_token", sa.Column("id", sa.Text))
    # Nothing of the secret may show in its name, not even a piece of its hash.
    op.execute("UPDATE api_token SET id = 'token_' || substr(md5(random()::text || clock_timestamp()::text), 1, 26)")
    op.alter_column("api_token", "id", nullable=False)
    op.drop_constraint("pk_api_token", "api_token")
    op.create_primary_key("pk_api_token", "api_token", ["id"])
    op.add_column("api_token", sa.Column("created_by", sa.Text, nullable=False, server_default=""))
    op.add_column("api_token", sa.Column("expires_at", MOMENT, comment="Null: never."))
    op.add_column("api_token", sa.Column("revoked_at", MOMENT))
    op.add_column("api_token", sa.Column("last_used_at", MOMENT, comment="To the minute."))
    op.create_index(
        "uq_api_token_name", "api_token", ["name"], unique=True, postgresql_where=sa.text("revoked_at IS NULL")
    )
    op.create_table(
        "web_session",
        sa.Column("session_sha256", sa.Text, nullable=False),
        sa.Column("token_id", sa.Text, nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False, server_default=sa.func.now()),
        sa.PrimaryKeyConstraint("session_sha256", name="pk_web_session"),
        sa.ForeignKeyConstraint(["token_id"], ["api_token.id"], ondelete="CASCADE", name="fk_web_session_token_id"),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("at", MOMENT, nullable=False, server_default=sa.func.clock_timestamp()),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("actor_id", sa.Text),
        sa.Column("address", sa.Text, nullable=False, server_default=""),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("detail", sa.JSON, nullable=False, server_default="{}"),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_subject_id", "audit", ["subject", "id"])
    op.create_index("ix_audit_actor_id", "audit", ["actor", "id"])
    op.create_index("ix_audit_at", "audit", ["at"])


def downgrade() -> None:
    op.drop_table("audit")
    op.drop_table("web_session")
    op.execute("DELETE FROM api_token WHERE revoked_at IS NOT NULL")
    op.drop_index("uq_api_token_name", "api_token")
    op.drop_constraint("pk_api_token", "api_token")
    for column in ("last_used_at", "revoked_at", "expires_at", "created_by", "id"):
        op.drop_column("api_token", column)
    op.create_primary_key("pk_api_token", "api_token", ["name"])
