"""The Launcher port over Celery: wakes after commit, and a broker user per device that can touch its own keys only."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any
from urllib.parse import SplitResult, parse_qs, quote, unquote, urlsplit

import redis
from celery import Celery
from kombu.exceptions import OperationalError
from redis.backoff import NoBackoff
from redis.retry import Retry

from domain.errors import Unavailable
from domain.messages import BrokerAddress
from workers.celery import CORE_PREFIX, device_prefix, device_queue, make_app

log = logging.getLogger(__name__)

MOST_DEVICE_PRODUCERS = 256
MOST_CORE_WAKES = 32  # several workers read these queues, each takes one
# Everything a worker needs and nothing that could name other devices' keys: SCAN, RANDOMKEY and DBSIZE ignore key patterns.
COMMANDS = ("+@all", "-@admin", "-@dangerous", "+info", "-scan", "-randomkey", "-dbsize")


class CeleryLauncher:
    """Wakes by Celery; implements ``domain.ports.Launcher``. A failed wake is logged, never raised."""

    def __init__(self, broker_url: str, *, public_url: str | None = None) -> None:
        self._broker_url = broker_url
        self._public_url = public_url or broker_url
        self._core = _producer(broker_url, CORE_PREFIX)
        self._devices: OrderedDict[str, Celery] = OrderedDict()
        self._admin = _admin_client(broker_url)

    def wake_search(self) -> None:
        self._wake(self._core, CORE_PREFIX, "search.wake", "search", at_most=MOST_CORE_WAKES)

    def wake_builders(self) -> None:
        self._wake(self._core, CORE_PREFIX, "build.wake", "build", at_most=MOST_CORE_WAKES)

    def wake_device(self, device_id: str) -> None:
        app = self._devices.pop(device_id, None) or _producer(self._broker_url, device_prefix(device_id))
        self._devices[device_id] = app
        if len(self._devices) > MOST_DEVICE_PRODUCERS:
            _, oldest = self._devices.popitem(last=False)
            oldest.close()
        self._wake(app, device_prefix(device_id), "measure.wake", device_queue(device_id), at_most=1)

    def admit_device(self, device_id: str, broker_secret: str) -> BrokerAddress:
        """Make the device's broker user and return its address.

        Raises:
            Unavailable: ``broker_unavailable`` where the broker does not answer.
        """
        self._set_user(device_id, hashlib.sha256(broker_secret.encode()).hexdigest())
        return BrokerAddress(
            url=_with_user(self._public_url, device_id, broker_secret),
            key_prefix=device_prefix(device_id),
            queue=device_queue(device_id),
        )

    def dismiss_device(self, device_id: str) -> None:
        try:
            self._acl("DELUSER", device_id)
        except redis.RedisError as error:
            log.warning("broker user of %s not removed: %s", device_id, error)

    def readmit_devices(self, users: Iterable[tuple[str, str]]) -> int:
        """Make again the users a restarted broker has forgotten; ``users``: (device id, sha256 of its secret). Never raises."""
        made = 0
        try:
            known = {_text(name) for name in self._acl("USERS")}
            for device_id, secret_sha256 in users:
                if device_id not in known:
                    self._set_user(device_id, secret_sha256)
                    made += 1
        except (redis.RedisError, Unavailable) as error:
            log.warning("broker users not restored: %s", error)
        return made

    def is_reachable(self) -> bool:
        try:
            return bool(self._admin.ping())
        except redis.RedisError:
            return False

    def close(self) -> None:
        for app in (self._core, *self._devices.values()):
            app.close()
        self._admin.close()

    def _set_user(self, device_id: str, secret_sha256: str) -> None:
        prefix = device_prefix(device_id)
        rules = (
            "reset", "on", f"#{secret_sha256}", f"~{prefix}*", "resetchannels", f"&{prefix}*",
            # PSUBSCRIBE patterns are compared as text, so the worker's control channel must be listed literally.
            f"&{prefix}/0.celery.pidbox", *COMMANDS,
        )  # fmt: skip
        try:
            self._acl("SETUSER", device_id, *rules)
        except redis.RedisError as error:
            raise Unavailable(
                f"The broker did not take the device's user ({error}); try joining again in a moment.",
                code="broker_unavailable",
            ) from error

    def _acl(self, *words: str) -> Any:
        return self._admin.execute_command("ACL", *words)  # type: ignore[no-untyped-call]

    def _wake(self, app: Celery, key_prefix: str, task: str, queue: str, *, at_most: int) -> None:
        """Put a wake on a queue, unless enough of them wait there: whoever takes one of those finds this work as well.

        So a queue that nobody reads stays short without an expiry, which a receiver would judge by its own clock, and one whose
        clock is an hour ahead would throw every wake away.
        """
        try:
            if self._admin.llen(f"{key_prefix}{queue}") < at_most:
                app.send_task(task, queue=queue, ignore_result=True, retry=False)
        except (OperationalError, redis.RedisError, OSError) as error:
            log.warning("wake %s lost, the reaper will wake again: %s", task, error)


def _producer(url: str, key_prefix: str) -> Celery:
    """Return an app that publishes at once or not at all: a lost wake is cheaper than a request that waits for the broker."""
    app = make_app(url, key_prefix=key_prefix)
    app.conf.broker_transport_options = {**app.conf.broker_transport_options, "max_retries": 1, "interval_start": 0}
    return app


def _admin_client(url: str) -> redis.Redis:
    parts = urlsplit(url)
    at_once = Retry(NoBackoff(), 0)
    username, password = _credentials(parts)
    if parts.scheme == "redis+socket":
        database = int(parse_qs(parts.query).get("virtual_host", ["0"])[0])
        return redis.Redis(
            unix_socket_path=parts.path,
            db=database,
            username=username,
            password=password,
            socket_timeout=5,
            retry=at_once,
        )
    return redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5, retry=at_once)


def _credentials(parts: SplitResult) -> tuple[str | None, str | None]:
    username = unquote(parts.username) if parts.username else None
    return username, unquote(parts.password) if parts.password else None


def _with_user(url: str, username: str, secret: str) -> str:
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{quote(username, safe='')}:{quote(secret, safe='')}@{place}").geturl()


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
