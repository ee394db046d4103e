"""Artifacts of the kind ncnn.

Going back is refused by the database while such files are stored: the older version cannot read them.

Revision: 0004, after 0003
"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

KINDS = ("onnx", "weights", "data", "check", "manifest")


def upgrade() -> None:
    _allow(*KINDS, "ncnn")


def downgrade() -> None:
    _allow(*KINDS)


def _allow(*kinds: str) -> None:
    op.drop_constraint(op.f("ck_artifact_kind"), "artifact", type_="check")
    op.create_check_constraint(op.f("ck_artifact_kind"), "artifact", f"kind IN ({', '.join(map(repr, kinds))})")
