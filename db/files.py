"""Rows of stored files: a file exists for the API only once its row does."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import insert as upsert

from db.models import artifact
from domain.artifact import ArtifactRef


def record_files(connection: Connection, refs: Iterable[ArtifactRef]) -> None:
    """Note that files are stored. The same bytes under another kind: the last word counts, so that a slip can be mended."""
    for ref in sorted(refs, key=lambda one: one.digest):  # one order of row locks for everybody
        put = upsert(artifact).values(digest=ref.digest, size_bytes=ref.size_bytes, kind=ref.kind)
        put = put.on_conflict_do_update(
            index_elements=["digest"], set_={"kind": ref.kind}, where=artifact.c.kind != ref.kind
        )
        connection.execute(put)
