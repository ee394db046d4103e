"""Collecting what is old: which files a job's fronts refer to, and the order in which the rest goes."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass

from db.store import SqlJobStore
from domain.errors import NotFound
from domain.ports import ArtifactStore, JobSnapshot
from search.front import build_front

log = logging.getLogger(__name__)

DAY_S = 86400.0


@dataclass(frozen=True)
class Collected:
    """What one pass threw away."""

    jobs: int = 0
    samples: int = 0
    files: int = 0


def collect(store: SqlJobStore, artifacts: ArtifactStore, *, older_than_s: float) -> Collected:
    """Collect jobs that ended longer ago than that, then delete files that none needs and nobody used for as long.

    The row goes before the file: a crash in between leaves a file that nobody names, never a row without its file.
    """
    jobs = samples = files = 0
    for job_id in store.jobs_to_collect(older_than_s=older_than_s):
        samples += store.collect_job(job_id, kept_of(store.snapshot(job_id)))
        jobs += 1
    for digest in store.unused_files(older_than_s=older_than_s):
        if store.forget_file(digest, older_than_s=older_than_s):
            with suppress(NotFound):
                artifacts.remove(digest, unused_for_s=older_than_s)
            files += 1
    if jobs or files:
        log.info("retention: %s jobs collected, %s rows of samples and %s files deleted", jobs, samples, files)
    return Collected(jobs, samples, files)


def kept_of(snapshot: JobSnapshot) -> set[str]:
    """Return the digests a job keeps for ever: what its user gave, and what its fronts refer to."""
    kept = set(snapshot.job.spec.inputs)
    for target in range(len(snapshot.job.spec.targets)):
        front = build_front(snapshot, target)
        for point in (*front.dense, *front.items):
            kept |= {file.digest for file in point.artifacts}
            kept |= {point.manifest} if point.manifest is not None else set()
    manifests = snapshot.job.report.get("manifests")
    return kept | {str(digest) for digest in (manifests.values() if isinstance(manifests, dict) else ())}
