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
from pydantic import JsonValue, ValidationError

from domain.device import Inventory, RuntimeInfo
from workers.agent.child import child_environment
from workers.agent.runtimes.registry import probe_each

PROBE_TIMEOUT_S = 120.0
# How a line of the probing process begins; runtimes print what they like in between.
ASKING, TOLD = b"pruneloop-asking", b"pruneloop-told"
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
    """Ask every runtime, in another process, whether it works. Never raises.

    One that takes that process down is named with how it ended; the others are asked again without it.
    """
    fatal: dict[str, RuntimeInfo] = {}
    while True:
        found, asked, ended = _ask(interpreter, child_environment(environment or {}), tuple(fatal))
        if ended is None:
            return (*found, *fatal.values())
        if asked is None or asked in fatal:
            detail = f"asking the runtimes failed: {ended}; uninstall the plug-in that was added last"
            return (RuntimeInfo(name="onnxruntime", available=False, detail=detail), *fatal.values())
        detail = f"asking whether it works failed: {ended}; mend or uninstall it"
        fatal[asked] = RuntimeInfo(name=asked, available=False, detail=detail)


def _ask(
    interpreter: Sequence[str], environment: Mapping[str, str], skip: Sequence[str]
) -> tuple[list[RuntimeInfo], str | None, str | None]:
    """Return what was told, the runtime asked last where there was no answer, and how the process ended unless well."""
    command = [*interpreter, "-P", "-m", "workers.agent.inventory", *skip]
    ended: str | None = None
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            env=dict(environment),
            cwd="/",
            stdin=subprocess.DEVNULL,
            timeout=PROBE_TIMEOUT_S,
        )
        output = done.stdout
        if done.returncode:
            ended = f"its process ended with {done.returncode}" + (" (a signal)" if done.returncode < 0 else "")
    except subprocess.TimeoutExpired as error:
        output, ended = error.stdout or b"", f"no answer within {PROBE_TIMEOUT_S:.0f} s"
    except OSError as error:
        return [], None, str(error)
    found, asked = [], None
    for line in output.splitlines():
        kind, _, text = line.partition(b" ")
        try:
            if kind == ASKING:
                asked = text.decode()
            elif kind == TOLD:
                found.append(RuntimeInfo.model_validate_json(text))
                asked = None
        except (ValidationError, UnicodeDecodeError) as error:
            return found, asked, str(error)
    return found, asked, ended


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


def _main() -> None:
    def tell(kind: bytes, text: str) -> None:
        sys.stdout.buffer.write(kind + b" " + text.encode() + b"\n")
        sys.stdout.buffer.flush()  # what comes next may be this process's last act

    for name, probe in probe_each(skip=sys.argv[1:]):
        tell(ASKING, name)
        tell(TOLD, probe().model_dump_json())


if __name__ == "__main__":
    _main()
