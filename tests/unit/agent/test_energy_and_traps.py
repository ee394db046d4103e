"""Energy counters on fake boards, GPUs by a fake NVML, throttling that cools down, and the traps that are warned of."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from domain.measurement import MeasurementPlan
from workers.agent.energy import RaplCounter, energy_mj_per_run, find_counter
from workers.agent.nvml import Nvml
from workers.agent.timing import measure
from workers.agent.traps import ClockDrift, CoolDown, OtherLoad, denormal_inputs, machine_warnings


def write(root: Path, path: str, text: str) -> Path:
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    return place


class Time:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


# --- energy ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def package(tmp_path: Path) -> Path:
    write(tmp_path, "sys/class/powercap/intel-rapl:0/name", "package-0\n")
    write(tmp_path, "sys/class/powercap/intel-rapl:0/max_energy_range_uj", "1000000\n")
    write(tmp_path, "sys/class/powercap/intel-rapl:0:0/name", "core\n")
    write(tmp_path, "sys/class/powercap/intel-rapl:0:0/energy_uj", "777\n")
    write(tmp_path, "sys/class/powercap/intel-rapl:1/name", "psys\n")
    write(tmp_path, "sys/class/powercap/intel-rapl:1/energy_uj", "888\n")
    return write(tmp_path, "sys/class/powercap/intel-rapl:0/energy_uj", "990000\n")


def test_energy_per_run_is_of_the_package_and_survives_a_counter_that_wraps(tmp_path: Path, package: Path) -> None:
    counter, clock = find_counter(tmp_path), Time()
    assert isinstance(counter, RaplCounter)

    def run() -> None:  # 2 mJ each
        package.write_text(str((int(package.read_text()) + 2000) % 1_000_000))
        clock.now_s += 0.005

    found = energy_mj_per_run(run, counter, measure_s=0.1, clock_s=clock)
    assert found == pytest.approx(2.0)


def test_a_counter_that_stands_still_gives_no_figure(tmp_path: Path, package: Path) -> None:
    clock = Time()

    def run() -> None:
        clock.now_s += 0.05

    counter = find_counter(tmp_path)
    assert counter is not None
    assert energy_mj_per_run(run, counter, measure_s=0.1, clock_s=clock) is None


def test_a_boards_power_sensor_is_integrated(tmp_path: Path) -> None:
    from workers.agent.energy import HwmonCounter

    power, clock = write(tmp_path, "sys/class/hwmon/hwmon0/power1_input", "4000000\n"), Time()
    counter = HwmonCounter.found(tmp_path, clock)
    assert counter is not None

    def run() -> None:  # 4 W for 10 ms, then 8 W
        clock.now_s += 0.01
        power.write_text("8000000")

    assert energy_mj_per_run(run, counter, measure_s=0.1, clock_s=clock) == pytest.approx(80, rel=0.06)


def test_a_machine_without_counters_has_none(tmp_path: Path) -> None:
    assert find_counter(tmp_path) is None


# --- GPUs -----------------------------------------------------------------------------------------------------------
class FakeNvml(ModuleType):
    """What of pynvml is used, for one GPU."""

    def __init__(self, reasons: int = 0, gpus: int = 1) -> None:
        super().__init__("pynvml")
        self.reasons, self.gpus, self.energy_mj = reasons, gpus, 5000

    def nvmlInit(self) -> None: ...  # noqa: N802 - the library's own names, here and below

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return self.gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, gpu: int) -> bytes:  # noqa: N802
        return b"Some GPU"

    def nvmlDeviceGetClockInfo(self, gpu: int, kind: int) -> int:  # noqa: N802
        return {1: 1980, 2: 2619}[kind]

    def nvmlDeviceGetTemperature(self, gpu: int, sensor: int) -> int:  # noqa: N802
        raise RuntimeError("not supported")

    def nvmlDeviceGetPowerUsage(self, gpu: int) -> int:  # noqa: N802
        return 71_500

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu: int) -> int:  # noqa: N802
        return self.reasons

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: int) -> int:  # noqa: N802
        return self.energy_mj


@pytest.mark.parametrize(
    ("reasons", "words"), [(0x0, []), (0x1 | 0x4, []), (0x20, ["sw_thermal"]), (0x48, ["hw_slowdown", "hw_thermal"])]
)
def test_a_gpu_tells_what_it_can(monkeypatch: pytest.MonkeyPatch, reasons: int, words: list[str]) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(reasons))
    gpus = Nvml.found()
    assert gpus is not None
    assert gpus.read() == {
        "gpus": [
            {
                "name": "Some GPU",
                "sm_mhz": 1980,
                "memory_mhz": 2619,
                "power_w": 71.5,
                "throttle_reasons": words,
            }
        ]
    }, "idle and the power cap are no trouble, and what is not supported is left out"
    assert gpus.is_throttled() is bool(words)
    assert gpus.read_mj() == 5000


@pytest.mark.parametrize("library", [None, FakeNvml(gpus=0)])
def test_without_a_gpu_there_is_no_nvml(monkeypatch: pytest.MonkeyPatch, library: ModuleType | None) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert Nvml.found() is None


class SlowCounter:
    """As an H100's was found: it moves every 100 ms, and a reading takes 3.6 ms, in which the GPU draws a third."""

    name, step_s = "slow", 0.1

    def __init__(self, clock: Time, ahead_s: float) -> None:
        self.clock, self.ahead_s = clock, ahead_s
        self.spent_mj, self.seen_mj = 0.0, 0.0
        self._stepped = 0

    def work(self, seconds: float, watt: float) -> None:
        self.clock.now_s += seconds
        self.spent_mj += 1000 * watt * seconds
        if (steps := int((self.clock.now_s + self.ahead_s) / self.step_s)) > self._stepped:
            self._stepped, self.seen_mj = steps, self.spent_mj

    def read_mj(self) -> float:
        self.work(0.0036, 100)
        return self.seen_mj


