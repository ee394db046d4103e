"""A database of their own for these tests, migrated once; every test finds its tables empty."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.engine import make_url

from db.engine import make_engine, upgrade
from db.models import metadata
from db.store import SqlJobStore
from tests.integration.db.samples import Seeds

NewDatabase = Callable[[], str]


@pytest.fixture(scope="session")
def new_database(database_url: str) -> Iterator[NewDatabase]:
    """Makes an empty database beside the given one and returns its URL; dropped at the end."""
    names: list[str] = []
    server = make_engine(database_url).execution_options(isolation_level="AUTOCOMMIT")

    def create() -> str:
        names.append(f"pl_test_{secrets.token_hex(6)}")
        with server.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {names[-1]}"))
        return make_url(database_url).set(database=names[-1]).render_as_string(hide_password=False)

    yield create
    with server.connect() as connection:
        for name in names:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


@pytest.fixture(scope="session")
def migrated_url(new_database: NewDatabase) -> str:
    url = new_database()
    upgrade(url)
    return url


@pytest.fixture(scope="session")
def session_engine(migrated_url: str) -> Iterator[Engine]:
    engine = make_engine(migrated_url)
    yield engine
    engine.dispose()


@pytest.fixture
def engine(session_engine: Engine) -> Engine:
    """An engine on empty tables."""
    # Small tables: deleting is much faster than truncating, which makes new files.
    with session_engine.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(table.delete())
    return session_engine


@pytest.fixture
def store(engine: Engine) -> SqlJobStore:
    return SqlJobStore(engine)


@pytest.fixture
def seeds(store: SqlJobStore) -> Seeds:
    """Makes rows with as little said as possible."""
    return Seeds(store)
