"""The JobStore on PostgreSQL: the tables' sides put together."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import func, select

from db import engine as schema
from db.audit import AuditTables, note
from db.builds import BuildTables
from db.devices import DeviceTables
from db.files import record_files
from db.health import HealthTables
from db.jobs import JobTables
from db.joining import JoiningTables
from db.measurements import MeasurementTables
from db.models import artifact
from db.queue import QueueTables
from db.reaping import ReaperTables
from db.retention import RetentionTables
from db.search import SearchTables
from db.tokens import TokenTables
from db.webhooks import WebhookTables
from domain.access import Principal
from domain.artifact import ArtifactRef
from domain.errors import NotFound


class SqlJobStore(
    JobTables,
    QueueTables,
    SearchTables,
    BuildTables,
    MeasurementTables,
    ReaperTables,
    DeviceTables,
    HealthTables,
    JoiningTables,
    TokenTables,
    AuditTables,
    RetentionTables,
    WebhookTables,
):
    """``domain.ports.JobStore`` on PostgreSQL. Safe to share between threads; make one in each process, after forking.

    Every method raises ``Unavailable`` (``database_unavailable``) where the database does not answer: try again later.
    """

    def now(self) -> datetime:
        """Return the database's clock."""
        with self._reading() as connection:
            moment: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
            return moment

    def record_artifact(self, ref: ArtifactRef, *, by: Principal | None = None) -> None:
        """Note that a file is stored. The same bytes under another kind: the last word counts, so that a slip can be mended.

        Args:
            ref: The file.
            by: Who uploaded it; None: it was built here, which is no one's act.
        """
        with self._transaction() as connection:
            record_files(connection, [ref])
            if by is not None:
                detail = {"kind": ref.kind.value, "size_bytes": ref.size_bytes}
                note(connection, by, "artifact.upload", ref.digest, detail)

    def artifact(self, digest: str) -> ArtifactRef:
        """Return what is known of a stored file. Raises NotFound."""
        query = select(artifact.c.digest, artifact.c.size_bytes, artifact.c.kind).where(artifact.c.digest == digest)
        with self._reading() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise NotFound(
                f"There is no artifact {digest}; upload it with POST /v1/artifacts.", metadata={"digest": digest}
            )
        return ArtifactRef.model_validate(dict(row._mapping))

    def schema_is_current(self) -> bool:
        """Whether the schema is the one this code was written for."""
        return schema.schema_is_current(self._engine)