@pytest.mark.parametrize("ahead_s", [0.0, 0.02, 0.055, 0.09])
@pytest.mark.parametrize("run_s", [0.0002, 0.005, 0.04])
def test_a_counter_that_moves_in_long_steps_is_read_from_step_to_step(run_s: float, ahead_s: float) -> None:
    clock = Time()
    counter = SlowCounter(clock, ahead_s)
    found = energy_mj_per_run(lambda: counter.work(run_s, 300), counter, clock_s=clock)
    assert found == pytest.approx(300 * 1000 * run_s, rel=0.07)


def test_a_slow_counter_that_stands_still_gives_no_figure() -> None:
    clock = Time()
    counter = SlowCounter(clock, -1e9)
    assert energy_mj_per_run(lambda: counter.work(0.001, 300), counter, clock_s=clock) is None


# --- throttling -----------------------------------------------------------------------------------------------------
class Slept:
    """A device that throttles until it has slept for so long."""

    def __init__(self, until_s: float) -> None:
        self.until_s = until_s
        self.slept_s = 0.0

    def sleep(self, seconds: float) -> None:
        self.slept_s += seconds

    def is_throttled(self) -> bool:
        return self.slept_s < self.until_s


class Session:
    def run(self) -> None: ...


def timed(device: Slept, cool_down: Callable[[], float]) -> object:
    plan = MeasurementPlan(instances=1, warmup_s=0.01, max_s=0.2, min_pairs=10, half_width=0.5, bootstrap=100)
    return measure([Session()], [[Session()]], plan, is_disturbed=device.is_throttled, cool_down=cool_down)


def test_a_throttled_device_cools_down_and_goes_on() -> None:
    device = Slept(until_s=3.0)
    cool_down = CoolDown(device.is_throttled, budget_s=10.0, sleep=device.sleep)
    seen = timed(device, cool_down)
    assert cool_down.slept_s == 3.0
    assert seen.pairs[0].discarded == 4  # type: ignore[attr-defined]
    assert seen.pairs[0].interval is not None  # type: ignore[attr-defined]
    assert not seen.is_throttled  # type: ignore[attr-defined]


def test_a_device_that_does_not_cool_is_given_up_after_its_budget() -> None:
    device = Slept(until_s=1e9)
    cool_down = CoolDown(device.is_throttled, budget_s=2.0, sleep=device.sleep)
    seen = timed(device, cool_down)
    assert device.slept_s == 2.0
    assert seen.is_throttled and seen.pairs[0].interval is None  # type: ignore[attr-defined]


# --- traps ----------------------------------------------------------------------------------------------------------
def test_denormal_inputs_are_named() -> None:
    fine = np.array([0.0, 1.0, -1e-30, 1.2e-38], np.float32)
    assert denormal_inputs({"x": fine, "ids": np.arange(3)}) == ()
    assert denormal_inputs({"x": fine, "y": np.array([1.0, -1e-40], np.float32)}) == ("y",)
    assert denormal_inputs({"half": np.array([1e-6], np.float16)}) == ("half",)


def test_more_threads_than_cores_and_saving_power_are_warned_of(tmp_path: Path) -> None:
    assert machine_warnings(threads=2, cores=2, root=tmp_path) == ()
    (threads,) = machine_warnings(threads=8, cores=2, root=tmp_path)
    assert "8 threads on 2 cores" in threads
    governor = write(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n")
    assert "powersave" in machine_warnings(threads=1, cores=2, root=tmp_path)[0]
    governor.write_text("performance\n")
    assert machine_warnings(threads=1, cores=2, root=tmp_path) == ()


def test_a_clock_that_moves_is_warned_of(tmp_path: Path) -> None:
    clock = write(tmp_path, "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq", "4800000\n")
    drift = ClockDrift([1], tmp_path)
    clock.write_text("4500000\n")
    assert drift.warning() is None
    clock.write_text("3600000\n")
    assert "from 4800 to 3600 MHz" in (drift.warning() or "")
    assert ClockDrift([5], tmp_path).warning() is None


def test_the_load_of_others_is_counted_in_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"monotonic": 100.0, "process_time": 5.0}
    monkeypatch.setattr("workers.agent.traps.time.monotonic", lambda: now["monotonic"])
    monkeypatch.setattr("workers.agent.traps.time.process_time", lambda: now["process_time"])
    stat = write(tmp_path, "proc/stat", "cpu  1000 0 0 5000 100 0 0 0 0 0\n")
    others = OtherLoad(tmp_path)
    now.update(monotonic=102.0, process_time=6.5)  # 1.5 s of ours in 2 s
    stat.write_text("cpu  1250 0 50 5100 150 0 0 0 0 0\n")  # 3 s busy at 100 ticks a second
    assert others.cores() == pytest.approx(0.75)
    assert OtherLoad(tmp_path / "nowhere").cores() is None
