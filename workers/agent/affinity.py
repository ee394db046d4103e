"""Which cores a measurement is pinned to: fast ones first, then idle ones, and core 0 last, where interrupts land."""

from __future__ import annotations

import os
import time
from pathlib import Path

SAMPLE_S = 0.08  # /proc/stat counts in steps of 10 ms
IDLE_FIELDS = (3, 4)  # idle and iowait, counted after the cpu's name


class CoreLoad:
    """How busy each core is between making this and asking ``busy``."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._stat = root / "proc/stat"
        self._begin_s = time.monotonic()
        self._before = _ticks(self._stat)

    def busy(self) -> dict[int, float]:
        """Return the busy fraction of each core; waits until the sample is long enough. Empty where nothing tells."""
        if not self._before:
            return {}
        time.sleep(max(0.0, self._begin_s + SAMPLE_S - time.monotonic()))
        busy = {}
        for core, (idle, total) in _ticks(self._stat).items():
            idle_before, total_before = self._before.get(core, (idle, total))
            spent = total - total_before
            busy[core] = 1 - (idle - idle_before) / spent if spent > 0 else 0.0
        return busy


def choose_cores(threads: int, load: CoreLoad, root: Path = Path("/")) -> tuple[int, ...] | None:
    """Return the cores to pin ``threads`` threads to; None where pinning is not possible or would choose nothing."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    allowed = sorted(os.sched_getaffinity(0))
    if threads >= len(allowed):
        return None
    busy = load.busy()
    cpu = root / "sys/devices/system/cpu"

    def rank(core: int) -> tuple[int, bool, bool, int]:
        fastest_khz = _number(cpu / f"cpu{core}/cpufreq/cpuinfo_max_freq")
        return (-fastest_khz, busy.get(core, 0.0) > 0.3, core == 0, -core)

    chosen: list[int] = []
    taken: set[int] = set()
    ranked = sorted(allowed, key=rank)
    for core in ranked:  # one thread a physical core, while they last
        siblings = _siblings(cpu / f"cpu{core}/topology/thread_siblings_list")
        if len(chosen) < threads and not siblings & taken:
            chosen.append(core)
            taken |= siblings | {core}
    chosen += [core for core in ranked if core not in chosen][: threads - len(chosen)]
    return tuple(sorted(chosen))


def _ticks(stat: Path) -> dict[int, tuple[int, int]]:
    try:
        lines = stat.read_text().splitlines()
    except OSError:
        return {}
    ticks = {}
    for line in lines:
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdigit():
            counts = [int(field) for field in fields[:8]]
            ticks[int(name[3:])] = (sum(counts[index] for index in IDLE_FIELDS), sum(counts))
    return ticks


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _siblings(path: Path) -> set[int]:
    try:
        parts = path.read_text().strip().split(",")
        siblings: set[int] = set()
        for part in parts:
            first, _, last = part.partition("-")
            siblings.update(range(int(first), int(last or first) + 1))
    except (OSError, ValueError):
        return set()
    return siblings
