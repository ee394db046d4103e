"""A device that plays back: what it measures with, and what it says of itself."""

from __future__ import annotations

from pathlib import Path

from domain.device import RuntimeInfo
from domain.ports import Runner
from workers.agent.replay.recording import Recording, RecordingUnreadable
from workers.agent.replay.runner import ReplayRunner
from workers.agent.replay.synthetic import SyntheticRunner
from workers.agent.runtimes.names import REPLAY

SYNTHETIC = "synthetic"
VERSION = "1"
FORMATS = ("onnx",)
PRECISIONS: tuple[str, ...] = ("fp32", "fp16", "int8")


def make_replay(source: str) -> Runner:
    """Return the runner of a recording's path, or of ``synthetic``."""
    return SyntheticRunner() if source == SYNTHETIC else ReplayRunner(Path(source))


def describe_replay(source: str) -> RuntimeInfo:
    """Return the runtime as an inventory lists it; a recording that cannot be read makes it unavailable."""
    if source == SYNTHETIC:
        detail, precisions = "synthetic: latencies computed from the file, for tests of the search", PRECISIONS
    else:
        try:
            passes = Recording.read(Path(source)).passes
        except RecordingUnreadable as error:
            detail = f"{error.message} Set PRUNELOOP_AGENT_REPLAY to a recording, or to `{SYNTHETIC}`."
            return RuntimeInfo(name=REPLAY, available=False, formats=FORMATS, detail=detail)
        runtimes = ", ".join(sorted({one.runtime for one in passes}))
        precisions = tuple(sorted({one.precision for one in passes}))
        detail = f"{len(passes)} recorded passes of {runtimes or 'nothing'}"
    return RuntimeInfo(
        name=REPLAY, available=True, version=VERSION, formats=FORMATS, precisions=precisions, detail=detail
    )
