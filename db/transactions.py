"""One transaction a method, and database errors told in our own words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import Connection, Engine, insert
from sqlalchemy import exc as sql

from db.models import tally
from domain.errors import Invalid, StaleAttempt, Unavailable


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn what the database says into ``Unavailable`` (away, busy, deadlock: try again) or ``Invalid`` (cannot be stored)."""
    try:
        yield
    except (sql.OperationalError, sql.InterfaceError, sql.TimeoutError) as error:
        # The first line only: SQLAlchemy adds the statement and its parameters, which may hold secrets.
        detail = str(getattr(error, "orig", None) or "no free connection").strip().partition("\n")[0]
        raise Unavailable(
            f"The database did not answer: {detail}. Check that it runs, then try again.",
            code="database_unavailable",
            metadata={"detail": detail},
        ) from error
    except sql.DataError as error:
        detail = str(error.orig).strip().partition("\n")[0]
        raise Invalid(
            f"This cannot be stored: {detail}. Take out NUL characters and numbers out of range.",
            code="cannot_be_stored",
            metadata={"detail": detail},
        ) from error


class Transactions:
    """Base of the store's parts: each of their methods opens one of these."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @contextmanager
    def _transaction(self, *, is_snapshot: bool = False) -> Iterator[Connection]:
        """Open a transaction; committed at the end, rolled back on any exception.

        Args:
            is_snapshot: Every statement sees the tables as they were at the first one.

        Raises:
            Unavailable: ``database_unavailable``.
            Invalid: ``cannot_be_stored``.
        """
        try:
            with database_errors(), self._engine.connect() as connection:
                if is_snapshot:
                    connection = connection.execution_options(isolation_level="REPEATABLE READ")
                with connection.begin():
                    yield connection
        except StaleAttempt as error:
            self._count_fenced(str(error.metadata.get("work", "search")))
            raise

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        """Open a connection for statements that each stand for themselves: no transaction, so no round trips to begin and end one.

        Raises:
            Unavailable: ``database_unavailable``.
            Invalid: ``cannot_be_stored``.
        """
        with database_errors(), self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            yield connection

    def _count_fenced(self, lease: str) -> None:
        """Note a write that was refused, which its own transaction has forgotten with all else; at best effort."""
        with suppress(sql.SQLAlchemyError), self._engine.begin() as connection:
            connection.execute(insert(tally).values(what="fenced", label=lease))
