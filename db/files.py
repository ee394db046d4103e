"""Rows of stored files: a file exists for the API only once its row does."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, func
from sqlalchemy.dialects.postgresql import insert as upsert

from db.models import artifact
from domain.artifact import ArtifactRef


def record_files(connection: Connection, refs: Iterable[ArtifactRef]) -> None:
    """Note that files are stored. The same bytes under another kind: the last word counts, so that a slip can be mended;
    and it is in use again, so the collector leaves it alone."""
    for ref in sorted(refs, key=lambda one: one.digest):  # one order of row locks for everybody
        put = upsert(artifact).values(digest=ref.digest, size_bytes=ref.size_bytes, kind=ref.kind)
        put = put.on_conflict_do_update(index_elements=["digest"], set_={"kind": ref.kind, "used_at": func.now()})
        connection.execute(put)
