"""Devices and tokens: joining, being recognised, being heard of."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, text

from db.store import SqlJobStore
from domain.access import Principal
from domain.artifact import ArtifactKind
from domain.device import DeviceState
from domain.errors import Invalid, NotFound, PruneloopError, Unauthorized, WrongState
from domain.ports import Registration
from tests.integration.db.samples import Seeds, inventory, ref

HOUR = timedelta(hours=1)


def registration(name: str = "box", labels: dict[str, str] | None = None) -> Registration:
    return Registration(
        name=name,
        labels=labels or {},
        inventory=inventory(),
        device_token=f"token-{name}",
        broker_secret=f"secret-{name}",
    )


# --- joining --------------------------------------------------------------------------------------------------------
def test_a_join_token_admits_once_and_its_labels_win(store: SqlJobStore) -> None:
    expires_at = store.create_join_token("join", expires_in=HOUR, uses=1, labels={"class": "edge"})
    assert timedelta(minutes=59) < expires_at - store.now() <= HOUR
    device = store.register_device("join", registration(labels={"class": "fake", "soc": "x"}))
    assert device.labels == {"class": "edge", "soc": "x"}
    assert device.state is DeviceState.ACTIVE and device.is_online
    assert device.inventory == inventory()
    with pytest.raises(Unauthorized) as caught:
        store.register_device("join", registration("second"))
    assert caught.value.code == "bad_join_token"


@pytest.mark.parametrize("token", ["unknown", "expired", "", "nul\x00"])
def test_a_bad_join_token_admits_nobody(store: SqlJobStore, token: str) -> None:
    store.create_join_token("expired", expires_in=timedelta(seconds=-1), uses=1, labels={})
    with pytest.raises(Unauthorized):
        store.register_device(token, registration())
    assert store.devices().items == ()


def test_a_token_for_three_admits_three_of_many_at_once(store: SqlJobStore) -> None:
    store.create_join_token("join", expires_in=HOUR, uses=3, labels={})

    def join(number: int) -> bool:
        try:
            store.register_device("join", registration(f"box-{number}"))
        except Unauthorized:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(join, range(8))) == 3


def test_a_join_that_fails_costs_the_token_nothing(store: SqlJobStore) -> None:
    store.create_join_token("join", expires_in=HOUR, uses=1, labels={})
    with pytest.raises(PruneloopError):
        store.register_device("join", registration("nul\x00"))
    store.register_device("join", registration("good"))


# --- being recognised -----------------------------------------------------------------------------------------------
def test_a_token_stands_for_its_device_until_that_is_removed(store: SqlJobStore, seeds: Seeds) -> None:
    box = seeds.device(token="pld_x")
    assert store.principal("pld_x") == Principal(box.name, frozenset({"device"}), box.id)
    store.set_device_state(box.id, DeviceState.REMOVED)
    assert store.principal("pld_x") is None


def test_a_named_token_is_replaced_and_kept_as_a_hash_only(store: SqlJobStore, engine: Engine) -> None:
    store.set_token("admin", "old", frozenset({"admin"}))
    store.set_token("admin", "new", frozenset({"admin", "jobs"}))
    assert store.principal("old") is None
    known = store.principal("new")
    assert known is not None and (known.name, known.scopes) == ("admin", frozenset({"admin", "jobs"}))
    assert store.principal("") is None
    with engine.connect() as connection:
        assert "new" not in str(connection.execute(text("SELECT * FROM api_token")).all())


def test_a_join_token_is_nobody(store: SqlJobStore) -> None:
    store.create_join_token("join", expires_in=HOUR, uses=1, labels={})
    assert store.principal("join") is None


def test_broker_users_are_those_not_removed_with_the_hash_of_their_secret(store: SqlJobStore) -> None:
    store.create_join_token("join", expires_in=HOUR, uses=2, labels={})
    kept = store.register_device("join", registration("kept"))
    gone = store.register_device("join", registration("gone"))
    store.set_device_state(gone.id, DeviceState.REMOVED)
    assert store.broker_users() == ((kept.id, hashlib.sha256(b"secret-kept").hexdigest()),)


# --- being heard of -------------------------------------------------------------------------------------------------
def test_a_device_is_online_for_half_a_minute_after_it_was_heard_of(
    store: SqlJobStore, seeds: Seeds, engine: Engine
) -> None:
    box = seeds.device()
    for seconds, is_online in ((29, True), (31, False)):
        with engine.begin() as connection:
            past = text("UPDATE device SET last_seen_at = now() - make_interval(secs => :s)")
            connection.execute(past, {"s": seconds})
        assert store.device(box.id).is_online is is_online
    assert store.touch_device(box.id).is_online


def test_an_idle_poll_is_not_written_each_time(store: SqlJobStore, seeds: Seeds, engine: Engine) -> None:
    box = seeds.device()

    def seen() -> datetime | None:
        return store.touch_device(box.id, conditions={"load": 1.0}).last_seen_at

    first = seen()
    assert seen() == first
    with engine.begin() as connection:
        connection.execute(text("UPDATE device SET last_seen_at = last_seen_at - interval '3 seconds'"))
    touched = store.touch_device(box.id, conditions={"load": 2.0})
    assert touched.last_seen_at is not None and first is not None and touched.last_seen_at > first
    assert touched.conditions == {"load": 2.0}


def test_the_offset_of_its_clock_is_kept_not_its_time(store: SqlJobStore, seeds: Seeds) -> None:
    box = seeds.device()
    fast = datetime.now(UTC) + timedelta(hours=1)
    touched = store.touch_device(box.id, clock=fast, inventory=inventory(cores=8))
    assert touched.clock_offset_ms == pytest.approx(3_600_000, abs=30_000)
    assert touched.inventory.cores == 8
    assert touched.last_seen_at is not None and touched.last_seen_at < fast - timedelta(minutes=50)


def test_a_removed_device_stays_removed_and_leaves_the_list(store: SqlJobStore, seeds: Seeds) -> None:
    box, other = seeds.device(), seeds.device()
    store.set_device_state(box.id, DeviceState.PAUSED, note="hot")
    assert store.device(box.id).note == "hot"
    for _ in range(2):
        assert store.set_device_state(box.id, DeviceState.REMOVED).state is DeviceState.REMOVED
    with pytest.raises(WrongState):
        store.set_device_state(box.id, DeviceState.ACTIVE)
    assert [device.id for device in store.devices().items] == [other.id]
    assert not store.device(box.id).is_online
    with pytest.raises(NotFound):
        store.set_device_state("device_none", DeviceState.ACTIVE)


def test_devices_are_paged_oldest_first(store: SqlJobStore, seeds: Seeds) -> None:
    ids = [seeds.device().id for _ in range(3)]
    first = store.devices(page_size=2)
    second = store.devices(page_size=2, page_token=first.next_page_token)
    assert [device.id for device in (*first.items, *second.items)] == ids
    with pytest.raises(Invalid):
        store.jobs(page_token=first.next_page_token)


# --- artifacts ------------------------------------------------------------------------------------------------------
def test_an_artifact_is_known_once_recorded_and_its_last_kind_counts(store: SqlJobStore) -> None:
    with pytest.raises(NotFound):
        store.artifact(ref().digest)
    store.record_artifact(ref())
    store.record_artifact(ref(kind=ArtifactKind.WEIGHTS))
    assert store.artifact(ref().digest) == ref(kind=ArtifactKind.WEIGHTS)
