"""Tells the operator's webhooks that jobs are over: signed, tried again with growing pauses, at least once."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from domain.errors import PruneloopError
from domain.ports import JobStore
from domain.webhook import Delivery, signature

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0
HOLD_S = 60.0  # longer than a try can take, so that nobody sends what somebody is sending
NOBODY_S = 60.0
GONE = 410


@dataclass(frozen=True)
class Hook:
    """Where to, and what it is signed with."""

    url: str
    secret: bytes


class Webhooks:
    """Delivers what is due.

    Args:
        store: The tables.
        hooks: By name. Only these are ever called: a job cannot name a URL.
        interval_s: Between looks.
        transport: For tests.
    """

    def __init__(
        self,
        store: JobStore,
        hooks: Mapping[str, Hook],
        *,
        interval_s: float = 1.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._store = store
        self._hooks = hooks
        self._interval_s = interval_s
        # No redirect: where a message goes is the operator's word, not the receiver's.
        self._http = httpx.Client(timeout=TIMEOUT_S, follow_redirects=False, transport=transport)

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                self.sweep(stop)
            except PruneloopError as error:
                log.warning("webhooks: %s", error)
            # With nobody to tell, what ended is only ticked off.
            stop.wait(self._interval_s if self._hooks else NOBODY_S)
        self._http.close()

    def sweep(self, stop: threading.Event | None = None) -> int:
        """Send everything that is due; return how many tries that were."""
        names = sorted(self._hooks)
        self._store.spread_ends(names)
        tries = 0
        while names and not (stop is not None and stop.is_set()):
            taken = self._store.take_delivery(names, hold_s=HOLD_S)
            if taken is None:
                break
            tries += 1
            error, is_final = self._send(taken)
            if error is not None:
                log.warning("webhook %s: try %s of %s failed: %s", taken.hook, taken.attempts, taken.id, error)
            self._store.settle_delivery(taken, error=error, is_final=is_final)
        return tries

    def _send(self, taken: Delivery) -> tuple[str | None, bool]:
        """Return (what went wrong, whether the hook wants no more)."""
        hook = self._hooks[taken.hook]
        body = json.dumps(taken.body, separators=(",", ":")).encode()
        now_s = int(time.time())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "pruneloop",
            "webhook-id": taken.id,
            "webhook-timestamp": str(now_s),
            "webhook-signature": signature(hook.secret, taken.id, now_s, body),
        }
        try:
            # Streamed and not read: an endless answer costs nothing.
            with self._http.stream("POST", hook.url, content=body, headers=headers) as answer:
                if answer.is_success:
                    return None, False
                return f"answered {answer.status_code}", answer.status_code == GONE
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return f"{type(error).__name__}: {error}", False
