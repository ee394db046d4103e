"""Memory of this process: what loading a file added, and a ceiling on what may be asked for."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
SLACK_BYTES = 1 << 30  # address space that is asked for and never touched: thread stacks, arenas


class PeakMemory:
    """Bytes that the code between ``start`` and ``stop`` added at its peak; None where the system does not tell."""

    def __init__(self) -> None:
        self._before_bytes: int | None = None

    def start(self) -> None:
        try:
            CLEAR_REFS.write_text(RESET_PEAK)
            self._before_bytes = _status_bytes("VmRSS")
        except OSError:  # not Linux, or a kernel that does not allow it: peak memory stays unknown
            self._before_bytes = None

    def stop(self) -> int | None:
        if self._before_bytes is None:
            return None
        peak_bytes = _status_bytes("VmHWM")
        return max(0, peak_bytes - self._before_bytes) if peak_bytes is not None else None


def limit_memory(limit_bytes: int) -> None:
    """Let allocations past the limit fail at once; best effort, the parent watches resident memory as well."""
    with suppress(ValueError, OSError):  # the hard limit is lower, or the system has no such limit
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes + SLACK_BYTES, hard))


def _status_bytes(field: str) -> int | None:
    for line in STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return None
