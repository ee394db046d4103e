"""Exporters: a pruned module becomes an artifact of a format, checked against the module before anybody measures it.

Third parties add formats by entry points of the group ``pruneloop.exporters``: a callable without parameters that returns an
``Exporter``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from torch import Tensor, nn

from domain.artifact import ArtifactKind
from domain.errors import PruneloopError
from domain.ports import Hold
from pruning.exporters.executorch import ExecuTorchExporter
from pruning.exporters.litert import LiteRtExporter
from pruning.exporters.ncnn import NcnnExporter
from pruning.exporters.onnx import OnnxExporter
from pruning.exporters.openvino import OpenVinoExporter
from pruning.exporters.outputs import ExportFailed
from pruning.exporters.pt2 import Pt2Exporter
from pruning.exporters.torch_graph import TorchExporter
from pruning.plugins import Plugin, Registry

__all__ = ["EXPORTERS", "ExportFailed", "Exporter", "exporter_names", "exporter_plugins", "make_exporter"]


class Exporter(Protocol):
    """Makes and runs files of one format; ``domain.formats`` says what a built-in one can hold."""

    format: str
    kind: ArtifactKind

    def require(self) -> None:
        """Say whether files can be made here, before any work is done.

        Raises:
            Unavailable: ``exporter_missing``, with what to install.
        """
        ...

    def export(self, model: nn.Module, example: Tensor) -> bytes:
        """Return the file of a model in eval mode on the CPU, for inputs of exactly the example's shape.

        Raises:
            ExportFailed: Where the model cannot be exported, or the file is not valid.
        """
        ...

    def in_precision(
        self, file: bytes, precision: str, *, model: nn.Module, example: Tensor, calibration: Tensor, hold: Hold
    ) -> bytes:
        """Return an fp32 file in another precision; ``model`` and ``example`` are what it was exported from.

        Raises:
            Invalid, ExportFailed: Where it cannot be.
        """
        ...

    def run(self, file: bytes, inputs: Tensor, *, threads: int, precision: str = "fp32") -> Tensor:
        """Run a file in its runtime on inputs ``(N, ...)``, in batches of its own size; returns ``(N, values)``: all outputs."""
        ...

    def check(self, file: bytes, inputs: Tensor, outputs: Tensor) -> Mapping[str, np.ndarray]:
        """Run a file on one batch, compare with ``outputs`` ``(N, values)``, and return ``input_<name>``, ``output_<name>``.

        Raises:
            ExportFailed: Where the outputs differ from the module's.
        """
        ...


EXPORTERS: Registry[Exporter] = Registry(
    "pruneloop.exporters",
    "exporter",
    "exports",
    {
        "executorch": ExecuTorchExporter,
        "litert": LiteRtExporter,
        "ncnn": NcnnExporter,
        "onnx": OnnxExporter,
        "openvino": OpenVinoExporter,
        "pt2": Pt2Exporter,
        "torch": TorchExporter,
    },
)


def exporter_names() -> tuple[str, ...]:
    """Return the formats that can be made here, sorted."""
    return EXPORTERS.names()


def exporter_plugins() -> tuple[Plugin, ...]:
    """Return every format with its source, and the reason where a plug-in does not import."""
    return EXPORTERS.plugins()


def make_exporter(name: str, registry: Registry[Exporter] = EXPORTERS) -> Exporter:
    """Return the exporter of a format.

    Raises:
        Invalid: ``unknown_exporter`` or ``broken_plugin``.
    """
    made = registry.factory(name)()
    if not made.format:
        raise PruneloopError(f"The exporter {name!r} names no format; mend the plug-in.", code="broken_plugin")
    return made
