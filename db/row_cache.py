"""Rows of a job that were read before and did not change since: a search reads its job anew after every change.

PostgreSQL stamps every version of a row with the transaction that wrote it (``xmin``). Reading ids and stamps costs little; only
rows whose stamp is new are fetched and parsed. At a thousand trials that is a dozen rows instead of three thousand.

Source: PostgreSQL documentation, 5.6 System Columns.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Column, Connection, Table, literal_column, select
from sqlalchemy.sql.elements import ColumnElement, Label

from db.mapping import AnyRow

MOST_JOBS = 4  # a process carries few jobs at a time
CHUNK = 1000  # ids in one query

Item = TypeVar("Item")


class RowCache:
    """Parsed rows by table, job and id, each with the stamp it was read under. For all threads of a process."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, dict[str, dict[str, tuple[str, Any]]]] = OrderedDict()
        self._lock = threading.Lock()
        # Parsing holds the interpreter: two at once would only be in each other's way, and in that of everything quick. And a page
        # asks three things of the same rows at once.
        self._reading = threading.Lock()

    def read(
        self,
        connection: Connection,
        table: Table,
        job_id: str,
        *,
        columns: Sequence[ColumnElement[Any]],
        order: Sequence[Column[Any]],
        parse: Callable[[AnyRow], Item],
    ) -> tuple[Item, ...]:
        """Return all of a job's rows in order, fetching those that are new or changed.

        Args:
            connection: Within a transaction that sees one moment (repeatable read): stamps and rows must agree.
            table: With columns ``id`` and ``job_id``.
            job_id: Whose rows.
            columns: What ``parse`` needs, ``id`` among them.
            order: Columns to sort by.
            parse: A row to what is kept; it must not change.
        """
        with self._reading:
            return self._read(connection, table, job_id, columns=columns, order=order, parse=parse)

    def _read(
        self,
        connection: Connection,
        table: Table,
        job_id: str,
        *,
        columns: Sequence[ColumnElement[Any]],
        order: Sequence[Column[Any]],
        parse: Callable[[AnyRow], Item],
    ) -> tuple[Item, ...]:
        stamp: Label[str] = literal_column(f"{table.name}.xmin::text").label("stamp")
        with self._lock:
            known = dict(self._jobs.get(job_id, {}).get(table.name, {}))
        if not known:  # all of them are new: stamps and rows in one question
            rows = connection.execute(select(*columns, stamp).where(table.c.job_id == job_id).order_by(*order)).all()
            return self._keep(job_id, table, {row.id: (row.stamp, parse(row)) for row in rows})
        stamps = connection.execute(select(table.c.id, stamp).where(table.c.job_id == job_id).order_by(*order)).all()
        changed = [row.id for row in stamps if known.get(row.id, ("", None))[0] != row.stamp]
        fresh: dict[str, Item] = {}
        for first in range(0, len(changed), CHUNK):
            ids = changed[first : first + CHUNK]
            rows = connection.execute(select(*columns).where(table.c.id.in_(ids))).all()
            fresh |= {row.id: parse(row) for row in rows}
        found = {row.id: (row.stamp, fresh[row.id] if row.id in fresh else known[row.id][1]) for row in stamps}
        return self._keep(job_id, table, found)

    def _keep(self, job_id: str, table: Table, found: dict[str, tuple[str, Any]]) -> tuple[Any, ...]:
        with self._lock:
            self._jobs.setdefault(job_id, {})[table.name] = found
            self._jobs.move_to_end(job_id)
            while len(self._jobs) > MOST_JOBS:
                self._jobs.popitem(last=False)
        return tuple(item for _, item in found.values())
