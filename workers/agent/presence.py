"""An idle agent says that it is there: a small call every few seconds, from the worker's main process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime

from pydantic import JsonValue

from domain.device import Inventory
from domain.errors import Forbidden, NotFound, PruneloopError, Unauthorized
from domain.messages import HeartbeatRequest
from workers.agent.api import AgentApi

log = logging.getLogger(__name__)

LONGEST_PAUSE_S = 60.0


class Presence:
    """Beats until stopped; the first beat carries the inventory.

    Args:
        api: The server.
        device_id: Who we are.
        conditions: Read at every beat: load, clocks, temperatures.
        inventory: Collected once, in this thread: it starts a process.
        interval_s: Between two beats.
    """

    def __init__(
        self,
        api: AgentApi,
        device_id: str,
        *,
        conditions: Callable[[], dict[str, JsonValue]],
        inventory: Callable[[], Inventory],
        interval_s: float = 5.0,
    ) -> None:
        self._api = api
        self._device_id = device_id
        self._conditions = conditions
        self._collect = inventory
        self._interval_s = interval_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask it to end; it is a daemon and nobody waits for a call in flight."""
        self._is_over.set()

    def _run(self) -> None:
        inventory: Inventory | None = self._collect()
        pause_s = self._interval_s
        while not self._is_over.is_set():
            try:
                self._api.heartbeat(
                    self._device_id,
                    HeartbeatRequest(clock=datetime.now(UTC), conditions=self._conditions(), inventory=inventory),
                )
                inventory, pause_s = None, self._interval_s
            except (Unauthorized, Forbidden, NotFound) as error:
                log.error("the server does not know this device any more (%s); run `pruneloop agent join` again", error)
                pause_s = LONGEST_PAUSE_S
            except PruneloopError as error:
                log.warning("the server does not hear us: %s", error)
                pause_s = min(LONGEST_PAUSE_S, pause_s * 1.5)
            self._is_over.wait(pause_s)
