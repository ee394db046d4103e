"""Measurements: which device gets which, one at a time, and what becomes of their outcomes."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import Engine, text

from db.store import SqlJobStore
from domain.device import Device, DeviceState, RuntimeInfo
from domain.errors import Invalid, NotFound, StaleAttempt
from domain.job import DeviceSelector, JobVerb
from domain.measurement import Measured, Samples
from domain.messages import Claim, HeartbeatAction
from domain.outcome import Blame, Failed
from domain.work import MAX_ATTEMPTS, WorkState
from tests.integration.db.samples import LEASE_S, RAW, Seeds, failed, inventory, measured, new_measurement


def claim(store: SqlJobStore, device: Device, lease_s: float = LEASE_S) -> Claim:
    claimed = store.claim_measurement(device.id, lease_s=lease_s)
    assert claimed is not None
    return claimed


# --- who gets what --------------------------------------------------------------------------------------------------
def test_any_device_takes_what_asks_for_no_label_oldest_first(store: SqlJobStore, seeds: Seeds) -> None:
    _, lease = seeds.job()
    first, second = seeds.measurement(lease), seeds.measurement(lease)
    box = seeds.device()
    assert store.device(box.id).queue_depth == 2
    claimed = claim(store, box)
    assert (claimed.measurement_id, claimed.attempt, claimed.request) == (first.id, 1, first.request)
    assert store.device(box.id).current_measurement_id == first.id
    assert claim(store, seeds.device()).measurement_id == second.id


def test_a_selector_is_obeyed(store: SqlJobStore, seeds: Seeds) -> None:
    _, lease = seeds.job()
    edge, server = seeds.device({"class": "edge", "soc": "rk3588"}), seeds.device({"class": "server"})
    by_label = seeds.measurement(lease, DeviceSelector(labels={"class": "edge"}))
    by_id = seeds.measurement(lease, DeviceSelector(id=server.id))
    seeds.measurement(lease, DeviceSelector(id=server.id, labels={"class": "edge"}))  # nobody is both
    assert claim(store, server).measurement_id == by_id.id
    assert claim(store, edge).measurement_id == by_label.id
    assert store.claim_measurement(seeds.device({"class": "edge"}).id, lease_s=LEASE_S) is None


def test_a_device_needs_the_runtime_in_working_order(store: SqlJobStore, seeds: Seeds) -> None:
    _, lease = seeds.job()
    wanted = store.add_measurement(lease, new_measurement("m", runtime="openvino"))
    box = seeds.device()
    assert store.claim_measurement(box.id, lease_s=LEASE_S) is None
    assert store.reap().device_ids == ()
    store.touch_device(box.id, inventory=inventory("onnxruntime", "openvino"))
    assert store.reap().device_ids == (box.id,)
    assert claim(store, box).measurement_id == wanted.id


def test_a_devices_runtime_must_take_the_precision(store: SqlJobStore, seeds: Seeds) -> None:
    _, lease = seeds.job()
    wanted = store.add_measurement(lease, new_measurement("m", precision="int8"))
    box = seeds.device()  # its runtime takes fp32
    other = RuntimeInfo(name="openvino", available=True, precisions=("fp32", "int8"))
    broken = RuntimeInfo(name="onnxruntime", available=False, precisions=("int8",))
    plain = inventory("onnxruntime")
    for more in ((), (other,), (broken,)):
        store.touch_device(box.id, inventory=plain.model_copy(update={"runtimes": (*plain.runtimes, *more)}))
        assert store.claim_measurement(box.id, lease_s=LEASE_S) is None
        assert store.reap().device_ids == ()
    able = RuntimeInfo(name="onnxruntime", available=True, precisions=("fp32", "int8"))
    store.touch_device(box.id, inventory=plain.model_copy(update={"runtimes": (able,)}))
    assert store.reap().device_ids == (box.id,)
    assert claim(store, box).measurement_id == wanted.id


@pytest.mark.parametrize("state", sorted(set(DeviceState) - {DeviceState.ACTIVE}))
def test_only_an_active_device_takes_work(store: SqlJobStore, seeds: Seeds, state: DeviceState) -> None:
    _, lease = seeds.job()
    seeds.measurement(lease)
    box = seeds.device()
    store.set_device_state(box.id, state)
    assert store.claim_measurement(box.id, lease_s=LEASE_S) is None
    assert store.reap().device_ids == ()
    assert store.device(box.id).queue_depth == 0


def test_an_unknown_device_or_measurement_is_not_found(store: SqlJobStore, seeds: Seeds) -> None:
    box = seeds.device()
    with pytest.raises(NotFound):
        store.claim_measurement("device_none", lease_s=LEASE_S)
    with pytest.raises(NotFound):
        store.measurement("measurement_none")
    with pytest.raises(NotFound):
        store.heartbeat_measurement("measurement_none", box.id, 1, lease_s=LEASE_S)
    with pytest.raises(NotFound):
        store.finish_measurement("measurement_none", box.id, 1, measured())


# --- after a crash --------------------------------------------------------------------------------------------------
def test_a_device_that_crashed_gets_its_own_back_at_once_as_a_new_attempt(store: SqlJobStore, seeds: Seeds) -> None:
    _, lease = seeds.job()
    seeds.measurement(lease)
    seeds.measurement(lease)
    box = seeds.device()
    before = claim(store, box)
    after = claim(store, box)
    assert (after.measurement_id, after.attempt) == (before.measurement_id, 2)
    with pytest.raises(StaleAttempt):
        store.finish_measurement(before.measurement_id, box.id, before.attempt, measured())
    store.finish_measurement(after.measurement_id, box.id, after.attempt, measured())


def test_a_measurement_that_crashes_its_device_each_time_is_poison_and_the_device_goes_on(
    store: SqlJobStore, seeds: Seeds
) -> None:
    _, lease = seeds.job()
    poison, good = seeds.measurement(lease), seeds.measurement(lease)
    box = seeds.device()
    for _ in range(MAX_ATTEMPTS):
        assert claim(store, box).measurement_id == poison.id
    assert claim(store, box).measurement_id == good.id
    stored = store.measurement(poison.id)
    assert stored.state is WorkState.FAILED
    assert isinstance(stored.outcome, Failed)
    assert (stored.outcome.code, stored.outcome.blame) == ("attempts_used_up", Blame.DEVICE)


def test_a_device_that_lost_the_runtime_frees_what_it_had(store: SqlJobStore, seeds: Seeds) -> None:
    _, lease = seeds.job()
    seeds.measurement(lease)
    box, other = seeds.device(), seeds.device()
    had = claim(store, box)
    store.touch_device(box.id, inventory=inventory("openvino"))
    assert store.claim_measurement(box.id, lease_s=LEASE_S) is None
    assert claim(store, other).measurement_id == had.measurement_id


def test_an_expired_lease_goes_to_a_peer_and_the_late_outcome_is_kept_apart(
    store: SqlJobStore, seeds: Seeds, engine: Engine
) -> None:
    _, lease = seeds.job()
    seeds.measurement(lease)
    slow, peer = seeds.device(), seeds.device()
    old = claim(store, slow, lease_s=0.05)
    time.sleep(0.1)
    new = claim(store, peer)
    assert (new.measurement_id, new.attempt) == (old.measurement_id, 2)
    assert store.heartbeat_measurement(old.measurement_id, slow.id, 1, lease_s=LEASE_S) is HeartbeatAction.CANCEL
    for _ in range(2):
        with pytest.raises(StaleAttempt):
            store.finish_measurement(old.measurement_id, slow.id, 1, measured(latency_ms=9.0))
    with pytest.raises(StaleAttempt):
        store.release_measurement(old.measurement_id, slow.id, 1)
    store.finish_measurement(new.measurement_id, peer.id, 2, measured(latency_ms=5.0))
    outcome = store.measurement(new.measurement_id).outcome
    assert isinstance(outcome, Measured) and outcome.candidates[0].latency_ms == 5.0
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT device_id, attempt FROM stale_outcome")).all()
    assert [tuple(row) for row in rows] == [(slow.id, 1)]


def test_another_device_cannot_write_what_it_does_not_hold(store: SqlJobStore, seeds: Seeds) -> None:
    _, lease = seeds.job()
    seeds.measurement(lease)
    box, thief = seeds.device(), seeds.device()
    claimed = claim(store, box)
    with pytest.raises(StaleAttempt):
        store.finish_measurement(claimed.measurement_id, thief.id, claimed.attempt, measured())
    answer = store.heartbeat_measurement(claimed.measurement_id, thief.id, claimed.attempt, lease_s=LEASE_S)
    assert answer is HeartbeatAction.CANCEL
    assert store.measurement(claimed.measurement_id).state is WorkState.LEASED


# --- outcomes -------------------------------------------------------------------------------------------------------
def test_samples_lie_apart_and_come_back_with_the_measurement_only(
    store: SqlJobStore, seeds: Seeds, engine: Engine
) -> None:
    job, lease = seeds.job()
    seeds.measurement(lease)
    box = seeds.device()
    claimed = claim(store, box)
    store.finish_measurement(claimed.measurement_id, box.id, claimed.attempt, measured())
    assert store.measurement(claimed.measurement_id).outcome == measured()
    (summary,) = store.snapshot(job.id).measurements
    assert summary.outcome == measured(raw=None)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT data FROM measurement_sample")).scalar_one() == RAW


def test_the_same_outcome_twice_is_accepted_once(store: SqlJobStore, seeds: Seeds) -> None:
    job, lease = seeds.job()
    seeds.measurement(lease)
    box = seeds.device()
    claimed = claim(store, box)
    for _ in range(2):
        store.finish_measurement(claimed.measurement_id, box.id, claimed.attempt, measured())
    with pytest.raises(StaleAttempt):
        store.finish_measurement(claimed.measurement_id, box.id, claimed.attempt, measured(latency_ms=1.0))
    assert store.measurement(claimed.measurement_id).outcome == measured()
    assert [event.type for event in store.events(job.id)].count("measurement.finished") == 1


def test_samples_that_are_not_base64_are_refused(store: SqlJobStore, seeds: Seeds) -> None:
    _, lease = seeds.job()
    seeds.measurement(lease)
    box = seeds.device()
    claimed = claim(store, box)
    good = measured()
    timing = good.candidates[0].model_copy(update={"samples": Samples(pairs=1, data="not base64!")})
    with pytest.raises(Invalid):
        store.finish_measurement(
            claimed.measurement_id, box.id, claimed.attempt, good.model_copy(update={"candidates": (timing,)})
        )
    assert store.measurement(claimed.measurement_id).state is WorkState.LEASED


def test_a_device_to_blame_leaves_the_retry_to_a_peer_while_there_is_one(
    store: SqlJobStore, seeds: Seeds, engine: Engine
) -> None:
    _, lease = seeds.job()
    seeds.measurement(lease)
    bad, peer = seeds.device(), seeds.device()
    claimed = claim(store, bad)
    store.finish_measurement(claimed.measurement_id, bad.id, claimed.attempt, failed(Blame.DEVICE, "too hot"))
    assert store.claim_measurement(bad.id, lease_s=LEASE_S) is None
    assert store.reap().device_ids == (peer.id,)
    with engine.begin() as connection:  # the peer falls silent
        away = "UPDATE device SET last_seen_at = now() - interval '1 minute' WHERE id = :id"
        connection.execute(text(away), {"id": peer.id})
    assert not store.device(peer.id).is_online
    again = claim(store, bad)
    assert (again.measurement_id, again.attempt) == (claimed.measurement_id, 2)
    store.release_measurement(again.measurement_id, bad.id, again.attempt)
    store.touch_device(peer.id)
    assert claim(store, peer).attempt == 3


def test_a_device_named_by_its_id_tries_again_itself(store: SqlJobStore, seeds: Seeds) -> None:
    _, lease = seeds.job()
    box, _ = seeds.device(), seeds.device()
    seeds.measurement(lease, DeviceSelector(id=box.id))
    for attempt in range(1, MAX_ATTEMPTS + 1):
        claimed = claim(store, box)
        assert claimed.attempt == attempt
        store.finish_measurement(claimed.measurement_id, box.id, attempt, failed(Blame.DEVICE))
    assert store.claim_measurement(box.id, lease_s=LEASE_S) is None
    assert store.measurement(claimed.measurement_id).state is WorkState.FAILED


def test_a_measurement_handed_back_goes_to_whoever_asks_next(store: SqlJobStore, seeds: Seeds) -> None:
    _, lease = seeds.job()
    seeds.measurement(lease)
    box, other = seeds.device(), seeds.device()
    claimed = claim(store, box)
    store.release_measurement(claimed.measurement_id, box.id, claimed.attempt)
    assert claim(store, other).measurement_id == claimed.measurement_id


# --- cancel, drain, remove ------------------------------------------------------------------------------------------
def test_a_heartbeat_carries_cancel_and_drain(store: SqlJobStore, seeds: Seeds) -> None:
    job, lease = seeds.job()
    seeds.measurement(lease)
    box = seeds.device()
    held = claim(store, box)

    def beat() -> HeartbeatAction:
        return store.heartbeat_measurement(held.measurement_id, box.id, held.attempt, lease_s=LEASE_S)

    assert beat() is HeartbeatAction.CONTINUE
    store.set_device_state(box.id, DeviceState.DRAINING)
    assert beat() is HeartbeatAction.DRAIN
    store.apply_verb(job.id, JobVerb.CANCEL)
    assert beat() is HeartbeatAction.CANCEL
    store.finish_measurement(held.measurement_id, box.id, held.attempt, failed(Blame.SYSTEM, "cancelled"))
    assert store.measurement(held.measurement_id).state is WorkState.CANCELLED
    assert beat() is HeartbeatAction.CANCEL


def test_a_cancelled_measurement_of_a_silent_device_is_over_when_its_lease_is(store: SqlJobStore, seeds: Seeds) -> None:
    job, lease = seeds.job()
    seeds.measurement(lease)
    box, other = seeds.device(), seeds.device()
    held = claim(store, box, lease_s=0.05)
    store.apply_verb(job.id, JobVerb.CANCEL)
    time.sleep(0.1)
    assert store.claim_measurement(other.id, lease_s=LEASE_S) is None
    store.reap()
    assert store.measurement(held.measurement_id).state is WorkState.CANCELLED
    assert store.claim_measurement(box.id, lease_s=LEASE_S) is None


def test_a_device_asking_again_after_a_cancel_gets_other_work(store: SqlJobStore, seeds: Seeds) -> None:
    job, lease = seeds.job()
    seeds.measurement(lease)
    box = seeds.device()
    held = claim(store, box)
    store.apply_verb(job.id, JobVerb.CANCEL)
    _, other_lease = seeds.job()
    wanted = seeds.measurement(other_lease)
    assert claim(store, box).measurement_id == wanted.id
    assert store.measurement(held.measurement_id).state is WorkState.CANCELLED


def test_what_a_removed_device_held_waits_again(store: SqlJobStore, seeds: Seeds) -> None:
    _, lease = seeds.job()
    seeds.measurement(lease)
    box = seeds.device()
    held = claim(store, box)
    store.set_device_state(box.id, DeviceState.REMOVED)
    assert store.measurement(held.measurement_id).state is WorkState.PENDING
    with pytest.raises(StaleAttempt):
        store.finish_measurement(held.measurement_id, box.id, held.attempt, measured())
    assert claim(store, seeds.device()).measurement_id == held.measurement_id
