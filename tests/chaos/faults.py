"""What is done to the system: chosen by a seeded die, noted with the database's clock and with the work it hits."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import psutil
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from tests.chaos.system import System

COMPONENTS = ("api", "search", "build", "reaper", "agent")
# What happens how often, of a hundred.
MIX = {
    **{("kill", component): 11 for component in COMPONENTS},
    **{("stop", component): 4 for component in COMPONENTS},
    ("kill", "valkey"): 3,
    ("kill and lose", "valkey"): 4,
    ("flush", "valkey"): 4,
    ("stop at once", "postgres"): 5,
    ("cut", "network"): 5,
    ("fill", "disk"): 4,
}
BUSY_WITHIN_S = 4.0  # a kill waits so long for its victim to hold work: killing who is idle proves little
STOP_S = (1.0, 14.0)  # up to almost two leases
CUT_S = (2.0, 14.0)
FULL_S = (2.0, 8.0)

HELD = {
    "search": "SELECT 'job', id, search_attempt FROM job WHERE search_owner = :holder"
    " AND state IN ('RUNNING', 'STOPPING', 'QUEUED')",
    "build": "SELECT 'build', id, attempt FROM build WHERE owner = :holder AND state = 'leased' AND NOT cancel_requested",
    "agent": "SELECT 'measurement', id, attempt FROM measurement WHERE device_id = :holder AND state = 'leased'"
    " AND NOT cancel_requested",
}


@dataclass
class Fault:
    """One thing done: what, to whom, when, and which rows were in the victim's hands: (table, id, attempt)."""

    action: str
    component: str
    victim: str = ""
    at: datetime | None = None
    lasts_s: float = 0.0
    held: list[tuple[str, str, int]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"at": self.at.isoformat() if self.at is not None else None}


