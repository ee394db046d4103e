"""What the machine was like: load, clocks, governors, temperatures, free memory. Every reading is optional.

A broken observer is a warning in the record, never a lost measurement. The folder that /proc and /sys hang under can be another
one: a fake board for the tests, the root of an emulated system.

Source: observers around the timed region, after Kernel Tuner.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pydantic import JsonValue

THROTTLED_CLOCK = 0.75  # of the highest clock since warm-up. Source: nvbench discards below 75 % of the base clock
PI_THROTTLED_NOW = 0x8 | 0x4 | 0x2  # soft temperature limit (slower on a 3B+), throttled, ARM frequency capped
PI_FLAGS = "sys/devices/platform/soc*/soc*:firmware/get_throttled"  # soc/soc:firmware; soc@107c000000/... on a Pi 5


class Observer(Protocol):
    """Reads some conditions of the machine."""

    @property
    def name(self) -> str: ...

    def read(self) -> Mapping[str, JsonValue]: ...


class LoadObserver:
    """Load average over one minute and memory that is free."""

    name = "load"

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def read(self) -> Mapping[str, JsonValue]:
        seen: dict[str, JsonValue] = {"load_1m": float((self._root / "proc/loadavg").read_text().split()[0])}
        for line in (self._root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                seen["memory_free_bytes"] = int(line.split()[1]) * 1024
        return seen


class ClockObserver:
    """Clock of each core in MHz, the governors in use, and whether boost is on."""

    name = "clocks"

    def __init__(self, root: Path = Path("/")) -> None:
        self._cpu = root / "sys/devices/system/cpu"

    def read(self) -> Mapping[str, JsonValue]:
        cores = sorted(self._cpu.glob("cpu[0-9]*"), key=lambda path: int(path.name[3:]))
        clocks = [int(text) // 1000 for core in cores if (text := _text(core / "cpufreq/scaling_cur_freq"))]
        governors = sorted({text for core in cores if (text := _text(core / "cpufreq/scaling_governor"))})
        seen: dict[str, JsonValue] = {}
        if clocks:
            seen["cpu_mhz"] = list(clocks)
        if governors:
            seen["governor"] = ",".join(governors)
        for key, place in (("boost", "cpufreq/boost"), ("smt", "smt/active")):
            if text := _text(self._cpu / place):
                seen[key] = text == "1"
        return seen


class ThermalObserver:
    """Temperature of each thermal zone in °C, by its type."""

    name = "thermal"

    def __init__(self, root: Path = Path("/")) -> None:
        self._thermal = root / "sys/class/thermal"

    def read(self) -> Mapping[str, JsonValue]:
        zones: dict[str, JsonValue] = {}
        for zone in sorted(self._thermal.glob("thermal_zone*")):
            text = _text(zone / "temp")
            if text:
                zones[_text(zone / "type") or zone.name] = int(text) / 1000
        return {"temperature_c": zones} if zones else {}


def default_observers(root: Path = Path("/")) -> tuple[Observer, ...]:
    return (LoadObserver(root), ClockObserver(root), ThermalObserver(root))


def observe(observers: Sequence[Observer]) -> tuple[dict[str, JsonValue], tuple[str, ...]]:
    """Return what all observers see and a warning for each broken one."""
    seen: dict[str, JsonValue] = {}
    warnings = []
    for observer in observers:
        try:
            seen.update(observer.read())
        except Exception as error:  # an observer, maybe foreign, must not cost a measurement
            warnings.append(f"observer {observer.name}: {type(error).__name__}: {error}")
    return seen, tuple(warnings)


class ThrottleWatch:
    """Tells whether a core was slowed down since it was last asked: clock, x86 counters, a Raspberry Pi's flags."""

    def __init__(self, cores: Sequence[int], root: Path = Path("/")) -> None:
        cpu = root / "sys/devices/system/cpu"
        self._clocks = _present(cpu / f"cpu{core}/cpufreq/scaling_cur_freq" for core in cores)
        self._counters = _present(cpu / f"cpu{core}/thermal_throttle/core_throttle_count" for core in cores)
        self._pi = sorted(root.glob(PI_FLAGS))
        self._highest_khz: list[int] = []
        self._count = self._counted()

    def __call__(self) -> bool:
        count = self._counted()
        is_counted, self._count = count > self._count, count
        return (
            is_counted
            or self._is_clock_low()
            or any(int(_text(path) or "0", 16) & PI_THROTTLED_NOW for path in self._pi)
        )

    def _is_clock_low(self) -> bool:
        clocks_khz = [int(_text(path) or "0") for path in self._clocks]
        # The highest so far, not the first: a board that is hot from what it did before begins slowed down.
        self._highest_khz = [max(pair) for pair in zip(clocks_khz, self._highest_khz or clocks_khz, strict=True)]
        return any(
            0 < now < THROTTLED_CLOCK * highest for now, highest in zip(clocks_khz, self._highest_khz, strict=True)
        )

    def _counted(self) -> int:
        return sum(int(_text(path) or "0") for path in self._counters)


def _present(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if path.exists()]


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
