"""LiteRT files (``.tflite``): the torch file converted by litert-torch in an environment of its own, and run in LiteRT here.

fp16 halves the weights; int8 is a static quantisation by AI Edge Quantizer over calibration samples. Inputs and outputs keep the
names, shapes and types of the model: images stay channels first.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from domain.artifact import ArtifactKind
from domain.errors import Unavailable
from domain.formats import LITERT
from domain.litert_file import BadLiteRtFile, check
from domain.ports import Hold
from pruning.exporters.converter import Converter
from pruning.exporters.feeds import feeds_of_ports, in_batches
from pruning.exporters.outputs import ExportFailed, check_outputs, joined
from pruning.exporters.torch_graph import TorchExporter, ports_of
from pruning.signature import Port

INSTALL = "pip install 'pruneloop[litert]' where builds are made"
CALIBRATION_SAMPLES = 128
CONVERTER = Converter(LITERT)


class LiteRtExporter:
    """Makes and runs ``.tflite`` files of the batch they are exported with."""

    format = LITERT
    kind = ArtifactKind.LITERT

    def __init__(self, converter: Converter = CONVERTER) -> None:
        self._converter = converter

    def require(self) -> None:
        _library()
        self._converter.require()

    def export(self, model: nn.Module, example: Tensor) -> bytes:
        source = TorchExporter().export(model, example)
        feeds = feeds_of_ports(ports_of(source), example)
        made = self._converter.carry_out(
            "convert", {"model.safetensors": source, "example.npz": as_npz(feeds)}, "model.tflite"
        )
        _require_good(made)
        return made

    def in_precision(
        self, file: bytes, precision: str, *, model: nn.Module, example: Tensor, calibration: Tensor, hold: Hold
    ) -> bytes:
        del model
        given = {"model.tflite": file}
        if precision == "int8":
            given["calibration.npz"] = as_npz(
                feeds_of_ports(_ports(_loaded(file, 1)), calibration[:CALIBRATION_SAMPLES])
            )
        with hold():
            made = self._converter.carry_out("quantise", given, "made.tflite", precision=precision, batch=len(example))
        _require_good(made)
        return made

    def run(self, file: bytes, inputs: Tensor, *, threads: int, precision: str = "fp32") -> Tensor:
        del precision  # the file's own types say it
        return joined(list(_run(file, inputs, threads)[1].values()))

    def check(self, file: bytes, inputs: Tensor, outputs: Tensor) -> Mapping[str, np.ndarray]:
        return check_outputs(self.format, *_run(file, inputs, 1), outputs)


def as_npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return arrays as a file without pickles."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _run(file: bytes, samples: Tensor, threads: int) -> tuple[dict[str, np.ndarray], dict[str, Tensor]]:
    """Return what a file was fed and what it gave, by its own names."""
    runner = _loaded(file, threads)
    ports = _ports(runner)
    feeds = feeds_of_ports(ports, samples)
    batch = ports[0].shape[0]
    assert isinstance(batch, int)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in runner.get_output_details()}
    for chunk, count in in_batches(feeds, batch, is_fixed=True):
        for name, array in runner(**chunk).items():
            parts[name].append(np.array(array)[:count])
    return feeds, {name: torch.from_numpy(np.concatenate(given)) for name, given in parts.items()}


def _ports(runner: Any) -> list[Port]:
    """Return the inputs in the file's order, which is the model's."""
    details = sorted(runner.get_input_details().items(), key=lambda item: item[1]["index"])
    return [
        Port(name, tuple(int(size) for size in one["shape"]), torch.from_numpy(np.zeros(1, one["dtype"])).dtype)
        for name, one in details
    ]


def _loaded(file: bytes, threads: int) -> Any:
    """Return the runner of a file's one signature, computing as a device does."""
    library = _library()
    try:
        return library.Interpreter(model_content=file, num_threads=threads).get_signature_runner()
    except (ValueError, RuntimeError) as error:
        raise ExportFailed(f"LiteRT does not load the file: {(str(error).splitlines() or [''])[0]}") from error


def _require_good(file: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix="pruneloop-litert-") as place:
        path = Path(place, "model.tflite")
        path.write_bytes(file)
        try:
            check(path)
        except BadLiteRtFile as error:
            raise ExportFailed(error.message) from error


def _library() -> Any:
    try:
        return import_module("ai_edge_litert.interpreter")
    except ImportError as error:
        raise Unavailable(f"ai-edge-litert does not import ({error}); {INSTALL}", code="exporter_missing") from error
