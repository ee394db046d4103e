"""The event stream of a job: rows of the events table, resumable by id, ended with the job.

However many streams are open, one thread listens to the database for all of them, and a stream reads only when its job changed.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress

from anyio import CapacityLimiter, to_thread
from fastapi.sse import ServerSentEvent

from domain.errors import Unavailable
from domain.ports import Event, JobStore

BATCH = 200
LISTEN_S = 1.0
POLL_S = 0.5  # while nobody listens: at first, and where the database is away
RECHECK_S = 10.0  # a notification lost to a broken connection costs this long at most
MAX_STREAM_THREADS = 8  # of their own, so that streams never take the threads of the other routes

Waiter = tuple[asyncio.AbstractEventLoop, asyncio.Event]


class EventStreams:
    """Serves event streams of one app.

    Args:
        store: The tables.
        longest_s: A stream ends after this long; its reader comes back with ``Last-Event-ID``.
    """

    def __init__(self, store: JobStore, *, longest_s: float) -> None:
        self._store = store
        self._longest_s = longest_s
        self._threads: CapacityLimiter | None = None
        self._ears = _Ears(store)

    async def follow(self, job_id: str, *, after: int) -> AsyncIterator[ServerSentEvent]:
        """Yield the events of a job past an id, until the job is over and nothing is left, or it took the longest."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._longest_s
        changed = asyncio.Event()
        # Said at once, so that a caller knows the stream stands before the first event.
        yield ServerSentEvent(comment="pruneloop events", retry=2000)
        # Listening begins before the first look: what is committed after that look is heard.
        with self._ears.waiting_for(job_id, (loop, changed)):
            while loop.time() < deadline:
                changed.clear()
                events, is_end = await self._read(job_id, after)
                for event in events:
                    after = event.id
                    yield _message(event)
                if is_end:
                    return
                if len(events) < BATCH:
                    patience_s = RECHECK_S if self._ears.are_open else POLL_S
                    with suppress(TimeoutError):
                        await asyncio.wait_for(changed.wait(), max(0.0, min(patience_s, deadline - loop.time())))

    async def _read(self, job_id: str, after: int) -> tuple[tuple[Event, ...], bool]:
        if self._threads is None:
            self._threads = CapacityLimiter(MAX_STREAM_THREADS)
        return await to_thread.run_sync(
            lambda: self._store.follow(job_id, after=after, limit=BATCH), limiter=self._threads
        )


class _Ears:
    """One thread that listens for as long as somebody waits, and tells whom a change concerns."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._waiting: dict[str, set[Waiter]] = {}
        self._lock = threading.Lock()
        self._is_running = False
        self.are_open = False

    def waiting_for(self, job_id: str, waiter: Waiter) -> _Waiting:
        return _Waiting(self, job_id, waiter)

    def add(self, job_id: str, waiter: Waiter) -> None:
        with self._lock:
            self._waiting.setdefault(job_id, set()).add(waiter)
            if self._is_running:
                return
            self._is_running = True
        threading.Thread(target=self._listen, name="event-ears", daemon=True).start()

    def remove(self, job_id: str, waiter: Waiter) -> None:
        with self._lock:
            left = self._waiting.get(job_id, set())
            left.discard(waiter)
            if not left:
                self._waiting.pop(job_id, None)

    def _listen(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._is_running = self.are_open = False
                    return
            try:
                heard = self._store.hear(LISTEN_S)
                was_open, self.are_open = self.are_open, True
            except Unavailable:
                self.are_open = False
                time.sleep(LISTEN_S)
                continue
            with self._lock:
                # Whatever changed before the ears were open was not heard: everybody looks once.
                ids = heard if was_open else frozenset(self._waiting)
                concerned = [waiter for job_id in ids for waiter in self._waiting.get(job_id, ())]
            for loop, changed in concerned:
                with suppress(RuntimeError):  # its loop has just been closed
                    loop.call_soon_threadsafe(changed.set)


class _Waiting:
    def __init__(self, ears: _Ears, job_id: str, waiter: Waiter) -> None:
        self._ears, self._job_id, self._waiter = ears, job_id, waiter

    def __enter__(self) -> None:
        self._ears.add(self._job_id, self._waiter)

    def __exit__(self, *_: object) -> None:
        self._ears.remove(self._job_id, self._waiter)


def _message(event: Event) -> ServerSentEvent:
    body = {"id": event.id, "job_id": event.job_id, "type": event.type, "data": event.data, "at": event.at}
    return ServerSentEvent(id=str(event.id), event=event.type, data=body)
