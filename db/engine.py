"""Connections to PostgreSQL, and the schema they need: made, read and brought up to date from a checkout or an install."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic_core import from_json, to_json
from sqlalchemy import Connection, Engine, create_engine, inspect, select, text
from sqlalchemy.engine import make_url

from db.models import schema_floor
from db.transactions import database_errors

Migration = Callable[[Config], None]
MIGRATIONS = Path(__file__).parent / "migrations"
MIGRATION_LOCK = 7_106_451_023  # any number, the same in every version: the advisory lock of a migration
WAIT_FOR_MIGRATION_S = 120
LOCK_TIMEOUT_S = 10

# A process that hangs must not hold row locks for long, nor wait for them without end.
SESSION = {
    "timezone": "UTC",
    "lock_timeout": "10s",
    "statement_timeout": "60s",
    "idle_in_transaction_session_timeout": "60s",
}


def make_engine(url: str, *, pool_size: int = 5, max_overflow: int = 15, role: str = "") -> Engine:
    """Return a pool of connections; nothing is connected yet. Make one in each process, after forking.

    Args:
        url: ``postgresql+psycopg://...``; plain ``postgresql://`` is taken to mean the same.
        pool_size: Connections kept open.
        max_overflow: Connections opened beyond that while threads want them.
        role: Of this process, as ``pg_stat_activity`` shows it.
    """
    parsed = make_url(url)
    if parsed.drivername in {"postgresql", "postgres"}:
        parsed = parsed.set(drivername="postgresql+psycopg")
    return create_engine(
        parsed,
        pool_size=pool_size,
        max_overflow=max_overflow,
        pool_pre_ping=True,  # the server may have restarted
        pool_timeout=10,
        json_serializer=_to_json,
        json_deserializer=from_json,  # a third of the standard library's time: a job of a thousand trials is ten thousand values
        connect_args={
            "connect_timeout": 5,
            "application_name": f"pruneloop {role}".strip(),
            "options": " ".join(f"-c {name}={value}" for name, value in SESSION.items()),
        },
    )


def _to_json(value: object) -> str:
    # Takes pydantic models as they are; PostgreSQL refuses NaN in JSON, so it becomes null.
    return to_json(value, inf_nan_mode="null").decode()


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the schema to a revision, in one transaction; a second process waits, then finds nothing to do.

    Raises:
        Unavailable: The database is away, or a lock could not be had in time; nothing was changed.
    """
    _migrate(url, lambda config: command.upgrade(config, revision))


def downgrade(url: str, revision: str) -> None:
    """Take the schema back to a revision (``base``: nothing left), in one transaction. Raises Unavailable."""
    _migrate(url, lambda config: command.downgrade(config, revision))


def current_revision(engine: Engine) -> str | None:
    """Return the revision the schema is at; None for an empty database. Raises Unavailable."""
    with database_errors(), engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def head_revision() -> str | None:
    """Return the revision this version of the code needs."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def schema_is_current(engine: Engine) -> bool:
    """Whether this code may work on the schema: it is this release's, or a newer one that says it suits this release still.

    The latter while a release rolls out: the schema goes first, and processes of the old release go on until they are replaced.

    Raises:
        Unavailable: The database is away.
    """
    at, head = current_revision(engine), head_revision()
    if at is None or head is None or at == head:
        return at == head
    return at > head and _floor(engine) <= head


def _floor(engine: Engine) -> str:
    """Return the oldest revision whose code works on the schema; beyond any where it does not say."""
    with database_errors(), engine.connect() as connection:
        if not inspect(connection).has_table(schema_floor.name):
            return "~"
        return connection.execute(select(schema_floor.c.revision)).scalar() or "~"


def _migrate(url: str, move: Migration) -> None:
    engine = make_engine(url, pool_size=1, max_overflow=0)
    try:
        with database_errors(), engine.begin() as connection:
            _take_migration_lock(connection)
            config = _config()
            config.attributes["connection"] = connection
            move(config)
    finally:
        engine.dispose()


def _take_migration_lock(connection: Connection) -> None:
    connection.execute(text(f"SET LOCAL lock_timeout = '{WAIT_FOR_MIGRATION_S}s'"))
    connection.execute(text(f"SET LOCAL statement_timeout = '{WAIT_FOR_MIGRATION_S}s'"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
    # A migration that waits for a table blocks everyone who comes after it: give up soon, try again later.
    connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'"))
    connection.execute(text("SET LOCAL statement_timeout = 0"))


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
