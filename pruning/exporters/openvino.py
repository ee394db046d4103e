"""OpenVINO files: the ONNX file as OpenVINO reads it, written as its own IR, and run in OpenVINO.

fp16 weights are stored in half precision; layers are computed so where the CPU can. int8 comes from the int8 ONNX file: its
quantised nodes become OpenVINO's, so both formats hold the same numbers and no second quantiser is needed.
"""

from __future__ import annotations

import re
import sys
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
from domain.formats import OPENVINO
from domain.openvino_file import WEIGHTS, XML, BadOpenVinoFile, pack, unpack
from domain.ports import Hold
from pruning.exporters.onnx import OnnxExporter
from pruning.exporters.outputs import ExportFailed, check_outputs

DEVICE = "CPU"
INSTALL = "pip install 'pruneloop[openvino]' where builds are made"
NUMBERED = re.compile(r"^[A-Za-z]+_\d+")  # names OpenVINO made up, counted from the process's start


class OpenVinoExporter:
    """Makes and runs ``.openvino`` files, with the inputs and outputs of the ONNX file."""

    format = OPENVINO
    kind = ArtifactKind.OPENVINO

    def export(self, model: nn.Module, example: Tensor) -> bytes:
        return _converted(OnnxExporter().export(model, example), is_half=False)

    def in_precision(
        self, file: bytes, precision: str, *, model: nn.Module, example: Tensor, calibration: Tensor, hold: Hold
    ) -> bytes:
        del file
        onnx = OnnxExporter()
        whole = onnx.export(model, example)
        if precision == "fp16":
            with hold():
                return _converted(whole, is_half=True)
        made = onnx.in_precision(whole, precision, model=model, example=example, calibration=calibration, hold=hold)
        return _converted(made, is_half=False)

    def run(self, file: bytes, inputs: Tensor, *, threads: int, precision: str = "fp32") -> Tensor:
        request, port = _compiled(file, threads, precision)
        batch = int(port.shape[0])
        values = inputs.float().cpu().numpy()
        outputs = []
        for start in range(0, len(values), batch):
            chunk = values[start : start + batch]
            filled = chunk if len(chunk) == batch else np.resize(chunk, (batch, *chunk.shape[1:]))
            given = request.infer([np.ascontiguousarray(filled)])
            outputs.append(np.array(given[0])[: len(chunk)])
        return torch.from_numpy(np.concatenate(outputs))

    def check(self, file: bytes, inputs: Tensor, outputs: Tensor) -> Mapping[str, np.ndarray]:
        return check_outputs(self.format, self.run(file, inputs, threads=1), inputs, outputs)


def _converted(onnx_file: bytes, *, is_half: bool) -> bytes:
    library = _library()
    try:
        model = library.Core().read_model(onnx_file)
        for number, node in enumerate(model.get_ordered_ops()):
            if NUMBERED.match(node.friendly_name):
                node.friendly_name = f"{node.get_type_name()}.{number}"  # equal models give equal files
        with tempfile.TemporaryDirectory(prefix="pruneloop-openvino-") as place:
            library.save_model(model, str(Path(place, XML)), compress_to_fp16=is_half)
            return pack(Path(place, XML).read_bytes(), Path(place, WEIGHTS).read_bytes())
    except RuntimeError as error:  # what OpenVINO raises for everything
        raise ExportFailed(f"OpenVINO does not take the model: {_first_line(error)}") from error
    except BadOpenVinoFile as error:
        raise ExportFailed(error.message) from error


def _compiled(file: bytes, threads: int, precision: str) -> tuple[Any, Any]:
    """Return (request, its input), computing as a device that is asked for the precision does."""
    library = _library()
    core = library.Core()
    is_half = precision == "fp16" and "FP16" in core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f16" if is_half else "f32",
        "ENABLE_MMAP": False,  # the folder is gone before the file is run
        "ENABLE_CPU_PINNING": False,
    }
    with tempfile.TemporaryDirectory(prefix="pruneloop-openvino-") as place:
        try:
            unpack(file, Path(place))
            compiled = core.compile_model(str(Path(place, XML)), DEVICE, options)
        except BadOpenVinoFile as error:
            raise ExportFailed(error.message) from error
        except RuntimeError as error:
            raise ExportFailed(f"OpenVINO does not run the file: {_first_line(error)}") from error
    return compiled.create_infer_request(), compiled.inputs[0]


def _first_line(error: Exception) -> str:
    """Return what an OpenVINO error says, less the places in its own source it came through."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ([line for line in lines if not line.startswith("Exception from")] or [type(error).__name__])[0][:400]


def _library() -> Any:
    # Importing OpenVINO tells its makers over the network; where that package cannot be imported it tells nobody.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # None is how Python bars an import
    try:
        return import_module("openvino")
    except ImportError as error:
        raise Unavailable(f"openvino does not import ({error}); {INSTALL}", code="exporter_missing") from error
