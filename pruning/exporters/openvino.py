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
from pruning.exporters.feeds import feeds_of_ports, in_batches
from pruning.exporters.onnx import RUN_BATCH, OnnxExporter
from pruning.exporters.outputs import ExportFailed, check_outputs, joined
from pruning.signature import Port

DEVICE = "CPU"
INSTALL = "pip install 'pruneloop[openvino]' where builds are made"
NUMBERED = re.compile(r"^[A-Za-z]+_\d+")  # names OpenVINO made up, counted from the process's start


class OpenVinoExporter:
    """Makes and runs ``.openvino`` files, with the inputs and outputs of the ONNX file."""

    format = OPENVINO
    kind = ArtifactKind.OPENVINO

    def require(self) -> None:
        _library()

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
        return joined(list(_run(file, inputs, threads, precision)[1].values()))

    def check(self, file: bytes, inputs: Tensor, outputs: Tensor) -> Mapping[str, np.ndarray]:
        return check_outputs(self.format, *_run(file, inputs, 1, "fp32"), outputs)


def _run(file: bytes, samples: Tensor, threads: int, precision: str) -> tuple[dict[str, np.ndarray], dict[str, Tensor]]:
    """Return what a file was fed and what it gave, by its own names."""
    compiled = _compiled(file, threads, precision)
    ports = [_port(port) for port in compiled.inputs]
    size = (
        None
        if compiled.inputs[0].partial_shape[0].is_dynamic
        else int(compiled.inputs[0].partial_shape[0].get_length())
    )
    feeds = feeds_of_ports(ports, samples)
    request = compiled.create_infer_request()
    parts: dict[str, list[np.ndarray]] = {_name(port): [] for port in compiled.outputs}
    for chunk, count in in_batches(feeds, size or min(RUN_BATCH, len(samples)), is_fixed=size is not None):
        request.infer([chunk[port.name] for port in ports])
        for name, port in zip(parts, compiled.outputs, strict=True):
            parts[name].append(np.array(request.get_tensor(port).data)[:count])
    return feeds, {name: torch.from_numpy(np.concatenate(given)) for name, given in parts.items()}


def _port(port: Any) -> Port:
    sizes = tuple(None if size.is_dynamic else int(size.get_length()) for size in port.partial_shape)
    return Port(_name(port), sizes, torch.from_numpy(np.zeros(1, port.element_type.to_dtype())).dtype)


def _name(port: Any) -> str:
    """Return what the file calls an input or output, as the runtime on a device does."""
    name = str(port.node.friendly_name).partition("/sink_port_")[0]
    return name if name in port.names else str(port.any_name)


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


def _compiled(file: bytes, threads: int, precision: str) -> Any:
    """Return the compiled file, computing as a device that is asked for the precision does."""
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
            return core.compile_model(str(Path(place, XML)), DEVICE, options)
        except BadOpenVinoFile as error:
            raise ExportFailed(error.message) from error
        except RuntimeError as error:
            raise ExportFailed(f"OpenVINO does not run the file: {_first_line(error)}") from error


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
