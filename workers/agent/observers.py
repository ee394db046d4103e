"""What the machine was like: load, clocks, governors, temperatures, free memory. Every reading is optional.

A broken observer is a warning in the record, never a lost measurement. The folder that /proc and /sys hang under can be another
one: a fake board for the tests, the root of an emulated system.

Source: observers around the timed region, after Kernel Tuner.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pydantic import JsonValue

THROTTLED_CLOCK = 0.75  # of the highest clock since warm-up. Source: nvbench discards below 75 % of the base clock
PI_THROTTLED_NOW = 0x8 | 0x4 | 0x2  # soft temperature limit (slower on a 3B+), throttled, ARM frequency capped
PI_FLAGS = "sys/devices/platform/soc*/soc*:firmware/get_throttled"  # soc/soc:firmware; soc@107c000000/... on a Pi 5


PI_TOOL = "usr/bin/vcgencmd"  # of Raspberry Pi OS: the same flags, where the kernel has no file for them
PI_TOOL_TIMEOUT_S = 2.0
# Source: https://www.raspberrypi.com/documentation/computers/os.html#get_throttled; 16 bits higher: it was so since the start
PI_MEANINGS = {0x1: "under-voltage", 0x2: "clock capped", 0x4: "throttled", 0x8: "soft temperature limit"}
PI_SINCE_START = 16


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


class ThrottleObserver:
    """What the hardware counts of its own slowing down: x86 counters of heat, the flags of a Raspberry Pi's firmware.

    ``core_throttle_count`` and ``package_throttle_count`` grow since the start of the system, summed over cores and over
    packages. ``pi_throttled`` is the firmware's word, ``pi_throttled_now`` what of it holds at this moment.
    """

    name = "throttle"

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._cpu = root / "sys/devices/system/cpu"

    def read(self) -> Mapping[str, JsonValue]:
        seen: dict[str, JsonValue] = {}
        cores: list[int] = []
        packages: dict[str, int] = {}
        for core in self._cpu.glob("cpu[0-9]*"):
            if text := _text(core / "thermal_throttle/core_throttle_count"):
                cores.append(int(text))
            if text := _text(core / "thermal_throttle/package_throttle_count"):
                package = _text(core / "topology/physical_package_id")
                packages[package] = max(int(text), packages.get(package, 0))  # every core of a package tells the same
        if cores:
            seen["core_throttle_count"] = sum(cores)
        if packages:
            seen["package_throttle_count"] = sum(packages.values())
        flags = self._pi_flags()
        if flags is not None:
            seen["pi_throttled"] = f"0x{flags:x}"
            seen["pi_throttled_now"] = [meaning for bit, meaning in PI_MEANINGS.items() if flags & bit]
        return seen

    def _pi_flags(self) -> int | None:
        for path in sorted(self._root.glob(PI_FLAGS)):
            if text := _text(path):
                return int(text, 16)
        tool = self._root / PI_TOOL
        if not tool.exists():
            return None
        said = subprocess.run(
            [tool, "get_throttled"], capture_output=True, text=True, timeout=PI_TOOL_TIMEOUT_S, check=True
        ).stdout
        return int(said.strip().removeprefix("throttled="), 16)


def throttled_between(before: Mapping[str, JsonValue], after: Mapping[str, JsonValue]) -> str | None:
    """Return a sentence where the hardware says that it slowed itself down between two observations."""
    signs = []
    for key, what in (("core_throttle_count", "cores"), ("package_throttle_count", "the package")):
        earlier, later = before.get(key), after.get(key)
        if isinstance(earlier, int) and isinstance(later, int) and later > earlier:
            signs.append(f"heat slowed {what} down {later - earlier} times")
    earlier, later = before.get("pi_throttled"), after.get("pi_throttled")
    if isinstance(earlier, str) and isinstance(later, str):
        appeared = (int(later, 16) & ~int(earlier, 16)) | (int(later, 16) & PI_THROTTLED_NOW)
        appeared |= appeared >> PI_SINCE_START
        signs += [meaning for bit, meaning in PI_MEANINGS.items() if appeared & bit]
    return (
        f"the hardware reports: {', '.join(signs)}; let it cool, or give it a fan or a better supply" if signs else None
    )


def default_observers(root: Path = Path("/")) -> tuple[Observer, ...]:
    return (LoadObserver(root), ClockObserver(root), ThermalObserver(root), ThrottleObserver(root))


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
        self._counters = _present(
            cpu / f"cpu{core}/thermal_throttle/{part}_throttle_count" for core in cores for part in ("core", "package")
        )
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
