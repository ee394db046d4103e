"""The schema: migrated up and down, by several at once, the same as the models, and closed to illegal moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import IntegrityError

from db.engine import current_revision, downgrade, head_revision, make_engine, schema_is_current, upgrade
from db.models import metadata
from db.store import SqlJobStore
from domain.job import JOB_TRANSITIONS
from domain.trial import TRIAL_TRANSITIONS
from domain.work import WORK_TRANSITIONS
from tests.integration.db.samples import Seeds, prepare


@pytest.fixture
def fresh(new_database: Callable[[], str]) -> Iterator[tuple[str, Engine]]:
    url = new_database()
    engine = make_engine(url)
    yield url, engine
    engine.dispose()


def test_up_down_up_ends_where_it_began(fresh: tuple[str, Engine]) -> None:
    url, engine = fresh
    assert current_revision(engine) is None and not schema_is_current(engine)
    upgrade(url)
    assert schema_is_current(engine) and SqlJobStore(engine).schema_is_current()
    upgrade(url)  # nothing to do
    downgrade(url, "base")
    assert current_revision(engine) is None
    with engine.connect() as connection:
        left = connection.execute(
            text(
                "SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace WHERE n.nspname = 'public' "
                "UNION SELECT proname FROM pg_proc JOIN pg_namespace n ON n.oid = pronamespace WHERE n.nspname = 'public'"
            )
        )
        assert set(left.scalars()) <= {"alembic_version", "alembic_version_pkc"}
    upgrade(url)
    assert current_revision(engine) == head_revision()


def test_several_may_migrate_at_once(fresh: tuple[str, Engine]) -> None:
    url, engine = fresh
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(upgrade, [url] * 3))
    assert schema_is_current(engine)


def test_a_newer_schema_is_current_where_it_says_that_it_suits_this_release(fresh: tuple[str, Engine]) -> None:
    url, engine = fresh
    upgrade(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert schema_is_current(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE schema_floor SET revision = '9998'"))
    assert not schema_is_current(engine)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE schema_floor"))
    assert not schema_is_current(engine)


def test_the_migrations_make_what_the_models_say(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        names = connection.execute(
            text("SELECT conname FROM pg_constraint WHERE contype = 'c' AND connamespace = 'public'::regnamespace")
        )
        found = set(names.scalars())
    wanted = {
        str(constraint.name)
        for table in metadata.tables.values()
        for constraint in table.constraints
        if type(constraint).__name__ == "CheckConstraint"
    }
    assert {f"ck_{name}" if not name.startswith("ck_") else name for name in wanted} == found


@pytest.mark.parametrize(
    ("table", "transitions"),
    [
        ("job", JOB_TRANSITIONS),
        ("trial", TRIAL_TRANSITIONS),
        ("build", WORK_TRANSITIONS),
        ("measurement", WORK_TRANSITIONS),
    ],
)
def test_the_database_lets_a_state_move_exactly_as_the_domain_does(
    store: SqlJobStore,
    seeds: Seeds,
    engine: Engine,
    table: str,
    transitions: Mapping[StrEnum, frozenset[StrEnum]],
) -> None:
    _, lease = seeds.job()
    seeds.trial(lease)
    seeds.measurement(lease)
    with engine.connect() as connection:
        for before in transitions:
            for after in transitions:
                legal = after in transitions[before] or after == before
                assert _may_move(connection, table, before, after) is legal, (before, after)


def _may_move(connection: Connection, table: str, before: str, after: str) -> bool:
    """Whether a row can be updated from one state to another; nothing is kept."""
    more = ", lease_until = now()" if table in {"build", "measurement"} else ""
    with connection.begin() as transaction:
        connection.execute(text("SET LOCAL session_replication_role = replica"))  # no triggers: any starting point
        connection.execute(text(f"UPDATE {table} SET state = :state{more}"), {"state": before})
        connection.execute(text("SET LOCAL session_replication_role = origin"))
        try:
            connection.execute(text(f"UPDATE {table} SET state = :state"), {"state": after})
        except IntegrityError as error:
            assert "may not move" in str(error)
            return False
        finally:
            transaction.rollback()
    return True


def test_a_state_nobody_knows_cannot_be_written(store: SqlJobStore, seeds: Seeds, engine: Engine) -> None:
    _, lease = seeds.job()
    store.add_build(lease, prepare())
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(text("UPDATE build SET state = 'napping'"))


def test_a_device_cannot_hold_two_leases(store: SqlJobStore, seeds: Seeds, engine: Engine) -> None:
    _, lease = seeds.job()
    box = seeds.device()
    for _ in range(2):
        seeds.measurement(lease)
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(
            text("UPDATE measurement SET state = 'leased', lease_until = now(), device_id = :id"), {"id": box.id}
        )
