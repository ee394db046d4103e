"""The product in numbers: exact whatever path a row took, there after a restart, and cheap at any size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, event, text

from db.engine import downgrade, make_engine, upgrade
from db.store import SqlJobStore
from domain.device import DeviceState
from domain.errors import StaleAttempt
from domain.job import EndedBy, JobState
from domain.outcome import Blame
from domain.trial import TrialState
from tests.integration.db.samples import LEASE_S, Seeds, failed, measured, prepare


@pytest.fixture
def own_engine(new_database: Callable[[], str]) -> Iterator[Engine]:
    """An engine on a database of its own, for what would be slow to take out of the shared one."""
    url = new_database()
    upgrade(url)
    engine = make_engine(url)
    yield engine
    engine.dispose()


def expire(engine: Engine, table: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {table} SET lease_until = now() - interval '1 hour' WHERE state = 'leased'"))


def test_an_empty_product_is_all_zero(store: SqlJobStore) -> None:
    numbers = store.numbers()
    assert not numbers.jobs and not numbers.ended and numbers.asked == 0
    assert {name: queue.depth for name, queue in numbers.queues.items()} == {"search": 0, "build": 0, "measurement": 0}
    assert sum(numbers.durations["measurement"].counts) == 0


def test_what_waits_is_counted_with_its_age(store: SqlJobStore, seeds: Seeds, engine: Engine) -> None:
    _, lease = seeds.job()
    seeds.trial(lease)
    box, other = seeds.device({"class": "edge"}), seeds.device()
    store.set_device_state(other.id, DeviceState.PAUSED)
    seeds.measurement(lease)
    with engine.begin() as connection:
        connection.execute(text("UPDATE measurement SET created_at = now() - interval '90 seconds'"))
    numbers = store.numbers()
    assert numbers.jobs == {("RUNNING", "queued"): 1}
    assert numbers.open_trials == {"building": 1} and numbers.asked == 1
    assert numbers.queues["build"].depth == 1 and numbers.queues["build"].oldest_s < 30
    assert numbers.queues["measurement"].depth == 1
    assert numbers.queues["measurement"].oldest_s == pytest.approx(90, abs=20)
    found = {one.id: one for one in numbers.devices}
    assert found[box.id].queue.depth == 1 and found[box.id].queue.oldest_s == pytest.approx(90, abs=20)
    assert found[other.id].queue.depth == 0 and found[other.id].state is DeviceState.PAUSED


def test_measurements_are_counted_by_how_they_end_and_how_long_they_took(
    store: SqlJobStore, seeds: Seeds, engine: Engine
) -> None:
    _, lease = seeds.job()
    box = seeds.device()
    for outcome in (measured(), failed(Blame.CANDIDATE), failed(Blame.SYSTEM)):
        seeds.measurement(lease)
        claim = store.claim_measurement(box.id, lease_s=LEASE_S)
        assert claim is not None
        with engine.begin() as connection:
            connection.execute(
                text("UPDATE measurement SET started_at = now() - interval '7 s' WHERE state = 'leased'")
            )
        store.finish_measurement(claim.measurement_id, box.id, claim.attempt, outcome)
    numbers = store.numbers()
    ended = {how: n for (what, how), n in numbers.ended.items() if what == "measurement"}
    assert ended == {"done": 1, "failed": 1, "retried": 1}
    assert numbers.durations["measurement"].counts[4] == 1  # between 5 and 10 s
    assert numbers.durations["measurement"].total_s == pytest.approx(7, abs=2)
    (device,) = numbers.devices
    assert device.measured == 1 and device.measured_s == pytest.approx(7, abs=2)


def test_leases_that_run_out_and_writes_that_are_fenced_off(store: SqlJobStore, seeds: Seeds, engine: Engine) -> None:
    _, lease = seeds.job()
    box, other = seeds.device(), seeds.device()
    seeds.measurement(lease)
    first = store.claim_measurement(box.id, lease_s=LEASE_S)
    assert first is not None
    expire(engine, "measurement")
    second = store.claim_measurement(other.id, lease_s=LEASE_S)
    assert second is not None and second.attempt == 2
    for _ in range(2):  # the same late outcome twice is one write refused
        with pytest.raises(StaleAttempt):
            store.finish_measurement(first.measurement_id, box.id, first.attempt, measured())
    store.finish_measurement(second.measurement_id, other.id, second.attempt, measured())
    store.add_build(lease, prepare())
    build = store.claim_build("b1", lease_s=LEASE_S)
    assert build is not None
    expire(engine, "build")
    store.reap()  # long past its grace: freed
    with pytest.raises(StaleAttempt):
        store.release_build(build.id, build.attempt)
    numbers = store.numbers()
    assert dict(numbers.expired) == {"measurement": 1, "build": 1}
    assert dict(numbers.fenced) == {"measurement": 1, "build": 1}


def test_a_late_outcome_that_is_taken_is_no_expiry(store: SqlJobStore, seeds: Seeds, engine: Engine) -> None:
    _, lease = seeds.job()
    box = seeds.device()
    seeds.measurement(lease)
    claim = store.claim_measurement(box.id, lease_s=LEASE_S)
    assert claim is not None
    with engine.begin() as connection:
        connection.execute(text("UPDATE measurement SET lease_until = now() - interval '1 s'"))
    store.finish_measurement(claim.measurement_id, box.id, claim.attempt, measured())
    assert not store.numbers().expired


def test_a_search_that_another_worker_takes_over_is_an_expiry(store: SqlJobStore, seeds: Seeds, engine: Engine) -> None:
    _, lease = seeds.job()
    with engine.begin() as connection:
        connection.execute(text("UPDATE job SET search_until = now() - interval '1 s'"))
    assert store.lease_search("another", lease_s=LEASE_S) is not None
    with pytest.raises(StaleAttempt):
        store.renew_search(lease, lease_s=LEASE_S)
    numbers = store.numbers()
    assert dict(numbers.expired) == {"search": 1} and dict(numbers.fenced) == {"search": 1}


def test_jobs_and_trials_are_counted_as_they_end(store: SqlJobStore, seeds: Seeds) -> None:
    _, lease = seeds.job()
    for number in range(3):
        trial = seeds.trial(lease, number)
        if number:
            store.finish_trial(lease, trial.id, TrialState.INFEASIBLE, reason="no")
    store.end_job(lease, JobState.FAILED, ended_by=EndedBy.SYSTEM, reason="enough")
    numbers = store.numbers()
    assert numbers.asked == 3 and numbers.ended["trial", "infeasible"] == 2
    assert numbers.ended["job", "FAILED"] == 1 and not numbers.jobs


def test_adding_notes_up_changes_nothing_and_several_may_do_it(
    store: SqlJobStore, seeds: Seeds, engine: Engine
) -> None:
    _, lease = seeds.job()
    for number in range(20):
        seeds.trial(lease, number)
    before = store.numbers()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: store.fold_tallies(), range(8)))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM tally")).scalar_one() == 0
    after = store.numbers()
    assert (after.asked, after.ended) == (before.asked, before.ended) == (20, before.ended)
    seeds.trial(lease, 20)
    assert store.numbers().asked == 21


def test_what_a_product_did_before_it_counted_is_counted(own_engine: Engine) -> None:
    url = own_engine.url.render_as_string(hide_password=False)
    store = SqlJobStore(own_engine)
    seeds = Seeds(store)
    _, lease = seeds.job()
    box = seeds.device()
    store.finish_trial(lease, seeds.trial(lease).id, TrialState.INFEASIBLE)
    seeds.measurement(lease)
    claim = store.claim_measurement(box.id, lease_s=LEASE_S)
    assert claim is not None
    store.finish_measurement(claim.measurement_id, box.id, claim.attempt, measured())
    store.end_job(lease, JobState.SUCCEEDED, ended_by=EndedBy.BUDGET)
    before = store.numbers()
    downgrade(url, "0010")
    upgrade(url)
    after = store.numbers()
    assert after.ended == before.ended and after.asked == before.asked
    assert after.durations["measurement"].counts == before.durations["measurement"].counts
    assert after.devices[0].measured == 1


def test_a_reading_looks_at_what_is_open_only(own_engine: Engine) -> None:
    """With 30,000 ended measurements and as many trials, no statement of a reading scans one of the big tables."""
    engine, store = own_engine, SqlJobStore(own_engine)
    seeds = Seeds(store)
    _, lease = seeds.job()
    seeds.device()
    trial = seeds.trial(lease)
    measurement = seeds.measurement(lease)
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        for table, columns, changed in (
            ("measurement", "id, key, state", "'m' || n, 'k' || n, 'done'"),
            ("trial", "id, number, study_number, state", "'t' || n, n, n, 'succeeded'"),
        ):
            named = {name.strip() for name in columns.split(",")}
            every = connection.execute(
                text("SELECT column_name FROM information_schema.columns WHERE table_name = :table"), {"table": table}
            ).scalars()
            rest = ", ".join(name for name in every if name not in named)
            connection.execute(
                text(
                    f"INSERT INTO {table} ({columns}, {rest}) SELECT {changed}, {rest} "
                    f"FROM {table}, generate_series(1, 30000) AS n WHERE id = :id"
                ),
                {"id": {"measurement": measurement.id, "trial": trial.id}[table]},
            )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    said: list[tuple[str, object]] = []

    def note(_c: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        said.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    try:
        assert store.numbers().queues["measurement"].depth == 1
    finally:
        event.remove(engine, "before_cursor_execute", note)
    assert len(said) >= 6
    with engine.connect() as connection:
        for statement, parameters in said:
            plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN {statement}", parameters).scalars())  # type: ignore[arg-type]
            assert "Seq Scan on measurement" not in plan and "Seq Scan on trial" not in plan, plan
