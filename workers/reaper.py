"""The reaper: wakes what waits, poisons what has used up its attempts, restores broker users. Any number may run."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from domain.errors import PruneloopError
from domain.ports import JobStore
from workers.dispatch import CeleryLauncher

log = logging.getLogger(__name__)

USERS_EVERY_S = 5.0


@dataclass
class Reaper:
    """One pass a second; every pass is idempotent."""

    store: JobStore
    launcher: CeleryLauncher
    interval_s: float = 1.0

    def run(self, stop: threading.Event) -> None:
        users_at = 0.0
        while not stop.is_set():
            try:
                if time.monotonic() - users_at >= USERS_EVERY_S:
                    self.launcher.readmit_devices(self.store.broker_users())
                    users_at = time.monotonic()
                self.sweep()
            except PruneloopError as error:
                log.warning("reaper: %s", error)
            stop.wait(self.interval_s)

    def sweep(self) -> None:
        found = self.store.reap()
        if found.search:
            self.launcher.wake_search()
        if found.builds:
            self.launcher.wake_builders()
        for device_id in found.device_ids:
            self.launcher.wake_device(device_id)
        if found.expired or found.poisoned:
            log.info("reaper: %s leases expired, %s poisoned", found.expired, found.poisoned)
