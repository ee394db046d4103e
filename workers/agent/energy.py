"""Energy of an inference, where a counter tells: RAPL, hwmon, NVML. Measured after the timed region, never within it.

Each file runs alone for a moment between two readings. The figure is of the whole package or board, idle draw included: good to
compare two files on one device, not to compare devices. Without a counter, or without the right to read it, there is no figure.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

MEASURE_S = 0.3
READ_EVERY_S = 0.01  # RAPL counts in steps of a millisecond; a power sensor is integrated
FEWEST_RUNS = 3
FEWEST_STEPS = 5  # of a counter that moves in long ones


class EnergyCounter(Protocol):
    """Accumulated energy; only differences mean something."""

    @property
    def name(self) -> str: ...

    @property
    def step_s(self) -> float:
        """How long it stands still between two values; 0 where it is always of now and wants to be read all the time."""
        ...

    def read_mj(self) -> float: ...


class RaplCounter:
    """Packages of an x86 CPU, through powercap; a counter that wrapped round is continued."""

    name = "rapl"
    step_s = 0.0

    def __init__(self, zones: list[Path]) -> None:
        self._zones = zones
        self._last_uj = [_number(zone / "energy_uj") or 0 for zone in zones]
        self._range_uj = [_number(zone / "max_energy_range_uj") or 0 for zone in zones]
        self._sum_uj = 0

    @classmethod
    def found(cls, root: Path) -> RaplCounter | None:
        # intel-rapl:0 is a package; intel-rapl:0:1 a part of it, and intel-rapl:1 may be the whole board (psys).
        zones = [
            zone
            for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
            if zone.name.count(":") == 1 and _text(zone / "name").startswith("package")
        ]
        readable = [zone for zone in zones if _number(zone / "energy_uj") is not None]
        return cls(readable) if readable else None

    def read_mj(self) -> float:
        for index, zone in enumerate(self._zones):
            now_uj = _number(zone / "energy_uj")
            if now_uj is None:
                continue
            gained_uj = now_uj - self._last_uj[index]
            self._sum_uj += gained_uj if gained_uj >= 0 else gained_uj + self._range_uj[index]
            self._last_uj[index] = now_uj
        return self._sum_uj / 1000


class HwmonCounter:
    """A board's energy counters, or else its power sensors, integrated between readings."""

    name = "hwmon"
    step_s = 0.0

    def __init__(self, energies: list[Path], powers: list[Path], clock_s: Callable[[], float]) -> None:
        self._energies = energies
        self._powers = powers
        self._clock_s = clock_s
        self._last_s = clock_s()
        self._last_uw = self._power_uw()
        self._sum_mj = 0.0

    @classmethod
    def found(cls, root: Path, clock_s: Callable[[], float] = time.perf_counter) -> HwmonCounter | None:
        chips = sorted((root / "sys/class/hwmon").glob("hwmon*"))
        energies = [path for chip in chips for path in sorted(chip.glob("energy*_input")) if _number(path) is not None]
        powers = [path for chip in chips if (path := _power_of(chip)) is not None]
        return cls(energies, powers, clock_s) if energies or powers else None

    def read_mj(self) -> float:
        if self._energies:
            return sum(_number(path) or 0 for path in self._energies) / 1000
        now_s, now_uw = self._clock_s(), self._power_uw()
        self._sum_mj += (now_s - self._last_s) * (now_uw + self._last_uw) / 2 / 1000
        self._last_s, self._last_uw = now_s, now_uw
        return self._sum_mj

    def _power_uw(self) -> int:
        return sum(_number(path) or 0 for path in self._powers)


def find_counter(root: Path = Path("/")) -> EnergyCounter | None:
    """Return the counter that knows most of this machine's CPU; None where nothing can be read."""
    return RaplCounter.found(root) or HwmonCounter.found(root)


def energy_mj_per_run(
    run: Callable[[], object],
    counter: EnergyCounter,
    *,
    measure_s: float = MEASURE_S,
    clock_s: Callable[[], float] = time.perf_counter,
) -> float | None:
    """Run again and again between two readings; None if the counter did not move, which says that it is dead."""
    if counter.step_s > 0:
        return _between_steps(run, counter, max(measure_s, FEWEST_STEPS * counter.step_s), clock_s)
    runs, begin_mj, begin_s = 0, counter.read_mj(), clock_s()
    read_s = begin_s
    while (now_s := clock_s()) - begin_s < measure_s or runs < FEWEST_RUNS:
        run()
        runs += 1
        if now_s - read_s >= READ_EVERY_S:
            counter.read_mj()
            read_s = now_s
    spent_mj = counter.read_mj() - begin_mj
    return spent_mj / runs if spent_mj > 0 else None


def _between_steps(
    run: Callable[[], object], counter: EnergyCounter, measure_s: float, clock_s: Callable[[], float]
) -> float | None:
    """Run from one step of the counter to a later one.

    A value is as old as the last step: read in between, an H100's (every 100 ms) is off by up to a third of what 300 ms take. And a
    reading of it takes 3.6 ms in which the GPU waits, so that it is read near the two steps only.
    """

    def until_it_moves() -> tuple[float, int] | None:
        before_mj, runs, give_up_s = counter.read_mj(), 0, clock_s() + FEWEST_STEPS * counter.step_s
        while clock_s() < give_up_s:
            read_s = clock_s()
            while clock_s() - read_s < READ_EVERY_S:
                run()
                runs += 1
            if (now_mj := counter.read_mj()) != before_mj:
                return now_mj, runs
        return None

    first, runs, begin_s = until_it_moves(), 0, clock_s()
    while clock_s() - begin_s < measure_s or runs < FEWEST_RUNS:
        run()
        runs += 1
    last = until_it_moves() if first is not None else None
    if first is None or last is None:
        return None
    spent_mj = last[0] - first[0]
    return spent_mj / (runs + last[1]) if spent_mj > 0 else None


def _power_of(chip: Path) -> Path | None:
    found = (chip / name for name in ("power1_input", "power1_average"))
    return next((path for path in found if _number(path) is not None), None)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
