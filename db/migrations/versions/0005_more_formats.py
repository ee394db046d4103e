"""Artifacts of the kinds openvino, litert and torch.

Going back is refused by the database while such files are stored: the older version cannot read them.

Revision: 0005, after 0004
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

KINDS = ("onnx", "ncnn", "weights", "data", "check", "manifest")


def upgrade() -> None:
    _allow(*KINDS, "openvino", "litert", "torch")


def downgrade() -> None:
    _allow(*KINDS)


def _allow(*kinds: str) -> None:
    op.drop_constraint(op.f("ck_artifact_kind"), "artifact", type_="check")
    op.create_check_constraint(op.f("ck_artifact_kind"), "artifact", f"kind IN ({', '.join(map(repr, kinds))})")
