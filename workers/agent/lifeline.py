"""Ending with the parent, however the parent ends (Linux; elsewhere it is found out by other means)."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PARENT_VARIABLE = "PRUNELOOP_PARENT_PID"
PR_SET_PDEATHSIG = 1


def die_with_parent(signum: signal.Signals) -> None:
    """Be sent ``signum`` when the process that started us is gone."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signum, 0, 0, 0)


def leave_with_supervisor() -> None:
    """Drain when the supervisor named in the environment dies, if there is one."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None:
        return
    die_with_parent(signal.SIGTERM)
    if os.getppid() != int(parent):  # it died before we asked
        os.kill(os.getpid(), signal.SIGTERM)
