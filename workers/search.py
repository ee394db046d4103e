"""Search work: take a job's lease, run its loop for a slice, give way; any search worker goes on where another stopped."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from domain.errors import StaleAttempt
from domain.ports import JobStore
from domain.work import LEASE_S
from search.loop import SearchLoop

log = logging.getLogger(__name__)


@dataclass
class SearchWork:
    """Everything one search process needs."""

    store: JobStore
    loop: SearchLoop
    owner: str
    is_draining: Callable[[], bool]
    slice_s: float = 30.0

    def run(self) -> int:
        """Run slices of whatever job waits longest until none does; return how many slices were run."""
        slices = 0
        while not self.is_draining():
            lease = self.store.lease_search(self.owner, lease_s=LEASE_S)
            if lease is None:
                break
            try:
                self.loop.run(lease, until=self._end_of_slice(time.monotonic() + self.slice_s))
            except StaleAttempt:
                log.warning("job %s: its search lease went to another worker", lease.job_id)
            slices += 1
        return slices

    def _end_of_slice(self, end: float) -> Callable[[], bool]:
        return lambda: self.is_draining() or time.monotonic() > end
