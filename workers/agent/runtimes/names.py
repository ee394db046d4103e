"""The names a job may ask for as a runtime, without importing one: what is checked at the API's door.

A name here says that an agent knows how, not that any device can: a job waits for a device that has it, and is told so.
"""

from __future__ import annotations

from importlib.metadata import entry_points

GROUP = "pruneloop.runtimes"
REPLAY = "replay"  # a device that plays measurements back instead of making them, see workers/agent/replay
BUILT_IN_RUNTIMES = (
    "litert", "ncnn", "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-xnnpack", "openvino",
)  # fmt: skip
TORCH_RUNTIMES = ("torch", "torch-compile", "torch-compile-cuda", "torch-cuda")  # see workers/torch_runtime.py


def known_runtimes() -> tuple[str, ...]:
    """Return the runtimes every agent knows, replay, and the plug-ins installed here."""
    return tuple(
        sorted({*BUILT_IN_RUNTIMES, *TORCH_RUNTIMES, REPLAY, *(entry.name for entry in entry_points(group=GROUP))})
    )
