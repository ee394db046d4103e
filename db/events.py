"""What happened to a job, one row a change, written in the transaction of the change.

Event ids count 1, 2, 3 ... within a job: taking one locks the job's row until the commit, so ids become visible in their order
and a reader that resumes after id N can never have missed one below it. (A plain sequence is not safe: 7 may commit before 6.)

Who takes a job's lock takes it before the lock of any trial, build or measurement; so no two wait for each other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import psycopg
from pydantic import JsonValue
from sqlalchemy import Connection, Engine, bindparam, func, insert, literal, select, update

from db.mapping import EVENT_COLUMNS, event_of
from db.models import event, job
from db.row_cache import RowCache
from db.transactions import Transactions, database_errors
from domain.errors import NotFound, Unavailable
from domain.job import JobState
from domain.ports import Event

CHANNEL = "pruneloop_job"
MAX_EVENTS = 1000
RECHECK_S = 5.0  # a notification lost to a broken connection costs this long at most


def append_event(connection: Connection, job_id: str, type_: str, data: Mapping[str, JsonValue]) -> None:
    """Write an event and tell whoever waits, at commit. Locks the job's row until then."""
    taken = (
        update(job)
        .where(job.c.id == bindparam("of_job"))
        .values(event_seq=job.c.event_seq + 1)
        .returning(job.c.id, job.c.event_seq)
        .cte("taken")
    )
    row = select(taken.c.id, taken.c.event_seq, literal(type_), bindparam("body", type_=event.c.data.type))
    connection.execute(
        insert(event).from_select(["job_id", "id", "type", "data"], row), {"of_job": job_id, "body": dict(data)}
    )
    connection.execute(select(func.pg_notify(CHANNEL, job_id)))


class Listener:
    """A connection that hears of every job; closed with the thread that holds it."""

    def __init__(self, engine: Engine) -> None:
        with database_errors():
            pooled = engine.raw_connection()
        connection: Any = pooled.dbapi_connection
        pooled.detach()  # kept for as long as its thread lives, so it may not count against the pool
        self.connection: psycopg.Connection[Any] = connection
        connection.rollback()
        connection.autocommit = True
        connection.execute(f"LISTEN {CHANNEL}")

    def __del__(self) -> None:
        self.connection.close()


class Watch(threading.local):
    """What one thread knows of the job it follows, and its own connection that listens."""

    job_id: str | None = None
    event_seq: int = -1
    listener: Listener | None = None


class EventTables(Transactions):
    """Reading events, and waiting for the next one."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._rows = RowCache()
        self._watch = Watch()

    def events(self, job_id: str, *, after: int = 0, limit: int = 200) -> tuple[Event, ...]:
        """Return the events of a job past an id, in order."""
        query = (
            select(*EVENT_COLUMNS)
            .where(event.c.job_id == job_id, event.c.id > after)
            .order_by(event.c.id)
            .limit(max(1, min(limit, MAX_EVENTS)))
        )
        with self._transaction() as connection:
            return tuple(event_of(row) for row in connection.execute(query))

    def follow(self, job_id: str, *, after: int, limit: int = 200) -> tuple[tuple[Event, ...], bool]:
        """Return the events of a job past an id, and whether it is over and these are its last. Raises NotFound."""
        query = (
            select(*EVENT_COLUMNS).where(event.c.job_id == job_id, event.c.id > after).order_by(event.c.id).limit(limit)
        )
        with self._transaction() as connection:
            # Read before the events: what a job wrote before it ended is then surely among them.
            state = connection.execute(select(job.c.state).where(job.c.id == job_id)).scalar_one_or_none()
            if state is None:
                raise NotFound(f"There is no job {job_id}; GET /v1/jobs lists those there are.")
            events = tuple(event_of(row) for row in connection.execute(query))
        return events, JobState(state).is_terminal and len(events) < limit

    def hear(self, timeout_s: float) -> frozenset[str]:
        """Block until some job changes or time is up; return those that did, as far as this thread has heard since last time.

        Raises:
            Unavailable: The database went away; the next call connects anew.
        """
        try:
            listener = self._listener()
            heard = {note.payload for note in listener.notifies(timeout=timeout_s, stop_after=1)}
            return frozenset(heard | {note.payload for note in listener.notifies(timeout=0)})
        except psycopg.Error as error:
            self._watch.listener = None
            raise Unavailable("The database went away while listening.", code="database_unavailable") from error

    def wait_for_change(self, job_id: str, timeout_s: float) -> bool:
        """Block until something of the job changed since this thread's last snapshot of it, or time is up.

        Without a snapshot before it, changes count from the call on.

        Returns:
            True if it changed.

        Raises:
            Unavailable: The database went away; the next call connects anew.
        """
        deadline = time.monotonic() + timeout_s
        watch = self._watch
        seen = watch.event_seq if watch.job_id == job_id else None
        try:
            # Listening starts before the first look: what commits after that look is heard.
            listener = self._listener()
            while True:
                now = _event_seq(listener, job_id)
                if seen is None:
                    seen = now
                if now != seen:
                    self._saw(job_id, now)
                    return True
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return False
                _hear(listener, job_id, min(left_s, RECHECK_S))
        except psycopg.Error as error:
            self._watch.listener = None
            raise Unavailable(
                f"The database went away while waiting for job {job_id}; try again.", code="database_unavailable"
            ) from error

    def _saw(self, job_id: str, event_seq: int) -> None:
        self._watch.job_id, self._watch.event_seq = job_id, event_seq

    def _listener(self) -> psycopg.Connection[Any]:
        if self._watch.listener is None:
            self._watch.listener = Listener(self._engine)
        return self._watch.listener.connection


def _event_seq(listener: psycopg.Connection[Any], job_id: str) -> int:
    row = listener.execute("SELECT event_seq FROM job WHERE id = %s", (job_id,)).fetchone()
    return -1 if row is None else int(row[0])


def _hear(listener: psycopg.Connection[Any], job_id: str, timeout_s: float) -> None:
    """Return when a notification of the job came, also one that came with an earlier answer, or time is up."""
    for notification in listener.notifies(timeout=timeout_s):
        if notification.payload == job_id:
            return


def lock_job(connection: Connection, job_id: str) -> str | None:
    """Take a job's lock, first of all in the transaction; return its state, None where there is no such job."""
    query = select(job.c.state).where(job.c.id == job_id).with_for_update(key_share=True)
    return connection.execute(query).scalar_one_or_none()
