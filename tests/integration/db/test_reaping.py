"""The reaper: says who should be woken, frees what fell silent, and changes nothing when it has nothing to do."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Engine, text

from db.store import SqlJobStore
from domain.ports import WorkToWake
from domain.work import MAX_ATTEMPTS, WorkState
from tests.integration.db.samples import LEASE_S, Seeds, prepare, spec


def test_an_idle_house_needs_nobody(store: SqlJobStore, seeds: Seeds) -> None:
    seeds.device()
    assert store.reap() == WorkToWake()


def test_it_counts_jobs_nobody_searches_and_builds_nobody_builds(store: SqlJobStore, seeds: Seeds) -> None:
    store.create_job(spec())
    _, lease = seeds.job()
    store.add_build(lease, prepare("a"))
    store.add_build(lease, prepare("b"))
    store.claim_build("builder", lease_s=LEASE_S)
    assert store.reap() == WorkToWake(search=1, builds=1)


def test_it_names_the_devices_that_have_work_and_none_in_hand(store: SqlJobStore, seeds: Seeds) -> None:
    _, lease = seeds.job()
    busy, idle = seeds.device(), seeds.device()
    for _ in range(3):
        seeds.measurement(lease)
    assert store.reap().device_ids == tuple(sorted((busy.id, idle.id)))
    store.claim_measurement(busy.id, lease_s=LEASE_S)
    assert store.reap().device_ids == (idle.id,)


def test_a_silent_device_is_woken_for_what_it_held(store: SqlJobStore, seeds: Seeds) -> None:
    _, lease = seeds.job()
    box = seeds.device()
    seeds.measurement(lease)
    store.claim_measurement(box.id, lease_s=0.05)
    time.sleep(0.1)
    assert store.reap().device_ids == (box.id,)


def test_an_expired_lease_is_claimable_at_once_and_shown_as_waiting_after_a_grace(
    store: SqlJobStore, seeds: Seeds, engine: Engine
) -> None:
    job, lease = seeds.job()
    store.add_build(lease, prepare())
    store.claim_build("builder", lease_s=0.05)
    time.sleep(0.1)
    found = store.reap()
    assert (found.builds, found.expired) == (1, 0)
    assert store.snapshot(job.id).builds[0].state is WorkState.LEASED
    with engine.begin() as connection:
        connection.execute(text("UPDATE build SET lease_until = lease_until - interval '1 minute'"))
    assert store.reap().expired == 1
    assert store.reap().expired == 0
    assert store.snapshot(job.id).builds[0].state is WorkState.PENDING


def test_several_reapers_poison_each_row_once(store: SqlJobStore, seeds: Seeds, engine: Engine) -> None:
    jobs = []
    for _ in range(4):
        job, lease = seeds.job()
        jobs.append(job)
        for number in range(3):
            store.add_build(lease, prepare(str(number)))
            seeds.measurement(lease)
    boxes = [seeds.device() for _ in range(12)]
    for box in boxes:
        store.claim_build(box.id, lease_s=LEASE_S)
        store.claim_measurement(box.id, lease_s=LEASE_S)
    with engine.begin() as connection:
        for table in ("build", "measurement"):
            values = f"attempt = {MAX_ATTEMPTS}, lease_until = now() - interval '1 second'"
            connection.execute(text(f"UPDATE {table} SET {values}"))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: store.reap(), range(8)))
    assert sum(one.poisoned for one in found) == 24
    for job in jobs:
        snapshot = store.snapshot(job.id)
        assert {row.state for row in snapshot.builds} == {WorkState.FAILED}
        assert {row.state for row in snapshot.measurements} == {WorkState.FAILED}
        assert sum(event.type.endswith(".finished") for event in store.events(job.id)) == 6


def test_a_heartbeat_that_comes_first_saves_the_last_attempt(store: SqlJobStore, seeds: Seeds, engine: Engine) -> None:
    job, lease = seeds.job()
    store.add_build(lease, prepare())
    for _ in range(MAX_ATTEMPTS):
        build = store.claim_build("builder", lease_s=0.05)
    assert build is not None
    time.sleep(0.1)
    store.heartbeat_build(build.id, build.attempt, lease_s=LEASE_S)
    assert store.reap().poisoned == 0
    assert store.snapshot(job.id).builds[0].state is WorkState.LEASED


def test_leases_of_the_dead_run_out_at_once_and_only_theirs(store: SqlJobStore, seeds: Seeds) -> None:
    _, held = seeds.job()
    for key in ("a", "b"):
        store.add_build(held, prepare(key))
    dead, alive = store.claim_build("build@host:dead", lease_s=LEASE_S), store.claim_build("live", lease_s=LEASE_S)
    assert dead is not None and alive is not None
    assert store.reap().builds == 0
    assert store.free_leases(["build@host:dead", held.owner]) == 2
    assert store.free_leases(["build@host:dead", held.owner]) == 0
    found = store.reap()
    assert (found.builds, found.search) == (1, 1)
    taken = store.claim_build("next", lease_s=LEASE_S)
    assert taken is not None
    assert (taken.id, taken.attempt) == (dead.id, 2)
    assert store.claim_build("nobody", lease_s=LEASE_S) is None
