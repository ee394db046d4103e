"""What is old and nobody needs: raw samples and files of jobs that ended long ago, less what their fronts refer to.

A job is *collected* once: what stands on its fronts is written down with it (``kept_files``), its samples go, and from then on only
those files are its own. A file goes when no job names it: any digest anywhere in a job that is not collected counts as naming.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import Text, cast, delete, not_, select, text, update

from db.leases import in_seconds
from db.models import artifact, job, measurement, measurement_sample, stale_outcome
from db.transactions import Transactions
from domain.job import TERMINAL_STATES

BATCH = 500

UNUSED = text(
    """
    WITH named AS (
        SELECT spec::text AS said FROM job WHERE kept_files IS NULL
        UNION ALL SELECT report::text FROM job WHERE kept_files IS NULL
        UNION ALL SELECT kept_files::text FROM job WHERE kept_files IS NOT NULL
        UNION ALL SELECT w.request::text || coalesce(w.outcome::text, '') FROM build w
            JOIN job j ON j.id = w.job_id WHERE j.kept_files IS NULL
        UNION ALL SELECT w.request::text || coalesce(w.outcome::text, '') FROM measurement w
            JOIN job j ON j.id = w.job_id WHERE j.kept_files IS NULL
    ), needed AS (
        SELECT DISTINCT (regexp_matches(said, 'sha256:[0-9a-f]{64}', 'g'))[1] AS digest FROM named
    )
    SELECT a.digest FROM artifact a LEFT JOIN needed n ON n.digest = a.digest
    WHERE n.digest IS NULL AND a.used_at < now() - make_interval(secs => :older_than_s)
    ORDER BY a.used_at LIMIT :most
    """
)


class RetentionTables(Transactions):
    """The collector's side of the store; every step may be done twice, and by several at once."""

    def jobs_to_collect(self, *, older_than_s: float) -> Sequence[str]:
        """Return jobs that ended longer ago than that and are not collected yet, the oldest first."""
        is_old = job.c.state.in_(TERMINAL_STATES), job.c.finished_at < in_seconds(-older_than_s)
        query = select(job.c.id).where(*is_old, job.c.kept_files.is_(None)).order_by(job.c.finished_at).limit(BATCH)
        with self._transaction() as connection:
            return list(connection.execute(query).scalars())

    def collect_job(self, job_id: str, kept: Collection[str]) -> int:
        """Write down what a job keeps; delete its late outcomes, and raw samples but those of kept files; returns rows gone."""
        own = select(measurement.c.id).where(measurement.c.job_id == job_id)
        # The baseline does not count: it is the dense model, which stands beside every front.
        candidates = cast(measurement.c.request.op("->")("candidates"), Text)
        names_kept = candidates.op("~", is_comparison=True)("|".join(sorted(kept)))
        with self._transaction() as connection:
            connection.execute(update(job).where(job.c.id == job_id).values(kept_files=sorted(kept)))
            connection.execute(delete(stale_outcome).where(stale_outcome.c.measurement_id.in_(own)))
            doomed = own.where(not_(names_kept)) if kept else own
            gone = delete(measurement_sample).where(measurement_sample.c.measurement_id.in_(doomed))
            return connection.execute(gone).rowcount

    def unused_files(self, *, older_than_s: float) -> Sequence[str]:
        """Return digests of files that no job needs and nobody stored or named for that long, those idle longest first."""
        with self._transaction() as connection:
            return list(connection.execute(UNUSED, {"older_than_s": older_than_s, "most": BATCH}).scalars())

    def forget_file(self, digest: str, *, older_than_s: float) -> bool:
        """Delete a file's row unless it was used again meanwhile; whether it is gone."""
        is_old = artifact.c.digest == digest, artifact.c.used_at < in_seconds(-older_than_s)
        with self._transaction() as connection:
            return connection.execute(delete(artifact).where(*is_old)).rowcount > 0
