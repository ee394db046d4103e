"""The event stream of a job: rows of the events table, resumable by id, ended with the job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TypeVar, TypeVarTuple

from anyio import CapacityLimiter, to_thread
from fastapi.sse import ServerSentEvent

from domain.ports import Event, JobStore

T = TypeVar("T")
A = TypeVarTuple("A")

POLL_S = 0.5
BATCH = 200
MAX_STREAM_S = 1800.0  # then the client comes back with Last-Event-ID: a revoked token does not stream for ever
MAX_STREAM_THREADS = 8  # of their own, so that streams never take the threads of the other routes


class EventStreams:
    """Serves event streams of one app."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._threads: CapacityLimiter | None = None

    async def follow(self, job_id: str, *, after: int) -> AsyncIterator[ServerSentEvent]:
        """Yield the events of a job past an id, until the job is over and nothing is left, or half an hour has passed."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + MAX_STREAM_S
        # Said at once, so that a caller knows the stream stands before the first event.
        yield ServerSentEvent(comment="pruneloop events", retry=2000)
        while loop.time() < deadline:
            # Read before the events: what a job wrote before it ended is then surely among them.
            is_over = await self._in_thread(self._is_over, job_id)
            events = await self._in_thread(self._read, job_id, after)
            for event in events:
                after = event.id
                yield _message(event)
            if is_over and len(events) < BATCH:
                return
            if len(events) < BATCH:
                await asyncio.sleep(POLL_S)

    def _is_over(self, job_id: str) -> bool:
        return self._store.job(job_id).state.is_terminal

    def _read(self, job_id: str, after: int) -> tuple[Event, ...]:
        return self._store.events(job_id, after=after, limit=BATCH)

    async def _in_thread(self, function: Callable[[*A], T], *arguments: *A) -> T:
        if self._threads is None:
            self._threads = CapacityLimiter(MAX_STREAM_THREADS)
        return await to_thread.run_sync(function, *arguments, limiter=self._threads)


def _message(event: Event) -> ServerSentEvent:
    body = {"id": event.id, "job_id": event.job_id, "type": event.type, "data": event.data, "at": event.at}
    return ServerSentEvent(id=str(event.id), event=event.type, data=body)
