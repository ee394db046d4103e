"""Wakes reach the right queue, never raise, and a device's broker user can touch nothing but its own keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import pytest
import redis

from domain.errors import Unavailable
from workers.dispatch import MOST_CORE_WAKES, CeleryLauncher, _admin_client


@pytest.fixture
def launcher(broker_url: str) -> Iterator[CeleryLauncher]:
    made = CeleryLauncher(broker_url)
    admin = _admin_client(broker_url)
    admin.flushall()
    yield made
    for device in ("dev_a", "dev_b"):
        made.dismiss_device(device)
    made.close()
    admin.flushall()
    admin.close()


def test_wakes_wait_in_their_queues(launcher: CeleryLauncher, broker_url: str) -> None:
    launcher.wake_search()
    launcher.wake_builders()
    launcher.wake_device("dev_a")
    with _admin_client(broker_url) as admin:
        assert admin.llen("prune:core:search") == 1
        assert admin.llen("prune:core:build") == 1
        assert admin.llen("prune:dev_a:device.dev_a") == 1
        assert b"pickle" not in admin.lindex("prune:core:search", 0)


def test_wakes_nobody_takes_do_not_pile_up_and_never_expire(launcher: CeleryLauncher, broker_url: str) -> None:
    for _ in range(MOST_CORE_WAKES + 5):
        launcher.wake_search()
        launcher.wake_device("dev_a")
    with _admin_client(broker_url) as admin:
        assert admin.llen("prune:core:search") == MOST_CORE_WAKES
        assert admin.llen("prune:dev_a:device.dev_a") == 1
        for queue in ("prune:core:search", "prune:dev_a:device.dev_a"):
            headers = json.loads(admin.lindex(queue, 0))["headers"]
            assert (headers["expires"], headers["eta"]) == (None, None), "a receiver's own clock would decide"
        admin.delete("prune:dev_a:device.dev_a")  # taken
        launcher.wake_device("dev_a")
        assert admin.llen("prune:dev_a:device.dev_a") == 1


def test_a_device_can_use_its_own_keys_and_no_others(launcher: CeleryLauncher) -> None:
    address = launcher.admit_device("dev_a", "s3cret/with:odd@signs")
    launcher.admit_device("dev_b", "other")
    assert address.queue == "device.dev_a"
    client = _admin_client(address.url)
    try:
        assert client.ping()
        client.lpush("prune:dev_a:x", "1")
        for forbidden in (
            lambda: client.get("prune:dev_b:x"),
            lambda: client.lpush("prune:core:search", "1"),
            lambda: client.keys("*"),
            lambda: client.scan(),
            lambda: client.randomkey(),
            lambda: client.dbsize(),
            lambda: client.flushall(),
            lambda: client.config_get("*"),
            lambda: client.execute_command("ACL", "LIST"),
            lambda: client.publish("prune:dev_b:y", "1"),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                forbidden()
    finally:
        client.close()


def test_a_removed_device_is_locked_out(launcher: CeleryLauncher) -> None:
    address = launcher.admit_device("dev_a", "secret")
    launcher.dismiss_device("dev_a")
    client = _admin_client(address.url)
    with pytest.raises(redis.exceptions.AuthenticationError):
        client.ping()
    client.close()


def test_users_a_broker_forgot_are_made_again(launcher: CeleryLauncher) -> None:
    address = launcher.admit_device("dev_a", "secret")
    launcher.dismiss_device("dev_a")
    users = [("dev_a", hashlib.sha256(b"secret").hexdigest())]
    assert launcher.readmit_devices(users) == 1
    assert launcher.readmit_devices(users) == 0
    client = _admin_client(address.url)
    assert client.ping()
    client.close()


def test_a_broker_that_is_away_costs_wakes_and_never_an_exception() -> None:
    away = CeleryLauncher("redis+socket:///nonexistent/valkey.sock?virtual_host=0")
    away.wake_search()
    away.wake_builders()
    away.wake_device("dev_a")
    assert away.readmit_devices([("dev_a", "0" * 64)]) == 0
    assert not away.is_reachable()
    away.dismiss_device("dev_a")
    with pytest.raises(Unavailable) as caught:
        away.admit_device("dev_a", "secret")
    assert caught.value.code == "broker_unavailable"
    away.close()
