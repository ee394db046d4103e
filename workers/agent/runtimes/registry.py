"""Which runtimes this device has: the built-in ones, and plug-ins named by the entry-point group ``pruneloop.runtimes``.

A plug-in is a class, or a callable without arguments, that gives a ``Runtime``. One that fails to import is named with its
reason and breaks nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, entry_points

from domain.device import RuntimeInfo
from workers.agent.runtimes.base import Runtime, RuntimeMissing
from workers.agent.runtimes.names import GROUP, REPLAY
from workers.agent.runtimes.onnxruntime import PROVIDERS, OnnxRuntime
from workers.agent.runtimes.openvino import OpenVino

BUILT_IN: dict[str, Callable[[], Runtime]] = {
    **{name: partial(OnnxRuntime, name) for name in PROVIDERS},
    OpenVino.name: OpenVino,
}


@dataclass(frozen=True)
class Runtimes:
    """What was found, and what should have been: name -> reason."""

    found: dict[str, Runtime]
    broken: dict[str, str]

    def probe(self) -> tuple[RuntimeInfo, ...]:
        """Ask each one whether it works; broken plug-ins are listed too."""
        return (
            *(_probed(runtime) for runtime in self.found.values()),
            *(RuntimeInfo(name=name, available=False, detail=reason) for name, reason in self.broken.items()),
        )


def find_runtimes() -> Runtimes:
    """Return every runtime of this device."""
    found: dict[str, Runtime] = {name: make() for name, make in BUILT_IN.items()}
    broken: dict[str, str] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        if entry.name in found or entry.name == REPLAY:
            broken[f"{entry.name} ({entry.value})"] = f"the name {entry.name} is taken; rename the entry point"
            continue
        try:
            found[entry.name] = _made(entry)
        except RuntimeMissing as error:
            broken[entry.name] = error.message
    return Runtimes(found, broken)


def get_runtime(name: str) -> Runtime:
    """Return one runtime, importing no other.

    Raises:
        RuntimeMissing: If there is none of that name or it does not import; says what to install.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]()
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            return _made(entry)
    if name == REPLAY:
        raise RuntimeMissing(
            "This agent measures; the runtime replay is a device of its own: start it with PRUNELOOP_AGENT_REPLAY set.",
            metadata={"runtime": name},
        )
    known = ", ".join(sorted({*BUILT_IN, *(entry.name for entry in entry_points(group=GROUP))}))
    raise RuntimeMissing(
        f"This device has no runtime {name} (it has {known}); install a package with an entry point {GROUP}:{name}.",
        metadata={"runtime": name},
    )


def _probed(runtime: Runtime) -> RuntimeInfo:
    try:
        return runtime.probe()
    except Exception as error:  # a plug-in is foreign code, see _made
        return RuntimeInfo(name=runtime.name, available=False, detail=f"probe failed: {type(error).__name__}: {error}")


def _made(entry: EntryPoint) -> Runtime:
    try:
        runtime = entry.load()()
    except Exception as error:  # a plug-in is foreign code: whatever it throws must not take the agent down
        raise RuntimeMissing(
            f"The plug-in {entry.value} does not import: {type(error).__name__}: {error}. Mend or uninstall it.",
            metadata={"runtime": entry.name},
        ) from error
    if not isinstance(runtime, Runtime):
        raise RuntimeMissing(f"The plug-in {entry.value} is no Runtime: it needs name, formats, probe and load.")
    return runtime
