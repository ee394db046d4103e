"""Leased work: the states a build and a measurement share, and the rules of their leases."""

from __future__ import annotations

from enum import StrEnum


class WorkState(StrEnum):
    """PENDING -> LEASED -> DONE | FAILED | CANCELLED; an expired or released lease goes back to PENDING."""

    PENDING = "pending"
    LEASED = "leased"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return self in {WorkState.DONE, WorkState.FAILED, WorkState.CANCELLED}


WORK_TRANSITIONS: dict[WorkState, frozenset[WorkState]] = {
    WorkState.PENDING: frozenset({WorkState.LEASED, WorkState.CANCELLED, WorkState.FAILED}),
    WorkState.LEASED: frozenset(
        {WorkState.PENDING, WorkState.LEASED, WorkState.DONE, WorkState.FAILED, WorkState.CANCELLED}
    ),
    WorkState.DONE: frozenset(),
    WorkState.FAILED: frozenset(),
    WorkState.CANCELLED: frozenset(),
}

MAX_ATTEMPTS = 3  # then the work is poison: failed with the reason, never tried a fourth time
# Four heartbeats. Work of a host that is gone for good goes on elsewhere after this and a pass of the reaper: within ten seconds.
LEASE_S = 8.0
HEARTBEAT_S = 2.0
SEARCH_SLICE_S = 10.0  # a job's loop gives way to a waiting one after this long
