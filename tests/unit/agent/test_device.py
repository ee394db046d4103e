"""What a device says of itself: fake boards, broken observers, broken plug-ins, chosen cores, a kept identity."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import JsonValue, SecretStr

from domain.errors import NotFound, Unavailable
from domain.messages import BrokerAddress
from workers.agent.affinity import CoreLoad, choose_cores
from workers.agent.inventory import collect_inventory
from workers.agent.observers import ThrottleObserver, ThrottleWatch, default_observers, observe, throttled_between
from workers.agent.settings import IDENTITY_FILE, Identity


def write(root: Path, path: str, text: str) -> Path:
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    return place


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """A board with two slow and two fast cores, as its kernel shows it."""
    root = tmp_path / "board"
    write(root, "proc/loadavg", "0.42 0.30 0.20 1/100 999\n")
    write(root, "proc/meminfo", "MemTotal:        3884000 kB\nMemAvailable:    2000000 kB\n")
    write(root, "proc/cpuinfo", "processor\t: 0\nBogoMIPS\t: 108.00\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n")
    write(root, "proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.4\0")
    write(root, "etc/os-release", 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n')
    write(root, "sys/class/thermal/thermal_zone0/type", "cpu-thermal\n")
    write(root, "sys/class/thermal/thermal_zone0/temp", "48250\n")
    for core in range(4):
        fastest = "1800000\n" if core < 2 else "2400000\n"
        write(root, f"sys/devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq", fastest)
        write(root, f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", fastest)
        write(root, f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor", "ondemand\n")
    return root


def test_a_boards_conditions_are_read(board: Path) -> None:
    seen, warnings = observe(default_observers(board))
    assert warnings == ()
    assert seen == {
        "load_1m": 0.42,
        "memory_free_bytes": 2000000 * 1024,
        "cpu_mhz": [1800, 1800, 2400, 2400],
        "governor": "ondemand",
        "temperature_c": {"cpu-thermal": 48.25},
    }


def test_a_machine_that_tells_nothing_costs_a_warning_and_no_more(tmp_path: Path) -> None:
    seen, warnings = observe(default_observers(tmp_path))
    assert seen == {}
    assert len(warnings) == 1
    assert "observer load" in warnings[0]


def test_one_broken_observer_does_not_silence_the_others(board: Path) -> None:
    class Broken:
        name = "broken"

        def read(self) -> Mapping[str, JsonValue]:
            raise ValueError("sensor on fire")

    seen, warnings = observe([Broken(), *default_observers(board)])
    assert seen["governor"] == "ondemand"
    assert warnings == ("observer broken: ValueError: sensor on fire",)


def test_a_clock_that_drops_is_throttling(board: Path) -> None:
    watch = ThrottleWatch([2, 3], board)
    assert not watch()
    clock = board / "sys/devices/system/cpu/cpu2/cpufreq/scaling_cur_freq"
    clock.write_text("1900000\n")
    assert not watch()
    clock.write_text("1500000\n")
    assert watch()


def test_a_board_that_begins_slowed_down_is_seen_to_slow_down_again(board: Path) -> None:
    clock = board / "sys/devices/system/cpu/cpu2/cpufreq/scaling_cur_freq"
    clock.write_text("600000\n")
    watch = ThrottleWatch([2], board)
    assert not watch()
    clock.write_text("2400000\n")
    assert not watch()
    clock.write_text("600000\n")
    assert watch()


def test_a_throttle_counter_that_moves_is_throttling(board: Path) -> None:
    counter = write(board, "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count", "7\n")
    watch = ThrottleWatch([1], board)
    assert not watch()
    counter.write_text("8\n")
    assert watch()
    assert not watch()


def test_a_package_that_gets_too_hot_throttles_all_its_cores(board: Path) -> None:
    counter = write(board, "sys/devices/system/cpu/cpu1/thermal_throttle/package_throttle_count", "7\n")
    watch = ThrottleWatch([1], board)
    assert not watch()
    counter.write_text("9\n")
    assert watch()


def test_throttle_counters_are_observed_once_a_core_and_once_a_package(board: Path) -> None:
    for core, package in ((0, 0), (1, 0), (2, 1), (3, 1)):
        place = f"sys/devices/system/cpu/cpu{core}"
        write(board, f"{place}/thermal_throttle/core_throttle_count", f"{core}\n")
        write(board, f"{place}/thermal_throttle/package_throttle_count", f"{10 * (package + 1)}\n")
        write(board, f"{place}/topology/physical_package_id", f"{package}\n")
    seen, warnings = observe(default_observers(board))
    assert (seen["core_throttle_count"], seen["package_throttle_count"]) == (0 + 1 + 2 + 3, 10 + 20)
    assert warnings == ()


def test_a_machine_without_counters_reports_none(board: Path) -> None:
    assert ThrottleObserver(board).read() == {}


def test_a_pis_flags_are_told_in_words(board: Path) -> None:
    write(board, "sys/devices/platform/soc/soc:firmware/get_throttled", "50005\n")
    assert ThrottleObserver(board).read() == {
        "pi_throttled": "0x50005",
        "pi_throttled_now": ["under-voltage", "throttled"],
    }


def tool(board: Path, script: str) -> None:
    path = write(board, "usr/bin/vcgencmd", f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_where_the_kernel_has_no_file_the_firmwares_own_tool_is_asked(board: Path) -> None:
    tool(board, '[ "$1" = get_throttled ] && echo throttled=0xe0008')
    assert ThrottleObserver(board).read() == {
        "pi_throttled": "0xe0008",
        "pi_throttled_now": ["soft temperature limit"],
    }


def test_a_tool_that_fails_is_a_warning_and_costs_no_other_observation(board: Path) -> None:
    tool(board, "echo VCHI initialization failed >&2; exit 255")
    seen, warnings = observe(default_observers(board))
    assert "pi_throttled" not in seen and "load_1m" in seen
    assert len(warnings) == 1 and "observer throttle" in warnings[0]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({}, {}, None),
        ({"core_throttle_count": 3}, {"core_throttle_count": 3}, None),
        ({"core_throttle_count": 3}, {"core_throttle_count": 5}, "cores down 2 times"),
        ({"package_throttle_count": 3}, {"package_throttle_count": 4}, "the package down 1 times"),
        ({"pi_throttled": "0xe0000"}, {"pi_throttled": "0xe0000"}, None),
        ({"pi_throttled": "0x0"}, {"pi_throttled": "0x40000"}, "throttled"),  # it came and went in between
        ({"pi_throttled": "0x50005"}, {"pi_throttled": "0x50005"}, "throttled"),
        ({"pi_throttled": "0x0"}, {"pi_throttled": "0x10001"}, "under-voltage"),
    ],
)
def test_throttling_between_two_observations_is_told(
    before: dict[str, JsonValue], after: dict[str, JsonValue], said: str | None
) -> None:
    told = throttled_between(before, after)
    assert (told is None) if said is None else (told is not None and said in told)


@pytest.mark.parametrize("now", ["2", "4", "50004", "80008"])
@pytest.mark.parametrize("node", ["soc/soc:firmware", "soc@107c000000/soc@107c000000:firmware"])
def test_a_raspberry_pis_own_flag_is_throttling(board: Path, node: str, now: str) -> None:
    flag = write(board, f"sys/devices/platform/{node}/get_throttled", "e0000\n")
    watch = ThrottleWatch([0], board)
    assert not watch()  # it was throttled once, and is not now
    flag.write_text(f"{now}\n")
    assert watch()


def test_the_inventory_names_board_processor_and_system(board: Path) -> None:
    inventory = collect_inventory(root=board)
    assert inventory.cpu == "Raspberry Pi 4 Model B Rev 1.4"
    assert inventory.extra["board"] == "Raspberry Pi 4 Model B Rev 1.4"
    assert inventory.memory_bytes == 3884000 * 1024
    assert inventory.os == "Debian GNU/Linux 12 (bookworm)"
    (runtime,) = [one for one in inventory.runtimes if one.name == "onnxruntime"]
    assert runtime.available
    assert "onnx" in runtime.formats


def plug_in(folder: Path, name: str, code: str, target: str = "Made") -> None:
    """Install a package with one runtime, the way pip would have it lie."""
    write(folder, f"{name}_plugin.py", code)
    write(folder, f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    write(folder, f"{name}-1.0.dist-info/entry_points.txt", f"[pruneloop.runtimes]\n{name} = {name}_plugin:{target}\n")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import a_module_nobody_has", "a_module_nobody_has"),
        ("raise SystemError('mad')", "mad"),
        ("class Made: pass", "no Runtime"),
        ("", "Made"),
    ],
)
def test_a_broken_plug_in_is_named_and_breaks_nothing(board: Path, tmp_path: Path, code: str, reason: str) -> None:
    plug_in(tmp_path / "site", "broken", code)
    inventory = collect_inventory(root=board, environment={"PYTHONPATH": str(tmp_path / "site")})
    runtimes = {runtime.name: runtime for runtime in inventory.runtimes}
    assert runtimes["onnxruntime"].available
    assert not runtimes["broken"].available
    assert reason in runtimes["broken"].detail


def test_a_plug_in_that_kills_its_process_does_not_kill_the_agent(board: Path, tmp_path: Path) -> None:
    plug_in(tmp_path / "site", "deadly", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    inventory = collect_inventory(root=board, environment={"PYTHONPATH": str(tmp_path / "site")})
    told = {runtime.name: runtime for runtime in inventory.runtimes}
    assert told["onnxruntime"].available
    assert not told["deadly"].available and "-9 (a signal)" in told["deadly"].detail


needs_pinning = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no pinning here")


@needs_pinning
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_one_thread_is_pinned_away_from_core_zero_where_all_is_equal(tmp_path: Path) -> None:
    cores = choose_cores(1, CoreLoad(tmp_path), tmp_path)
    assert cores is not None and len(cores) == 1
    assert cores[0] == max(os.sched_getaffinity(0))


@needs_pinning
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_faster_cores_are_preferred(tmp_path: Path) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    write(tmp_path, f"sys/devices/system/cpu/cpu{allowed[0]}/cpufreq/cpuinfo_max_freq", "2400000")
    assert choose_cores(1, CoreLoad(tmp_path), tmp_path) == (allowed[0],)


@needs_pinning
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_a_busy_core_is_avoided(tmp_path: Path) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    busiest = allowed[-1]
    stat_file = write(tmp_path, "proc/stat", "".join(f"cpu{core} 0 0 0 100 0 0 0 0\n" for core in allowed))
    load = CoreLoad(tmp_path)
    stat_file.write_text(
        "".join(
            f"cpu{core} {10 if core == busiest else 0} 0 0 {100 if core == busiest else 110} 0 0 0 0\n"
            for core in allowed
        )
    )
    assert choose_cores(1, load, tmp_path) != (busiest,)


@needs_pinning
def test_as_many_threads_as_cores_are_not_pinned(tmp_path: Path) -> None:
    assert choose_cores(4096, CoreLoad(tmp_path), tmp_path) is None


def identity() -> Identity:
    return Identity(
        server_url="http://server",
        device_id="dev_1",
        name="board",
        device_token=SecretStr("very secret"),
        broker=BrokerAddress(url="redis://u:p@h", key_prefix="prune:dev_1:", queue="device.dev_1"),
    )


def test_an_identity_is_kept_for_its_owner_only(tmp_path: Path) -> None:
    identity().save(tmp_path / "state")
    assert Identity.load(tmp_path / "state") == identity()
    assert stat.S_IMODE((tmp_path / "state" / IDENTITY_FILE).stat().st_mode) == 0o600
    assert "very secret" not in repr(identity())


def test_a_device_that_never_joined_is_told_how(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="pruneloop agent join") as caught:
        Identity.load(tmp_path)
    assert caught.value.code == "not_joined"


def test_a_damaged_identity_is_told_apart_from_none(tmp_path: Path) -> None:
    (tmp_path / IDENTITY_FILE).write_text("{")
    with pytest.raises(Unavailable, match="join again"):
        Identity.load(tmp_path)
