"""Processes found again: a pid file that names the process by its pid *and* its start time, so a reused pid is never trusted."""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path

import psutil


def write_pid_file(path: Path, pid: int) -> None:
    """Note a running process, atomically."""
    text = json.dumps({"pid": pid, "started": psutil.Process(pid).create_time()})
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def find_process(path: Path) -> psutil.Process | None:
    """Return the process a pid file names, if it is the same one and alive."""
    try:
        noted = json.loads(path.read_text())
        process = psutil.Process(int(noted["pid"]))
        is_same = abs(process.create_time() - float(noted["started"])) < 1.0
        if is_same and process.status() != psutil.STATUS_ZOMBIE:
            return process
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None
    return None


def stop_process(process: psutil.Process, *, sig: int, timeout_s: float) -> None:
    """Ask a process to end, then make it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(sig)
        try:
            process.wait(timeout_s)
        except psutil.TimeoutExpired:
            process.kill()
            with contextlib.suppress(psutil.TimeoutExpired):
                process.wait(5)


_started: list[subprocess.Popen[bytes]] = []


def keep(process: subprocess.Popen[bytes]) -> None:
    """Hold on to the handle of a server that is meant to outlive its caller, so that it is not reported as forgotten."""
    _started[:] = [one for one in _started if one.poll() is None]
    _started.append(process)
