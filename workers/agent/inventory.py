"""What this device is: processor, memory, system, runtimes.

As ``python -m workers.agent.inventory`` it prints the runtimes, probed in that process.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
from pydantic import JsonValue, TypeAdapter, ValidationError

from domain.device import Inventory, RuntimeInfo
from workers.agent.child import child_environment
from workers.agent.runtimes.registry import find_runtimes

RUNTIMES: TypeAdapter[tuple[RuntimeInfo, ...]] = TypeAdapter(tuple[RuntimeInfo, ...])
PROBE_TIMEOUT_S = 120.0
CPU_NAMES = ("model name", "Model", "Hardware", "Processor")  # x86; then what ARM kernels say, best first
BOARD = "proc/device-tree/model"


def collect_inventory(
    *,
    interpreter: Sequence[str] = (sys.executable,),
    root: Path = Path("/"),
    environment: Mapping[str, str] | None = None,
    runtimes: tuple[RuntimeInfo, ...] | None = None,
) -> Inventory:
    """Return what an agent reports at start.

    ``runtimes`` are probed where they are not given, in a process of their own: a broken one may crash.
    """
    board = _text(root / BOARD).rstrip("\0\n")
    extra: dict[str, JsonValue] = {"board": board} if board else {}
    return Inventory(
        hostname=platform.node() or "unknown",
        machine=platform.machine() or "unknown",
        cpu=_cpu(root) or board or platform.processor() or "unknown",
        cores=os.cpu_count() or 1,
        memory_bytes=_memory_bytes(root),
        os=_os_name(root),
        kernel=platform.release(),
        python=platform.python_version(),
        agent_version=agent_version(),
        runtimes=probe_runtimes(interpreter=interpreter, environment=environment) if runtimes is None else runtimes,
        extra=extra,
    )


def probe_runtimes(
    *, interpreter: Sequence[str] = (sys.executable,), environment: Mapping[str, str] | None = None
) -> tuple[RuntimeInfo, ...]:
    """Ask every runtime, in another process, whether it works. Never raises."""
    try:
        done = subprocess.run(
            [*interpreter, "-P", "-m", "workers.agent.inventory"],
            capture_output=True,
            env=child_environment(environment or {}),
            cwd="/",
            stdin=subprocess.DEVNULL,
            timeout=PROBE_TIMEOUT_S,
            check=True,
        )
        return RUNTIMES.validate_json(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValidationError, IndexError) as error:
        detail = f"asking the runtimes failed: {error}; uninstall the plug-in that was added last"
        return (RuntimeInfo(name="onnxruntime", available=False, detail=detail),)


def agent_version() -> str:
    try:
        return version("pruneloop")
    except PackageNotFoundError:  # run from a checkout or an image that holds the folders only
        return "unknown"


def _cpu(root: Path) -> str:
    fields: dict[str, str] = {}
    for line in _text(root / "proc/cpuinfo").splitlines():
        key, separator, value = line.partition(":")
        if separator:
            fields.setdefault(key.strip(), value.strip())
    return next((fields[name] for name in CPU_NAMES if fields.get(name)), "")


def _memory_bytes(root: Path) -> int:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return int(psutil.virtual_memory().total)


def _os_name(root: Path) -> str:
    for line in _text(root / "etc/os-release").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip().strip('"')
    return f"{platform.system()} {platform.release()}"


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    sys.stdout.write(RUNTIMES.dump_json(find_runtimes().probe()).decode() + "\n")
