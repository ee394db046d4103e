"""Draining: how a worker's main process tells its children to hand their work back and leave.

Celery's warm shutdown waits for the running task, and the task runs in a child that no signal reaches. So the main process
makes a file when it is asked to leave, and the child looks for it between steps.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

DRAIN_VARIABLE = "PRUNELOOP_DRAIN_FILE"
PARENT_VARIABLE = "PRUNELOOP_PARENT_PID"
PR_SET_PDEATHSIG = 1


def arm_drain_file() -> Path:
    """Name a file that does not exist yet and pass its name to the children to come."""
    folder = Path(tempfile.mkdtemp(prefix="pruneloop-drain-"))
    path = folder / "drain"
    os.environ[DRAIN_VARIABLE] = str(path)
    return path


def is_draining() -> bool:
    name = os.environ.get(DRAIN_VARIABLE)
    return name is not None and Path(name).exists()


def touch_on_shutdown(path: Path) -> Any:
    """Return a handler for Celery's ``worker_shutting_down`` signal; keep a reference to it."""

    def on_shutting_down(**_: object) -> None:
        path.touch()

    return on_shutting_down


def die_with_parent() -> None:
    """Be asked to leave when the supervisor dies, however it dies (Linux; elsewhere the next start clears up)."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):  # it died before we asked
        os.kill(os.getpid(), signal.SIGTERM)
