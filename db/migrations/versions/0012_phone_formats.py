"""Artifacts of the kinds executorch and pt2.

Going back is refused by the database while such files are stored: the older version cannot read them.

Revision: 0012, after 0011
"""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

KINDS = ("onnx", "ncnn", "weights", "data", "check", "manifest", "openvino", "litert", "torch")


def upgrade() -> None:
    _allow(*KINDS, "executorch", "pt2")


def downgrade() -> None:
    _allow(*KINDS)


def _allow(*kinds: str) -> None:
    op.drop_constraint(op.f("ck_artifact_kind"), "artifact", type_="check")
    op.create_check_constraint(op.f("ck_artifact_kind"), "artifact", f"kind IN ({', '.join(map(repr, kinds))})")
