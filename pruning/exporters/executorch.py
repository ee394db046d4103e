"""ExecuTorch files (``.pte``): the torch file lowered to XNNPACK in an environment of its own, and run there too.

Its runtime needs torch, so no agent carries it: such files are an export beside what is measured.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from domain.artifact import ArtifactKind
from domain.formats import EXECUTORCH
from domain.ports import Hold
from pruning.exporters.converter import Converter
from pruning.exporters.feeds import feeds_of_ports
from pruning.exporters.litert import CALIBRATION_SAMPLES, as_npz
from pruning.exporters.outputs import by_order, check_outputs, joined
from pruning.exporters.torch_graph import TorchExporter, ports_of
from pruning.signature import Port

CONVERTER = Converter(EXECUTORCH)


class ExecuTorchExporter:
    """Makes and runs ``.pte`` files of the batch they are exported with. A file has no names: inputs and outputs go by order."""

    format = EXECUTORCH
    kind = ArtifactKind.EXECUTORCH

    def __init__(self, converter: Converter = CONVERTER) -> None:
        self._converter = converter

    def require(self) -> None:
        self._converter.require()

    def export(self, model: nn.Module, example: Tensor) -> bytes:
        return self._converted(TorchExporter().export(model, example), "fp32", example, example)

    def in_precision(
        self, file: bytes, precision: str, *, model: nn.Module, example: Tensor, calibration: Tensor, hold: Hold
    ) -> bytes:
        del file
        torch_files = TorchExporter()
        source = torch_files.export(model, example)
        if precision == "fp16":
            source = torch_files.in_precision(
                source, precision, model=model, example=example, calibration=calibration, hold=hold
            )
        with hold():
            return self._converted(source, precision, example, calibration[:CALIBRATION_SAMPLES])

    def run(self, file: bytes, inputs: Tensor, *, threads: int, precision: str = "fp32") -> Tensor:
        del precision  # the file's own nodes say it
        return joined(self._run(file, inputs, threads)[1])

    def check(self, file: bytes, inputs: Tensor, outputs: Tensor) -> Mapping[str, np.ndarray]:
        feeds, given = self._run(file, inputs, 1)
        return check_outputs(self.format, feeds, by_order(given), outputs)

    def _converted(self, source: bytes, precision: str, example: Tensor, calibration: Tensor) -> bytes:
        ports = ports_of(source)
        given = {
            "model.safetensors": source,
            "example.npz": as_npz(feeds_of_ports(ports, example)),
            "calibration.npz": as_npz(feeds_of_ports(ports, calibration)),
        }
        return self._converter.carry_out("convert", given, "model.pte", precision=precision, batch=len(example))

    def _run(self, file: bytes, samples: Tensor, threads: int) -> tuple[dict[str, np.ndarray], list[Tensor]]:
        """Return what a file was fed and what it gave, in order."""
        given = {"model.pte": file}
        told = json.loads(self._converter.carry_out("describe", given, "inputs.json"))
        ports = [Port(name, tuple(shape), getattr(torch, dtype)) for name, shape, dtype in told]
        feeds = feeds_of_ports(ports, samples)
        batch = told[0][1][0]
        filled = {name: _filled(array, batch) for name, array in feeds.items()}
        made = self._converter.carry_out(
            "run",
            {**given, "feeds.npz": as_npz(filled)},
            "outputs.npz",
            threads=threads,
            batch=batch,
            inputs=list(feeds),
        )
        with np.load(io.BytesIO(made), allow_pickle=False) as arrays:
            outputs = [torch.from_numpy(arrays[str(number)][: len(samples)]) for number in range(len(arrays.files))]
        return feeds, outputs


def _filled(array: np.ndarray, batch: int) -> np.ndarray:
    """Return an array of whole batches, the last filled up from the front."""
    whole = -(-len(array) // batch) * batch
    return np.resize(array, (whole, *array.shape[1:]))
