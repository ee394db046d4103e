"""Health checks in the tables: two strikes, suspects, work that goes to peers, and how a quarantine ends."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

import db.health
from db.store import SqlJobStore
from domain.artifact import digest_of
from domain.device import Device, DeviceState
from domain.errors import Invalid, NotFound, StaleAttempt
from domain.health import COOL_DOWN_S, GoldenTiming, HealthAnswer, HealthCheck, HealthTrigger, HealthVerdict
from domain.job import DeviceSelector
from domain.messages import HeartbeatAction
from domain.work import WorkState
from tests.integration.db.samples import LEASE_S, Seeds, measured, new_measurement


def check(
    ratio: float | None, *, code: str | None = None, version: str = "1", runtime: str = "onnxruntime"
) -> HealthCheck:
    timing = None
    if ratio is not None:
        timing = GoldenTiming(latency_ms=ratio, yardstick_ms=1.0, ratio=ratio, ratio_ci=(ratio * 0.995, ratio * 1.005))
    return HealthCheck(
        runtime=runtime,
        runtime_version=version if ratio is not None else "",
        golden=digest_of(b"golden"),
        trigger=HealthTrigger.PERIODIC,
        timing=timing,
        code=code,
        reason="said so \x00" if code else None,
    )


@pytest.fixture
def box(store: SqlJobStore, seeds: Seeds) -> Device:
    """A device with five good checks."""
    device = seeds.device({"class": "edge"})
    for _ in range(5):
        assert store.record_health(device.id, check(3.0)).verdict is HealthVerdict.LEARNING
    return device


def state_of(store: SqlJobStore, device: Device) -> DeviceState:
    return store.device(device.id).state


def out_twice(store: SqlJobStore, device: Device) -> HealthAnswer:
    store.record_health(device.id, check(4.0))
    return store.record_health(device.id, check(4.0))


def measure_one(store: SqlJobStore, device: Device) -> str:
    claim = store.claim_measurement(device.id, lease_s=LEASE_S)
    assert claim is not None
    store.finish_measurement(claim.measurement_id, device.id, claim.attempt, measured())
    return claim.measurement_id


def test_out_once_asks_for_a_repeat_and_out_twice_quarantines_with_the_numbers(store: SqlJobStore, box: Device) -> None:
    first = store.record_health(box.id, check(4.0))
    assert (first.verdict, first.state) == (HealthVerdict.OUT_OF_BAND, DeviceState.ACTIVE)
    assert first.repeat_after_s == COOL_DOWN_S
    second = store.record_health(box.id, check(4.0))
    assert (second.state, second.repeat_after_s) == (DeviceState.QUARANTINED, None)
    note = store.device(box.id).note or ""
    assert "4.000" in note and "band 2.850 to 3.150" in note


def test_one_slip_is_forgiven(store: SqlJobStore, box: Device) -> None:
    for ratio in (4.0, 3.0, 4.0, 3.0):
        store.record_health(box.id, check(ratio))
    assert state_of(store, box) is DeviceState.ACTIVE


def test_a_wrong_output_quarantines_at_once_and_only_a_person_ends_that(store: SqlJobStore, box: Device) -> None:
    assert store.record_health(box.id, check(None, code="wrong_output")).state is DeviceState.QUARANTINED
    assert store.record_health(box.id, check(3.0)).state is DeviceState.QUARANTINED
    assert not store.is_health_check_due(box.id)
    resumed = store.set_device_state(box.id, DeviceState.ACTIVE, note="new memory")
    assert (resumed.state, resumed.note) == (DeviceState.ACTIVE, "new memory")
    # A person has looked: what the device is now is what it is held against from here on.
    assert store.record_health(box.id, check(4.0)).verdict is HealthVerdict.LEARNING


def test_wrong_after_slow_can_no_longer_be_ended_by_a_fast_check(store: SqlJobStore, box: Device) -> None:
    out_twice(store, box)
    store.record_health(box.id, check(None, code="wrong_output"))
    assert store.record_health(box.id, check(3.0)).state is DeviceState.QUARANTINED


def test_a_passing_check_ends_a_quarantine_for_latency_with_a_note(store: SqlJobStore, box: Device) -> None:
    out_twice(store, box)
    assert store.record_health(box.id, check(3.01)).state is DeviceState.ACTIVE
    assert "passes again" in (store.device(box.id).note or "")


def test_a_golden_model_that_does_not_run_counts_as_out(store: SqlJobStore, box: Device) -> None:
    assert store.record_health(box.id, check(None, code="crashed")).repeat_after_s == COOL_DOWN_S
    assert store.record_health(box.id, check(None, code="crashed")).state is DeviceState.QUARANTINED


def test_another_runtime_passing_does_not_free_a_device(store: SqlJobStore, box: Device) -> None:
    out_twice(store, box)
    assert store.record_health(box.id, check(1.0, runtime="openvino")).state is DeviceState.QUARANTINED


def test_a_paused_device_that_fails_stays_with_the_operator(store: SqlJobStore, box: Device) -> None:
    store.set_device_state(box.id, DeviceState.PAUSED)
    out_twice(store, box)
    assert store.record_health(box.id, check(3.0)).state is DeviceState.QUARANTINED


def test_another_version_of_the_runtime_learns_anew(store: SqlJobStore, box: Device) -> None:
    assert store.record_health(box.id, check(2.0, version="2")).verdict is HealthVerdict.LEARNING


def test_what_was_measured_since_the_last_good_check_is_suspect(store: SqlJobStore, seeds: Seeds, box: Device) -> None:
    job, lease = seeds.job()
    other = seeds.device({"class": "other"})
    for _ in range(4):
        seeds.measurement(lease)
    before = measure_one(store, box)
    store.record_health(box.id, check(3.0))
    after, between = measure_one(store, box), None
    store.record_health(box.id, check(4.0))
    between = measure_one(store, box)
    elsewhere = measure_one(store, other)
    store.record_health(box.id, check(4.0))
    suspects = {item.id for item in store.snapshot(job.id).measurements if item.is_suspect}
    assert suspects == {after, between}
    assert not {before, elsewhere} & suspects
    assert store.measurement(after).is_suspect


def test_its_work_goes_to_a_peer_and_what_names_it_waits(store: SqlJobStore, seeds: Seeds, box: Device) -> None:
    _, lease = seeds.job()
    by_label = seeds.measurement(lease, DeviceSelector(labels={"class": "edge"}))
    held = store.claim_measurement(box.id, lease_s=LEASE_S)
    assert held is not None and held.measurement_id == by_label.id
    by_id = seeds.measurement(lease, DeviceSelector(id=box.id))
    out_twice(store, box)
    assert (
        store.heartbeat_measurement(held.measurement_id, box.id, held.attempt, lease_s=LEASE_S)
        is HeartbeatAction.CANCEL
    )
    with pytest.raises(StaleAttempt):
        store.finish_measurement(held.measurement_id, box.id, held.attempt, measured())
    assert store.claim_measurement(box.id, lease_s=LEASE_S) is None
    peer = seeds.device({"class": "edge"})
    again = store.claim_measurement(peer.id, lease_s=LEASE_S)
    assert again is not None and again.measurement_id == by_label.id
    assert store.claim_measurement(peer.id, lease_s=LEASE_S).measurement_id == by_label.id  # type: ignore[union-attr]
    assert store.measurement(by_id.id).state is WorkState.PENDING


def test_a_quarantined_device_is_woken_to_check_again_after_a_while(
    store: SqlJobStore, box: Device, engine: Engine
) -> None:
    out_twice(store, box)
    assert not store.is_health_check_due(box.id) and box.id not in store.reap().recheck_ids
    pass_time(engine)
    assert store.is_health_check_due(box.id) and store.reap().recheck_ids == (box.id,)
    store.record_health(box.id, check(4.0))
    assert not store.is_health_check_due(box.id) and store.reap().recheck_ids == ()


# --- runtimes of their own ---------------------------------------------------------------------------------------------
@pytest.fixture
def both(store: SqlJobStore, seeds: Seeds) -> Device:
    """A device with two runtimes, each with good checks."""
    device = seeds.device({"class": "edge"}, runtimes=("onnxruntime", "frail"))
    for runtime in ("onnxruntime", "frail"):
        for _ in range(5):
            store.record_health(device.id, check(3.0, runtime=runtime))
    return device


def pass_time(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE device SET recheck_at = recheck_at - interval '1 hour'"))


def lose(store: SqlJobStore, device: Device, code: str = "runtime_error") -> None:
    for _ in range(2):
        store.record_health(device.id, check(None, code=code, runtime="frail"))


def test_a_runtime_that_cannot_run_the_golden_model_is_lost_by_name_and_the_device_goes_on(
    store: SqlJobStore, seeds: Seeds, both: Device
) -> None:
    _, lease = seeds.job()
    mine = store.add_measurement(lease, new_measurement("frail", DeviceSelector(id=both.id), runtime="frail"))
    held = store.claim_measurement(both.id, lease_s=LEASE_S)
    assert held is not None and held.measurement_id == mine.id
    first = store.record_health(both.id, check(None, code="runtime_error", runtime="frail"))
    assert first.repeat_after_s == COOL_DOWN_S and store.device(both.id).lost_runtimes == {}
    second = store.record_health(both.id, check(None, code="runtime_error", runtime="frail"))
    assert second.state is DeviceState.ACTIVE
    device = store.device(both.id)
    assert set(device.lost_runtimes) == {"frail"}
    assert "does not run with frail: said so" in device.lost_runtimes["frail"].reason
    assert store.measurement(mine.id).state is WorkState.PENDING, "what it holds in that runtime goes back"
    seeds.measurement(lease)
    other = store.claim_measurement(both.id, lease_s=LEASE_S)
    assert other is not None and other.request.runtime == "onnxruntime", "the main runtime goes on"


def test_only_what_the_lost_runtime_measured_is_suspect(store: SqlJobStore, seeds: Seeds, both: Device) -> None:
    job, lease = seeds.job()
    store.add_measurement(lease, new_measurement("frail", runtime="frail"))
    seeds.measurement(lease)
    theirs, main = measure_one(store, both), measure_one(store, both)
    assert store.measurement(theirs).request.runtime == "frail"
    lose(store, both)
    assert {item.id for item in store.snapshot(job.id).measurements if item.is_suspect} == {theirs} != {main}


def test_a_lost_runtimes_work_goes_to_a_peer_that_has_it(store: SqlJobStore, seeds: Seeds, both: Device) -> None:
    _, lease = seeds.job()
    lose(store, both)
    asked = store.add_measurement(lease, new_measurement("frail", runtime="frail"))
    assert store.claim_measurement(both.id, lease_s=LEASE_S) is None and store.reap().device_ids == ()
    peer = seeds.device({"class": "edge"}, runtimes=("frail",))
    claim = store.claim_measurement(peer.id, lease_s=LEASE_S)
    assert claim is not None and claim.measurement_id == asked.id


def test_a_lost_runtime_is_asked_again_and_comes_back_once_it_passes(
    store: SqlJobStore, both: Device, engine: Engine
) -> None:
    lose(store, both)
    assert not store.is_health_check_due(both.id)
    pass_time(engine)
    store.record_health(both.id, check(3.0))  # of the main runtime: says nothing of the lost one
    assert store.is_health_check_due(both.id) and store.reap().recheck_ids == (both.id,)
    assert store.record_health(both.id, check(3.0, runtime="frail")).verdict.is_good
    assert store.device(both.id).lost_runtimes == {}
    assert not store.is_health_check_due(both.id)


def test_a_runtime_that_computes_wrongly_comes_back_by_a_person_only(
    store: SqlJobStore, both: Device, engine: Engine
) -> None:
    answer = store.record_health(both.id, check(None, code="wrong_output", runtime="frail"))
    assert answer.state is DeviceState.ACTIVE
    lose(store, both)
    store.record_health(both.id, check(3.0, runtime="frail"))
    assert set(store.device(both.id).lost_runtimes) == {"frail"} and not store.is_health_check_due(both.id)
    assert store.set_device_state(both.id, DeviceState.ACTIVE, note="newer driver").lost_runtimes == {}
    assert store.record_health(both.id, check(4.0, runtime="frail")).verdict is HealthVerdict.LEARNING


def test_the_main_runtime_out_of_its_band_takes_the_whole_device(store: SqlJobStore, both: Device) -> None:
    assert out_twice(store, both).state is DeviceState.QUARANTINED
    assert store.record_health(both.id, check(3.0, runtime="frail")).state is DeviceState.QUARANTINED
    lose(store, both)
    # What is lost besides does not hold the device back once its main runtime is well.
    assert store.record_health(both.id, check(3.0)).state is DeviceState.ACTIVE
    assert set(store.device(both.id).lost_runtimes) == {"frail"}


def test_old_checks_go_and_those_of_another_runtime_stay(
    store: SqlJobStore, both: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db.health, "ROWS_KEPT", 3)
    for ratio in (3.01, 3.02, 3.03, 3.04):
        store.record_health(both.id, check(ratio))
    kept = [(item.check.runtime, item.check.timing.ratio) for item in store.health(both.id).items if item.check.timing]
    assert kept[:3] == [("onnxruntime", 3.04), ("onnxruntime", 3.03), ("onnxruntime", 3.02)]
    assert [runtime for runtime, _ in kept[3:]] == ["frail"] * 5


def test_the_history_is_read_page_by_page_latest_first(store: SqlJobStore, box: Device) -> None:
    store.record_health(box.id, check(3.1))
    first = store.health(box.id, page_size=4)
    assert first.items[0].check.timing is not None and first.items[0].check.timing.ratio == 3.1
    assert first.items[0].band == pytest.approx((2.85, 3.15))
    rest = store.health(box.id, page_size=4, page_token=first.next_page_token)
    assert [record.id for record in (*first.items, *rest.items)] == sorted(
        (record.id for record in (*first.items, *rest.items)), reverse=True
    )
    assert len(rest.items) == 2 and rest.next_page_token == ""
    with pytest.raises(Invalid):
        store.health(box.id, page_token="nonsense")
    with pytest.raises(NotFound):
        store.health("dev_nobody")
    with pytest.raises(NotFound):
        store.record_health("dev_nobody", check(3.0))