class Chaos:
    """Does faults to a system; those that last are ended by timers.

    Args:
        system: Running.
        seed: Of the die.
        mix: (action, component) -> weight.
    """

    def __init__(self, system: System, seed: int, mix: dict[tuple[str, str], int] | None = None) -> None:
        self._system = system
        self._dice = random.Random(seed)
        self._mix = mix or MIX
        self._ends: list[threading.Thread] = []
        self.faults: list[Fault] = []

    def next_pause_s(self, mean_s: float) -> float:
        """Return the time to the next fault: a Poisson process."""
        return min(4 * mean_s, self._dice.expovariate(1 / mean_s))

    def strike(self) -> Fault:
        """Do one fault and return what it was."""
        (action, component), *_ = self._dice.choices(list(self._mix), weights=list(self._mix.values()))
        return self.do(action, component)

    def do(self, action: str, component: str) -> Fault:
        fault = Fault(action, component)
        if component in COMPONENTS:
            if not self._on_process(fault):
                return self.do(action, component) if self._system.processes(component) else fault
        elif component == "valkey":
            fault.at = self._now()
            if action == "flush":
                self._system.broker.flush()
            else:
                self._system.broker.kill(with_file=action == "kill")
        elif component == "postgres":
            fault.at = self._now()
            self._system.stop_postgres_at_once()
        elif component == "network":
            self._cut(fault)
        else:
            fault.lasts_s = self._dice.uniform(*FULL_S)
            fault.at = self._now()
            self._system.disk.fill()
            self._end_after(fault.lasts_s, self._system.disk.free)
        self.faults.append(fault)
        return fault

    def settle(self) -> None:
        """Wait until everything that lasts has ended."""
        for thread in self._ends:
            thread.join()

    def _on_process(self, fault: Fault) -> bool:
        """Kill or stop a process of a component, one with work in hand if there is one soon; False where it got away."""
        found = self._choose(fault)
        if found is None:
            return False
        for name, process in found:
            fault.victim = f"{fault.victim} {name}".strip()
            if fault.action == "stop":
                fault.lasts_s = self._dice.uniform(*STOP_S)
                tree = _tree(process)
                _send(tree, signal.SIGSTOP)
                self._end_after(fault.lasts_s, lambda tree=tree: _send(tree, signal.SIGCONT))  # type: ignore[misc]
            else:
                _send(self._part_of(process, fault), signal.SIGKILL)
        return True

    def _choose(self, fault: Fault) -> list[tuple[str, psutil.Process]] | None:
        processes = self._system.processes(fault.component)
        self._dice.shuffle(processes)
        if not processes:
            time.sleep(0.2)
            return None
        if fault.component == "api":
            fault.at = self._now()
            return processes[:1]
        if fault.component == "reaper":  # all of them: else there is nothing to recover
            fault.at = self._now()
            return processes
        until = time.monotonic() + BUSY_WITHIN_S
        while time.monotonic() < until:
            for name, process in processes:
                holder = self._holder(fault.component, name, process)
                held = self._held(fault.component, holder) if holder is not None else []
                if held:
                    fault.at, fault.held = self._now(), held
                    return [(name, process)]
            time.sleep(0.03)
        fault.at = self._now()
        return processes[:1]

    def _holder(self, component: str, name: str, process: psutil.Process) -> str | None:
        with suppress(psutil.Error):
            if component == "agent":
                return self._system.device_id(name)
            owner = self._system.owner_of(process)
            return None if owner is None else f"%:{owner}"
        return None

    def _part_of(self, process: psutil.Process, fault: Fault) -> list[psutil.Process]:
        """A whole process tree, its head, or the child that works."""
        tree = _tree(process)
        if fault.component in {"search", "build", "agent"} and len(tree) > 1:
            part = self._dice.choice(("tree", "head", "child"))
            fault.victim = part
            if part == "head":
                return tree[-1:]
            if part == "child":
                return [one for one in tree[:-1] if not _is_tracker(one)]
        return tree

    def _cut(self, fault: Fault) -> None:
        agents = list(self._system.agents)
        if self._dice.random() < 0.7:
            agents = [self._dice.choice(agents)]
        fault.victim, fault.lasts_s, fault.at = " ".join(agents), self._dice.uniform(*CUT_S), self._now()
        fault.held = [row for agent in agents for row in self._held("agent", self._system.device_id(agent))]
        for agent in agents:
            self._system.network.cut(agent)

        def mend() -> None:
            for agent in agents:
                self._system.network.mend(agent)

        self._end_after(fault.lasts_s, mend)

    def _end_after(self, seconds: float, end: Callable[[], None]) -> None:
        def wait() -> None:
            time.sleep(seconds)
            end()

        thread = threading.Thread(target=wait, name="end of a fault", daemon=True)
        thread.start()
        self._ends.append(thread)

    def _now(self) -> datetime:
        return self._ask("SELECT clock_timestamp()", {})[0][0]  # type: ignore[no-any-return]

    def _held(self, component: str, holder: str) -> list[tuple[str, str, int]]:
        query = HELD[component]
        if component != "agent":
            query = query.replace("= :holder", "LIKE :holder")
        return [(row[0], row[1], row[2]) for row in self._ask(query, {"holder": holder})]

    def _ask(self, query: str, values: dict[str, Any]) -> Sequence[Any]:
        """Ask the tables, again and again while they are away."""
        until = time.monotonic() + 60
        while True:
            try:
                with self._system.engine.connect() as connection:
                    return connection.execute(text(query), values).all()
            except SQLAlchemyError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)


def _tree(process: psutil.Process) -> list[psutil.Process]:
    """Return a process and all below it, the head last."""
    with suppress(psutil.Error):
        return [*process.children(recursive=True), process]
    return [process]


def _is_tracker(process: psutil.Process) -> bool:
    """Whether it only keeps books for a pool: nothing that works, and nothing that a lack of memory would choose."""
    with suppress(psutil.Error):
        return "tracker" in " ".join(process.cmdline())
    return False


def _send(processes: list[psutil.Process], signum: int) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(signum)
