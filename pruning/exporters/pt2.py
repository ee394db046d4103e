"""torch.export archives (``.pt2``): for AOTInductor, torch's own converters, and whoever has torch and no wish for our loader.

An export only. ``torch.export.load`` may unpickle, so no device opens such a file and none may be uploaded (ADR 7): the one that is
opened here was written by this process or lies under its own digest. For what comes from elsewhere take the torch file.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from domain.artifact import ArtifactKind
from domain.formats import PT2, why_not
from domain.ports import Hold
from pruning.exporters.feeds import feeds_of_ports, in_batches
from pruning.exporters.outputs import ExportFailed, check_outputs, joined
from pruning.exporters.torch_graph import RUN_BATCH, traced
from pruning.signature import Port


class Pt2Exporter:
    """Makes and runs ``.pt2`` files with the model's own inputs and outputs, the batch free where the model allows it."""

    format = PT2
    kind = ArtifactKind.PT2

    def require(self) -> None:
        """Nothing beside the builder's own packages is needed."""

    def export(self, model: nn.Module, example: Tensor) -> bytes:
        return _written(model, example, is_half=False)

    def in_precision(
        self, file: bytes, precision: str, *, model: nn.Module, example: Tensor, calibration: Tensor, hold: Hold
    ) -> bytes:
        del file, calibration
        refused = why_not(PT2, precision=precision)
        if refused is not None:
            raise ExportFailed(refused[1], code=refused[0])
        with hold():
            return _written(model, example, is_half=precision == "fp16")

    def run(self, file: bytes, inputs: Tensor, *, threads: int, precision: str = "fp32") -> Tensor:
        del precision  # the file's own nodes say it
        return joined(list(_run(file, inputs, threads)[1].values()))

    def check(self, file: bytes, inputs: Tensor, outputs: Tensor) -> Mapping[str, np.ndarray]:
        return check_outputs(self.format, *_run(file, inputs, 1), outputs)


def _written(model: nn.Module, example: Tensor, *, is_half: bool) -> bytes:
    program, _ = traced(model, example, is_half=is_half)
    program.example_inputs = None  # they would lie in the file as a pickle
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch tells itself of its own deprecations
        torch.export.save(program, buffer)
    return buffer.getvalue()


def _run(file: bytes, samples: Tensor, threads: int) -> tuple[dict[str, np.ndarray], dict[str, Tensor]]:
    """Return what a file was fed and what it gave, by the names of the traced program."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(io.BytesIO(file))
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    ports = [
        Port(name, tuple(size if isinstance(size, int) else None for size in values[name].shape), values[name].dtype)
        for name in program.graph_signature.user_inputs
    ]
    feeds = feeds_of_ports(ports, samples)
    module, size = program.module(), ports[0].shape[0]
    parts: list[list[Tensor]] = []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for chunk, count in in_batches(feeds, size if isinstance(size, int) else RUN_BATCH, is_fixed=size is not None):
            with torch.inference_mode():
                given = module(*(torch.from_numpy(chunk[port.name]) for port in ports))
            outputs = given if isinstance(given, (tuple, list)) else (given,)
            parts.append([tensor[:count].clone() for tensor in outputs])
    finally:
        torch.set_num_threads(before)
    made = [torch.cat(given) for given in zip(*parts, strict=True)]
    names = ["output"] if len(made) == 1 else [f"output_{number}" for number in range(len(made))]
    return feeds, dict(zip(names, made, strict=True))
