"""Known traps of a measurement: what slows a machine or a file down without anybody having asked for it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from workers.agent.runtimes.base import Array

SAVING_GOVERNORS = frozenset({"powersave", "conservative"})
COOL_STEP_S = 0.5
CLOCK_DRIFT = 0.1


class CoolDown:
    """Waits until the device is no longer throttled, for so many seconds a measurement and no more.

    Args:
        is_throttled: Asked at every step.
        budget_s: Of one measurement.
        sleep: For tests.
    """

    def __init__(
        self, is_throttled: Callable[[], bool], *, budget_s: float, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._is_throttled = is_throttled
        self._left_s = budget_s
        self._sleep = sleep
        self.slept_s = 0.0

    def __call__(self) -> float:
        """Return the seconds slept; 0 once the budget is spent."""
        before_s = self.slept_s
        while self._left_s > 0:
            step_s = min(COOL_STEP_S, self._left_s)
            self._sleep(step_s)
            self._left_s -= step_s
            self.slept_s += step_s
            if not self._is_throttled():
                break
        return self.slept_s - before_s


def denormal_inputs(feeds: Mapping[str, Array]) -> tuple[str, ...]:
    """Return the names of the float inputs that hold denormal values: some CPUs compute with those 100 times slower."""
    found = []
    for name, array in feeds.items():
        if array.dtype.kind == "f" and array.size:
            sizes = np.abs(array)
            if bool(np.any((sizes > 0) & (sizes < np.finfo(array.dtype).tiny))):
                found.append(name)
    return tuple(found)


def machine_warnings(*, threads: int, cores: int, root: Path = Path("/")) -> tuple[str, ...]:
    """Return what is wrong with the machine for a measurement with so many threads on so many cores."""
    warnings = []
    if threads > cores:
        warnings.append(
            f"{threads} threads on {cores} cores: they take turns, and the latency is the scheduler's; ask for {cores}"
        )
    places = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    saving = SAVING_GOVERNORS.intersection(_texts(places))
    if saving:
        warnings.append(
            f"governor {', '.join(sorted(saving))}: clocks follow the load; set `performance` for tighter intervals"
        )
    return tuple(warnings)


class ClockDrift:
    """Compares the clocks of some cores at the end with those at the beginning: turbo that runs out, or comes late."""

    def __init__(self, cores: Iterable[int], root: Path = Path("/")) -> None:
        cpu = root / "sys/devices/system/cpu"
        self._places = [cpu / f"cpu{core}/cpufreq/scaling_cur_freq" for core in cores]
        self._before_mhz = self._mean_mhz()

    def warning(self) -> str | None:
        """Return a sentence where the mean clock moved by more than a tenth since this was made."""
        before, after = self._before_mhz, self._mean_mhz()
        if not before or not after or abs(after - before) <= CLOCK_DRIFT * before:
            return None
        return (
            f"the clock moved from {before:.0f} to {after:.0f} MHz since the warm-up began: turbo after idle, or heat; "
            "pairs cancel it in the speed-up, the latency is of both"
        )

    def _mean_mhz(self) -> float:
        clocks = [int(text) / 1000 for text in _texts(self._places) if text.isdigit()]
        return sum(clocks) / len(clocks) if clocks else 0.0


class OtherLoad:
    """How many cores other processes kept busy between making this and asking."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._stat = root / "proc/stat"
        self._tick_s = 1 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01
        self._before = (self._busy_s(), time.process_time(), time.monotonic())

    def cores(self) -> float | None:
        """Return the mean number of cores; None where the kernel does not tell."""
        busy_s, own_s, now_s = self._busy_s(), time.process_time(), time.monotonic()
        if busy_s is None or self._before[0] is None or now_s <= self._before[2]:
            return None
        others_s = busy_s - self._before[0] - (own_s - self._before[1])
        return round(max(0.0, others_s / (now_s - self._before[2])), 2)

    def _busy_s(self) -> float | None:
        try:
            counts = [int(field) for field in self._stat.read_text().splitlines()[0].split()[1:9]]
        except (OSError, ValueError, IndexError):
            return None
        return (sum(counts) - counts[3] - counts[4]) * self._tick_s  # less idle and iowait


def _texts(places: Iterable[Path]) -> list[str]:
    found = []
    for place in places:
        try:
            found.append(place.read_text().strip())
        except OSError:
            continue
    return found
