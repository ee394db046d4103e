"""Which runtimes this device has: the built-in ones, and plug-ins named by the entry-point group ``pruneloop.runtimes``.

A plug-in is a class, or a callable without arguments, that gives a ``Runtime``. One that fails to import is named with its
reason and breaks nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial
from importlib.metadata import EntryPoint, entry_points

from domain.device import RuntimeInfo
from workers.agent.runtimes.base import Runtime, RuntimeMissing
from workers.agent.runtimes.litert import LiteRt
from workers.agent.runtimes.names import GROUP, REPLAY
from workers.agent.runtimes.ncnn import Ncnn
from workers.agent.runtimes.onnxruntime import PROVIDERS, OnnxRuntime
from workers.agent.runtimes.openvino import OpenVino
from workers.agent.runtimes.outside import INSTALL, OUTSIDE

BUILT_IN: dict[str, Callable[[], Runtime]] = {
    **{name: partial(OnnxRuntime, name) for name in PROVIDERS},
    OpenVino.name: OpenVino,
    Ncnn.name: Ncnn,
    LiteRt.name: LiteRt,
}


def probe_each(*, skip: Collection[str] = ()) -> Iterator[tuple[str, Callable[[], RuntimeInfo]]]:
    """Yield every runtime's name, and what asks it whether it works: loading and probing happen when that is called.

    Args:
        skip: Names to leave out: those that took their process down before.
    """
    seen = set()
    for name, make in BUILT_IN.items():
        seen.add(name)
        if name not in skip:
            yield name, partial(_probed, make)
    for entry in (*OUTSIDE, *sorted(entry_points(group=GROUP), key=lambda entry: entry.name)):
        name = f"{entry.name} ({entry.value})" if entry.name in seen or entry.name == REPLAY else entry.name
        if name in skip:
            continue
        if name != entry.name:
            text = f"the name {entry.name} is taken; rename the entry point"
            yield name, partial(RuntimeInfo, name=name, available=False, detail=text)
            continue
        seen.add(name)
        yield name, partial(_probed_entry, entry)


def get_runtime(name: str) -> Runtime:
    """Return one runtime, importing no other.

    Raises:
        RuntimeMissing: If there is none of that name or it does not import; says what to install.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]()
    for entry in (*OUTSIDE, *entry_points(group=GROUP)):
        if entry.name == name:
            return _made(entry)
    if name == REPLAY:
        raise RuntimeMissing(
            "This agent measures; the runtime replay is a device of its own: start it with PRUNELOOP_AGENT_REPLAY set.",
            metadata={"runtime": name},
        )
    known = ", ".join(sorted({*BUILT_IN, *(entry.name for entry in (*OUTSIDE, *entry_points(group=GROUP)))}))
    raise RuntimeMissing(
        f"This device has no runtime {name} (it has {known}); install a package with an entry point {GROUP}:{name}.",
        metadata={"runtime": name},
    )


def _probed(make: Callable[[], Runtime]) -> RuntimeInfo:
    runtime = make()
    try:
        return runtime.probe()
    except Exception as error:  # a plug-in is foreign code, see _made
        return RuntimeInfo(name=runtime.name, available=False, detail=f"probe failed: {type(error).__name__}: {error}")


def _probed_entry(entry: EntryPoint) -> RuntimeInfo:
    try:
        return _probed(partial(_made, entry))
    except RuntimeMissing as error:
        return RuntimeInfo(name=entry.name, available=False, detail=error.message)


def _made(entry: EntryPoint) -> Runtime:
    try:
        runtime = entry.load()()
    except Exception as error:  # a plug-in is foreign code: whatever it throws must not take the agent down
        if entry in OUTSIDE and isinstance(error, ImportError):
            raise RuntimeMissing(INSTALL[entry.name], metadata={"runtime": entry.name}) from error
        raise RuntimeMissing(
            f"The plug-in {entry.value} does not import: {type(error).__name__}: {error}. Mend or uninstall it.",
            metadata={"runtime": entry.name},
        ) from error
    if not isinstance(runtime, Runtime):
        raise RuntimeMissing(f"The plug-in {entry.value} is no Runtime: it needs name, formats, probe and load.")
    return runtime
