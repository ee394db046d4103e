"""An ARM board that is not there: an aarch64 system in a folder, run by qemu's user emulation, with a fake /sys.

Plumbing and numerics are those of a board; times are not (some hundred times slower, and the emulator's own).
No chroot, no binfmt, no root: a file that exists below the folder is what the emulated process sees in its place, and a program
that it starts is one of this machine. So Python has to be named to it as a script that runs the emulator again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
EMULATOR = "qemu-aarch64-static"
TOOLS = {
    EMULATOR: "qemu-user-static",
    "mmdebstrap": "mmdebstrap",
    "tar": "tar",
}  # program: package of Debian and Ubuntu
SUITE = "bookworm"  # Debian 12, which Raspberry Pi OS of 2023 to 2025 is made of: Python 3.11.2, glibc 2.36
PACKAGES = "python3,libstdc++6,libgomp1,tzdata"
MODEL = "Raspberry Pi 4 Model B Rev 1.4"
AARCH64 = (*(f"manylinux_2_{minor}_aarch64" for minor in (28, 27, 17)), "manylinux2014_aarch64")
# pip evaluates markers for the Python it runs on; redis needs this below 3.11.3.
MARKED = ("async-timeout==5.0.1",)
FULL_KHZ, CAPPED_KHZ = 1_500_000, 600_000
CORE = """processor\t: {core}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""


def missing_tools() -> str:
    """Return what to install, or nothing where all is there."""
    packages = [package for program, package in TOOLS.items() if shutil.which(program) is None]
    return f"emulating an ARM board needs: apt-get install {' '.join(packages)}" if packages else ""


def agent_requirements() -> list[str]:
    """Return what a device installs, as pyproject.toml says it."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["agent"]]


def target_options(python: str, platforms: Sequence[str]) -> list[str]:
    """Return pip's options for wheels of another machine and CPython (``"3.12"``)."""
    abi = f"cp{python.replace('.', '')}"
    options = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    options += [word for name in (abi, "abi3", "none") for word in ("--abi", name)]
    return options + [word for name in platforms for word in ("--platform", name)]


@dataclass(frozen=True)
class EmulatedBoard:
    """The folder ``root`` as an aarch64 machine."""

    root: Path

    @classmethod
    def made(cls, root: Path) -> EmulatedBoard:
        """Fetch a Debian, put the agent's packages into it, and write what a board's kernel says."""
        archive = root.with_suffix(".tar")
        _run(
            "mmdebstrap", "--arch=arm64", "--variant=extract", "--skip=check/qemu", f"--include={PACKAGES}",
            SUITE, str(archive),
        )  # fmt: skip
        root.mkdir()
        _run("tar", "--extract", "--no-same-owner", "--exclude=./dev", "-f", str(archive), "-C", str(root))
        archive.unlink()
        _run(
            sys.executable, "-m", "pip", "install", "--quiet", "--target", str(root / "opt/agent"),
            *target_options("3.11", AARCH64), "-c", str(REPOSITORY / "constraints.txt"), *agent_requirements(), *MARKED,
        )  # fmt: skip
        board = cls(root)
        board._furnish()
        return board

    @property
    def interpreter(self) -> list[str]:
        """The command that runs this board's Python, emulator first."""
        return [EMULATOR, "-cpu", "cortex-a72", "-L", str(self.root), str(self.root / "usr/bin/python3.11")]

    @property
    def python(self) -> str:
        """A script that does the same, for whoever starts ``sys.executable`` (the pool of Celery)."""
        return str(self.root / "usr/bin/python-emulated")

    def environment(self, **settings: str) -> dict[str, str]:
        """Return the environment of a process on the board; ``settings`` become ``PRUNELOOP_AGENT_*``."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PRUNELOOP_", "PYTHON"))}
        return {
            **kept,
            "PYTHONPATH": os.pathsep.join((str(self.root / "opt/agent"), str(REPOSITORY))),
            "PRUNELOOP_AGENT_INTERPRETER": json.dumps(self.interpreter),
            **{f"PRUNELOOP_AGENT_{key.upper()}": value for key, value in settings.items()},
        }

    def set_temperature(self, celsius: float) -> None:
        self._write("sys/class/thermal/thermal_zone0/temp", f"{celsius * 1000:.0f}\n")

    def set_throttled(self, is_throttled: bool) -> None:
        """Raise or clear the firmware's flags (those of the past stay), as hot silicon does."""
        self._write("sys/devices/platform/soc/soc:firmware/get_throttled", "e0006\n" if is_throttled else "e0000\n")

    def set_clock(self, khz: int) -> None:
        for core in range(os.cpu_count() or 1):
            self._write(f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", f"{khz}\n")

    def _furnish(self) -> None:
        cores = range(os.cpu_count() or 1)
        # Also needed by ONNX Runtime, which does not survive an x86 file here.
        cpuinfo = "".join(CORE.format(core=core) for core in cores)
        self._write("proc/cpuinfo", f"{cpuinfo}Hardware\t: BCM2835\nRevision\t: c03114\nModel\t\t: {MODEL}\n")
        self._write("proc/device-tree/model", f"{MODEL}\0")
        self._write("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n")
        for core in cores:
            self._write(f"sys/devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq", f"{FULL_KHZ}\n")
            self._write(f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor", "ondemand\n")
        self.set_temperature(48.3)
        self.set_clock(FULL_KHZ)
        self.set_throttled(False)
        words = [*self.interpreter[:-1], "-0", self.python, self.interpreter[-1]]  # -0: what becomes sys.executable
        self._write(
            "usr/bin/python-emulated", '#!/bin/sh\nexec {} "$@"\n'.format(" ".join(f"'{word}'" for word in words))
        )
        Path(self.python).chmod(0o755)

    def _write(self, place: str, text: str) -> None:
        """Replace a file whole: a reader must never find it empty."""
        path = self.root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(path.name + ".new")
        new.write_text(text)
        new.replace(path)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed ({done.returncode}): {done.stderr[-2000:]}")
