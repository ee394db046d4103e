"""torch.export archives (``.pt2``): for AOTInductor, torch's own converters, and whoever has torch and no wish for our loader.

An export only. ``torch.export.load`` may unpickle, so no device opens such a file and none may be uploaded (ADR 7): the one that is
opened here was written by this process or lies under its own digest. For what comes from elsewhere take the torch file.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from torch import Tensor, nn

from domain.artifact import ArtifactKind
from domain.formats import PT2
from pruning.exporters.feeds import feeds_of_ports
from pruning.exporters.outputs import by_order
from pruning.exporters.torch_graph import TracedExporter, run_module, traced
from pruning.signature import Port


class Pt2Exporter(TracedExporter):
    """Makes and runs ``.pt2`` files with the model's own inputs and outputs, the batch free where the model allows it."""

    format = PT2
    kind = ArtifactKind.PT2

    def _written(self, model: nn.Module, example: Tensor, *, is_half: bool) -> bytes:
        program, _ = traced(model, example, is_half=is_half)
        program.example_inputs = None  # they would lie in the file as a pickle
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch tells itself of its own deprecations
            torch.export.save(program, buffer)
        return buffer.getvalue()

    def _run(self, file: bytes, samples: Tensor, threads: int) -> tuple[dict[str, np.ndarray], dict[str, Tensor]]:
        """Return what a file was fed and what it gave; inputs have the names of the traced program, outputs have none."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(io.BytesIO(file))
        values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
        ports = [
            Port(
                name, tuple(size if isinstance(size, int) else None for size in values[name].shape), values[name].dtype
            )
            for name in program.graph_signature.user_inputs
        ]
        feeds = feeds_of_ports(ports, samples)
        batch = ports[0].shape[0]
        made = run_module(program.module(), feeds, batch if isinstance(batch, int) else None, threads)
        return feeds, by_order(made)
