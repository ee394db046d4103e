"""Many at once: every row is claimed once, nothing is lost to a race, and nobody waits for each other for ever."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, text

from db.engine import make_engine
from db.store import SqlJobStore
from domain.build import Build
from domain.device import DeviceState
from domain.errors import Conflict, PruneloopError
from domain.job import JobVerb
from domain.measurement import Measurement
from domain.outcome import Blame
from domain.work import WorkState
from tests.integration.db.samples import LEASE_S, Seeds, built, failed, measured, prepare, spec

CLAIM_ALL = """
import sys
from db.engine import make_engine
from db.store import SqlJobStore
from tests.integration.db.samples import built
engine = make_engine(sys.argv[1])
store = SqlJobStore(engine)
while (build := store.claim_build(sys.argv[2], lease_s=30)) is not None:
    store.finish_build(build.id, build.attempt, built())
    print(build.id, build.attempt)
engine.dispose()
"""


def test_processes_that_claim_at_once_share_the_builds_each_once(
    store: SqlJobStore, seeds: Seeds, migrated_url: str
) -> None:
    job, lease = seeds.job()
    ids = {store.add_build(lease, prepare(str(number))).id for number in range(40)}
    command = [sys.executable, "-c", CLAIM_ALL, migrated_url]
    workers = [subprocess.Popen([*command, f"w{n}"], stdout=subprocess.PIPE, text=True) for n in range(2)]
    lines = [line.split() for worker in workers for line in worker.communicate(timeout=60)[0].splitlines()]
    assert all(worker.returncode == 0 for worker in workers)
    assert sorted(build_id for build_id, _ in lines) == sorted(ids)
    assert {attempt for _, attempt in lines} == {"1"}
    assert {build.state for build in store.snapshot(job.id).builds} == {WorkState.DONE}
    assert [event.id for event in store.events(job.id)] == list(range(1, 43))


def test_devices_that_claim_at_once_share_the_measurements_each_once(store: SqlJobStore, seeds: Seeds) -> None:
    job, lease = seeds.job()
    ids = {seeds.measurement(lease).id for _ in range(40)}
    boxes = [seeds.device() for _ in range(6)]
    claimed: Counter[str] = Counter()
    lock = threading.Lock()

    def work(device_id: str) -> None:
        while (claim := store.claim_measurement(device_id, lease_s=LEASE_S)) is not None:
            with lock:
                claimed[claim.measurement_id] += 1
            store.finish_measurement(claim.measurement_id, device_id, claim.attempt, measured())

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, [box.id for box in boxes]))
    assert claimed == Counter(ids)
    assert {row.state for row in store.snapshot(job.id).measurements} == {WorkState.DONE}


def test_two_claims_in_one_devices_name_never_make_two_leases(store: SqlJobStore, seeds: Seeds) -> None:
    job, lease = seeds.job()
    for _ in range(8):
        seeds.measurement(lease)
    box = seeds.device()
    with ThreadPoolExecutor(6) as pool:
        claims = list(pool.map(lambda _: store.claim_measurement(box.id, lease_s=LEASE_S), range(3)))
    assert len({claim.measurement_id for claim in claims if claim is not None}) == 1
    leased = [row for row in store.snapshot(job.id).measurements if row.state is WorkState.LEASED]
    assert len(leased) == 1


def test_searches_that_ask_at_once_get_a_job_each(store: SqlJobStore, seeds: Seeds) -> None:
    for _ in range(6):
        _, lease = seeds.job()
        store.release_search(lease)
    with ThreadPoolExecutor(6) as pool:
        leases = list(pool.map(lambda n: store.lease_search(f"s{n}", lease_s=LEASE_S), range(6)))
    # One that looked while another held the row for a moment may have passed it over; the next wake comes.
    leases += [store.lease_search(f"t{n}", lease_s=LEASE_S) for n in range(leases.count(None))]
    assert len({lease.job_id for lease in leases if lease is not None}) == 6


@pytest.mark.parametrize("seed", range(3))
def test_a_cancel_in_the_middle_of_everything_leaves_nothing_open(store: SqlJobStore, seeds: Seeds, seed: int) -> None:
    """Claims, failures, releases, reaping and device changes race with a cancel: no deadlock, and no row is left to claim."""
    job, lease = seeds.job()
    boxes = [seeds.device() for _ in range(3)]
    for number in range(12):
        seeds.trial(lease, number)
        seeds.measurement(lease)
    unexpected: list[BaseException] = []
    cancelled = threading.Event()

    def carry(number: int) -> None:
        box = boxes[number % len(boxes)].id
        turn = seed
        while not cancelled.is_set():
            turn += 1
            try:
                build = store.claim_build(f"b{number}", lease_s=LEASE_S)
                if build is not None:
                    if turn % 3:
                        store.release_build(build.id, build.attempt)
                    else:
                        store.finish_build(build.id, build.attempt, built())
                claim = store.claim_measurement(box, lease_s=LEASE_S)
                if claim is not None:
                    store.heartbeat_measurement(claim.measurement_id, box, claim.attempt, lease_s=LEASE_S)
                    outcome = failed(Blame.DEVICE) if turn % 2 else measured()
                    store.finish_measurement(claim.measurement_id, box, claim.attempt, outcome)
                store.reap()
                store.set_device_state(box, DeviceState.PAUSED if turn % 5 == 0 else DeviceState.ACTIVE)
            except Conflict:
                continue  # cancelled, or another thread has the same device
            except PruneloopError as error:
                unexpected.append(error)
                return

    with ThreadPoolExecutor(6) as pool:
        running = [pool.submit(carry, number) for number in range(6)]
        cancelled.wait(0.3 + 0.2 * seed)
        store.apply_verb(job.id, JobVerb.CANCEL)
        cancelled.set()
        for one in running:
            one.result(timeout=30)
    assert unexpected == []
    snapshot = store.snapshot(job.id)
    rows: tuple[Build | Measurement, ...] = (*snapshot.builds, *snapshot.measurements)
    assert WorkState.PENDING not in {row.state for row in rows}
    assert all(row.cancel_requested for row in rows if row.state is WorkState.LEASED)
    assert store.claim_build("x", lease_s=LEASE_S) is None
    assert all(trial.state.is_terminal for trial in snapshot.trials)
    assert [event.id for event in store.events(job.id, limit=1000)] == list(
        range(1, len(store.events(job.id, limit=1000)) + 1)
    )


def test_connections_that_the_server_closed_while_idle_cost_no_caller_anything(
    store: SqlJobStore, engine: Engine, migrated_url: str
) -> None:
    job = store.create_job(spec())[0]
    count = 4
    with ThreadPoolExecutor(count) as pool:
        meet = threading.Barrier(count)

        def hold() -> None:
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
                meet.wait()

        list(pool.map(lambda _: hold(), range(count)))
    idle = engine.pool.checkedin()  # type: ignore[attr-defined]
    assert idle >= count
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    other = make_engine(migrated_url)
    with other.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        assert connection.execute(text(f"SELECT count(pg_terminate_backend(pid)) {others}")).scalar_one() >= count
        while connection.execute(text(f"SELECT count(*) {others}")).scalar_one():
            time.sleep(0.01)
    other.dispose()
    for _ in range(2 * idle):
        assert store.job(job.id).id == job.id
        assert store.snapshot(job.id).job.id == job.id
