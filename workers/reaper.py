"""The reaper: wakes what waits, poisons what has used up its attempts, restores broker users. Any number may run."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from domain.errors import PruneloopError
from domain.health import RECHECK_S
from domain.ports import JobStore
from workers.agent.pulse import touch
from workers.dispatch import CeleryLauncher
from workers.names import dead_names

log = logging.getLogger(__name__)

USERS_EVERY_S = 5.0
FORGET_EVERY_S = 60.0
COLLECT_EVERY_S = 3600.0
FIRST_RECHECK_S = 15.0  # a check of the golden model takes some of it


class Backoff:
    """Lets a name through at once, then ever more rarely, until it is no longer asked for.

    Args:
        first_s: Until the second time; doubled from then on.
        longest_s: The longest pause.
        clock: Monotonic seconds.
    """

    def __init__(self, first_s: float, longest_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._clock = clock
        self._next: dict[str, tuple[float, float]] = {}  # name -> (when, the pause after that)

    def due(self, names: Collection[str]) -> list[str]:
        """Return those of the names whose time has come; one that is missing begins anew the next time."""
        now_s = self._clock()
        known = {name: self._next.get(name, (now_s, self._first_s)) for name in names}
        let_through = [name for name in names if known[name][0] <= now_s]
        for name in let_through:
            pause_s = known[name][1]
            known[name] = (now_s + pause_s, min(self._longest_s, pause_s * 2))
        self._next = known
        return let_through


@dataclass
class Reaper:
    """One pass a second; every pass is idempotent."""

    store: JobStore
    launcher: CeleryLauncher
    interval_s: float = 1.0
    audit_days: int = 0
    names_dir: Path | None = None
    collect: Callable[[], object] | None = None  # what is old, where the operator asked for it
    health_file: Path | None = None  # touched after every pass that went well
    _dead: set[str] = field(default_factory=set)
    # A check takes its seconds, and one that cannot be told stays due: the device is not to measure nothing else meanwhile.
    rechecks: Backoff = field(default_factory=lambda: Backoff(FIRST_RECHECK_S, RECHECK_S))

    def run(self, stop: threading.Event) -> None:
        users_at = forgot_at = collected_at = -math.inf
        while not stop.is_set():
            try:
                if time.monotonic() - users_at >= USERS_EVERY_S:
                    self.launcher.readmit_devices(self.store.broker_users())
                    users_at = time.monotonic()
                self.sweep()
                if self.health_file is not None:
                    touch(self.health_file)
                if time.monotonic() - forgot_at >= FORGET_EVERY_S:
                    self.store.forget_old(audit_days=self.audit_days)
                    forgot_at = time.monotonic()
                if self.collect is not None and time.monotonic() - collected_at >= COLLECT_EVERY_S:
                    collected_at = time.monotonic()
                    self.collect()
            except (PruneloopError, OSError) as error:  # the tables are away, or the folder of names cannot be read
                log.warning("reaper: %s", error)
            stop.wait(self.interval_s)

    def free_the_dead(self) -> None:
        """Let go of what workers of this host held when they died: others need not wait for a lease to run out.

        Once a death: while a name stays free there is nothing more to find under it.
        """
        with dead_names(self.names_dir) as names:
            died = sorted(set(names) - self._dead)
            if died:
                freed = self.store.free_leases(died)
                if freed:
                    log.info("reaper: %s leases of %s freed, who died", freed, ", ".join(died))
            self._dead = set(names)

    def sweep(self) -> None:
        self.free_the_dead()
        found = self.store.reap()
        if found.search:
            self.launcher.wake_search()
        if found.builds:
            self.launcher.wake_builders()
        for device_id in {*found.device_ids, *self.rechecks.due(found.recheck_ids)}:
            self.launcher.wake_device(device_id)
        if found.expired or found.poisoned:
            log.info("reaper: %s leases expired, %s poisoned", found.expired, found.poisoned)
