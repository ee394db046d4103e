"""Which plug-ins are installed on this server, and which do not import.

Imported in a child process: somebody else's code, and torch with it, stays out of the API.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points

from api.schemas.plugins import PluginView

GROUPS = ("pruneloop.models", "pruneloop.datasets", "pruneloop.metrics", "pruneloop.exporters", "pruneloop.runtimes")
TIMEOUT_S = 60.0
KEPT_S = 300.0


class InstalledPlugins:
    """Every installed plug-in with the reason where it does not import; asked again after five minutes."""

    def __init__(self) -> None:
        self._known: tuple[PluginView, ...] = ()
        self._asked_at: float | None = None

    def __call__(self) -> Sequence[PluginView]:
        if self._asked_at is None or time.monotonic() - self._asked_at > KEPT_S:
            self._known = probe()
            self._asked_at = time.monotonic()
        return self._known


def probe(timeout_s: float = TIMEOUT_S) -> tuple[PluginView, ...]:
    """Import every plug-in in a child process and return what came of it.

    Args:
        timeout_s: Then the child is killed, and every plug-in is listed with that as its error.
    """
    found = [(group, entry) for group in GROUPS for entry in entry_points(group=group)]
    if not found:
        return ()
    try:
        child = subprocess.run(
            [sys.executable, "-m", "api.plugin_probe"], capture_output=True, timeout=timeout_s, check=True
        )
        # A plug-in may print while it is imported: the answer is the last line.
        errors = json.loads(child.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError) as error:
        reason = f"not known: importing the plug-ins broke a process of its own ({type(error).__name__})"
        errors = {f"{group}:{entry.name}": reason for group, entry in found}
    return tuple(
        PluginView(
            group=group,
            name=entry.name,
            source=_source(entry),
            error=errors.get(f"{group}:{entry.name}", "not imported"),
        )
        for group, entry in found
    )


def import_all() -> dict[str, str | None]:
    """Import every plug-in here; return ``group:name`` -> why it failed, or None."""
    return {f"{group}:{entry.name}": _import(entry) for group in GROUPS for entry in entry_points(group=group)}


def _import(entry: EntryPoint) -> str | None:
    try:
        entry.load()
    except (
        Exception,
        SystemExit,
    ) as error:  # A boundary: somebody else's import may raise anything, in this child only.
        return f"{type(error).__name__}: {error}"
    return None


def _source(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.value


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(import_all()) + "\n")
