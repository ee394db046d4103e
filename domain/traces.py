"""The ids of a job's trace, derived from the job's own: every process that works for a job knows them without being told.

A device needs no tracing library: what it did is told by the server, from the outcome.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_chosen: ContextVar[tuple[int, int] | None] = ContextVar("chosen_ids", default=None)


def trace_id_of(job_id: str) -> int:
    """Return the 128-bit id of a job's trace."""
    return int.from_bytes(_digest(job_id)[:16])


def root_span_id_of(job_id: str) -> int:
    """Return the 64-bit id of the first span of a job's trace: all others hang below it."""
    return int.from_bytes(_digest(job_id)[16:24])


@contextmanager
def choosing_root_of(job_id: str) -> Iterator[None]:
    """Let the next span that begins a trace here be the first one of a job's."""
    token = _chosen.set((trace_id_of(job_id), root_span_id_of(job_id)))
    try:
        yield
    finally:
        _chosen.reset(token)


def chosen_ids() -> tuple[int, int] | None:
    """Return (trace id, span id) that the next span shall have, if that was said."""
    return _chosen.get()


def _digest(job_id: str) -> bytes:
    return hashlib.sha256(f"pruneloop trace {job_id}".encode()).digest()
