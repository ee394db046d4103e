"""Every migration on tables that hold something: up from data of the version before it, down, and up again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, MetaData, func, select, text

from db import engine as db_engine
from db.engine import _config, current_revision, downgrade, make_engine, schema_is_current, upgrade
from db.store import SqlJobStore
from domain.errors import Unavailable
from domain.job import JobVerb
from domain.outcome import Blame
from domain.trial import TrialState
from domain.work import WorkState
from tests.integration.db.samples import LEASE_S, Seeds, built, failed, measured, new_measurement, prepare

ROOT = Path(__file__).resolve().parents[3]
REVISIONS = [script.revision for script in reversed(list(ScriptDirectory.from_config(_config()).walk_revisions()))]
Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def lived_in(new_database: Callable[[], str]) -> Iterator[Engine]:
    """A database that has seen jobs in every state, work that failed, late outcomes and a checked device."""
    url = new_database()
    upgrade(url)
    made = make_engine(url)
    store = SqlJobStore(made)
    seeds = Seeds(store)
    box = seeds.device({"class": "edge"})
    store.set_token("admin", "secret", frozenset({"admin"}))
    job, lease = seeds.job("running")
    trial = seeds.trial(lease)
    store.add_build(lease, prepare())
    for outcome in (built(), failed(Blame.SYSTEM)):
        build = store.claim_build("builder", lease_s=LEASE_S)
        assert build is not None
        store.finish_build(build.id, build.attempt, outcome)
    row = store.add_measurement(lease, new_measurement("m0"), trial_id=trial.id)
    late = store.claim_measurement(box.id, lease_s=0.0)
    held = store.claim_measurement(box.id, lease_s=LEASE_S)
    assert late is not None and held is not None
    with pytest.raises(Exception, match="no longer"):
        store.finish_measurement(row.id, box.id, late.attempt, measured())
    store.finish_measurement(row.id, box.id, held.attempt, measured())
    store.finish_trial(lease, trial.id, TrialState.SUCCEEDED)
    for verb in (JobVerb.PAUSE, JobVerb.STOP, JobVerb.CANCEL):
        other, held_search = seeds.job(verb.value)
        seeds.measurement(held_search)
        store.apply_verb(other.id, verb)
    store.create_job(job.spec, idempotency_key="once")
    yield made
    made.dispose()


def fill(source: Engine, target: Engine) -> None:
    """Copy rows into tables of an older schema: what its columns can hold."""
    here, there = reflected(source), reflected(target)
    with source.connect() as reading, target.begin() as writing:
        writing.execute(text("SET LOCAL session_replication_role = replica"))
        for table in there.sorted_tables:
            if table.name not in here.tables or table.name == "alembic_version":
                continue
            known = {column.name: column for column in here.tables[table.name].columns}
            names = [column.name for column in table.columns if column.name in known and column.identity is None]
            rows = reading.execute(select(*(known[name] for name in names))).mappings().all()
            if rows:
                writing.execute(table.insert(), [dict(row) for row in rows])


def reflected(engine: Engine) -> MetaData:
    found = MetaData()
    found.reflect(engine)
    return found


def contents(engine: Engine) -> Rows:
    """Return what every table holds, less numbers that tables give themselves."""
    with engine.connect() as connection:
        return {
            table.name: [
                {column.name: row[column.name] for column in table.columns if column.identity is None}
                for row in connection.execute(select(table).order_by(*table.primary_key.columns)).mappings()
            ]
            for table in reflected(engine).sorted_tables
            if table.name != "alembic_version"
        }


def common(one: Rows, other: Rows) -> tuple[Rows, Rows]:
    """Return both, cut down to the tables and columns they share."""

    def cut(rows: Rows, by: Rows) -> Rows:
        return {
            name: sorted(
                ({key: value for key, value in row.items() if not by[name] or key in by[name][0]} for row in found),
                key=str,
            )
            for name, found in rows.items()
            if by.get(name)
        }

    return cut(one, other), cut(other, one)


@pytest.mark.parametrize(("before", "after"), list(pairwise(REVISIONS)), ids=REVISIONS[1:])
def test_a_migration_keeps_the_data_of_the_version_before_it(
    lived_in: Engine, new_database: Callable[[], str], before: str, after: str
) -> None:
    url = new_database()
    upgrade(url, before)
    engine = make_engine(url)
    fill(lived_in, engine)
    old = contents(engine)
    assert sum(len(rows) for rows in old.values()) > 20
    for _ in range(2):  # up, down, and up again
        upgrade(url, after)
        kept, told = common(old, contents(engine))
        assert kept == told
        downgrade(url, before)
        assert contents(engine) == old
    upgrade(url)
    assert schema_is_current(engine)
    engine.dispose()


def test_the_service_goes_on_with_migrated_data(lived_in: Engine, new_database: Callable[[], str]) -> None:
    url = new_database()
    upgrade(url, REVISIONS[-2])
    engine = make_engine(url)
    fill(lived_in, engine)
    upgrade(url)
    store = SqlJobStore(engine)
    for job in store.jobs().items:
        snapshot, kept = store.snapshot(job.id), SqlJobStore(lived_in).snapshot(job.id)
        # A paused job's pause goes on.
        assert replace(snapshot, job=snapshot.job.model_copy(update={"paused_s": kept.job.paused_s})) == kept
        assert store.events(job.id) == SqlJobStore(lived_in).events(job.id)
    (device,) = store.devices().items
    claim = store.claim_measurement(device.id, lease_s=LEASE_S)
    assert claim is not None
    store.finish_measurement(claim.measurement_id, device.id, claim.attempt, measured())
    assert store.measurement(claim.measurement_id).state is WorkState.DONE
    engine.dispose()


def test_all_the_way_down_and_up_on_filled_tables(lived_in: Engine, new_database: Callable[[], str]) -> None:
    url = new_database()
    upgrade(url)
    engine = make_engine(url)
    fill(lived_in, engine)
    for revision in reversed(REVISIONS[:-1]):
        downgrade(url, revision)
        assert current_revision(engine) == revision
    upgrade(url)
    with engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(reflected(engine).tables["job"])).scalar_one() == 5
    assert SqlJobStore(engine).jobs().items
    engine.dispose()


def test_a_migration_that_cannot_have_its_lock_gives_up_and_changes_nothing(
    lived_in: Engine, new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_database()
    upgrade(url, REVISIONS[0])
    engine = make_engine(url)
    fill(lived_in, engine)
    monkeypatch.setattr(db_engine, "LOCK_TIMEOUT_S", 1)
    with engine.begin() as connection:
        connection.execute(text("SELECT 1 FROM job FOR UPDATE; SELECT 1 FROM device FOR UPDATE"))
        with pytest.raises(Unavailable) as caught:
            upgrade(url)
    assert "lock timeout" in caught.value.message
    assert current_revision(engine) == REVISIONS[0]
    upgrade(url)
    assert schema_is_current(engine)
    engine.dispose()


def test_entry_points_refuse_a_stale_schema_and_say_what_to_run(
    new_database: Callable[[], str], broker_url: str, tmp_path: Path
) -> None:
    url = new_database()
    upgrade(url, REVISIONS[-2])
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PRUNELOOP_")},
        "PRUNELOOP_DATABASE_URL": url,
        "PRUNELOOP_BROKER_URL": broker_url,
        "PRUNELOOP_ARTIFACT_DIR": str(tmp_path),
    }
    commands = (["api.main"], *(["workers.main", role] for role in ("search", "build", "reaper")))
    started = [
        subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    for process, command in zip(started, commands, strict=True):
        _, said = process.communicate(timeout=60)
        assert process.returncode == 1, command
        assert "stale_schema" in said and "pruneloop db upgrade" in said, command
