"""Search work: take a job's lease, run its loop for a slice, give way; any search worker goes on where another stopped."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from domain.errors import PruneloopError, StaleAttempt, Unavailable
from domain.job import EndedBy, JobState
from domain.logs import log_context
from domain.ports import JobStore, SearchLease
from domain.work import HEARTBEAT_S, LEASE_S
from search.loop import SearchLoop
from workers.tracing import job_span

log = logging.getLogger(__name__)

MAX_CRASHES = 3  # of one job's loop: then it is poison, and ends with the reason
CRASH_PAUSE_S = 5.0
CRASHES = "search_crashes"  # in the job's report


@dataclass
class SearchWork:
    """Everything one search process needs."""

    store: JobStore
    loop: SearchLoop
    owner: str
    is_draining: Callable[[], bool]
    slice_s: float = 30.0
    heartbeat_s: float = HEARTBEAT_S

    def run(self) -> int:
        """Run slices of whatever job waits longest until none does; return how many slices were run."""
        slices = 0
        while not self.is_draining():
            try:
                lease = self.store.lease_search(self.owner, lease_s=LEASE_S)
                if lease is None:
                    break
                with log_context(job_id=lease.job_id), job_span("search", lease.job_id, attempt=lease.attempt):
                    self._run_slice(lease)
            except Unavailable as error:  # the tables are away: the reaper wakes us when they are back
                log.warning("search: %s", error)
                break
            slices += 1
        return slices

    def _run_slice(self, lease: SearchLease) -> None:
        try:
            with self._held(lease):
                self.loop.run(lease, until=self._end_of_slice(time.monotonic() + self.slice_s))
        except StaleAttempt:
            log.warning("job %s: its search lease went to another worker", lease.job_id)
        except Unavailable:
            raise
        except Exception as error:  # the task's boundary: a loop that always raises must not be tried for ever
            log.exception("job %s: its search raised", lease.job_id)
            self._note_crash(lease, f"{type(error).__name__}: {error}")

    def _note_crash(self, lease: SearchLease, what: str) -> None:
        """Count it against the job and give it back for a while; the last one it may have ends the job."""
        try:
            report = self.store.job(lease.job_id).report
            known = report.get(CRASHES)
            crashes = 1 + (known if isinstance(known, int) else 0)
            self.store.merge_report(lease, {CRASHES: crashes})
            if crashes >= MAX_CRASHES:
                reason = f"The search raised {crashes} times, the last time {what}. Its log has the details."
                self.store.end_job(lease, JobState.FAILED, ended_by=EndedBy.SYSTEM, reason=reason)
            else:
                self.store.release_search(lease, retry_after_s=CRASH_PAUSE_S * crashes)
        except StaleAttempt as error:
            log.info("job %s: %s", lease.job_id, error)

    @contextmanager
    def _held(self, lease: SearchLease) -> Iterator[None]:
        """Extend the lease from a thread beside the loop: a turn that fits models to many trials may take longer than a lease."""
        is_over = threading.Event()

        def beat() -> None:
            while not is_over.wait(self.heartbeat_s):
                try:
                    self.store.renew_search(lease, lease_s=LEASE_S)
                except StaleAttempt:
                    return  # the loop finds out at its next write
                except PruneloopError as error:
                    log.warning("search lease of %s not renewed: %s", lease.job_id, error)

        thread = threading.Thread(target=beat, name="search lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join(timeout=10)

    def _end_of_slice(self, end: float) -> Callable[[], bool]:
        return lambda: self.is_draining() or time.monotonic() > end
