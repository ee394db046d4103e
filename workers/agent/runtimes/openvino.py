"""OpenVINO on the CPU; reads ONNX files as they are, and its own IR. Installed by the extra ``openvino``."""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue

from domain.device import RuntimeInfo
from domain.formats import READ_BY
from domain.openvino_file import XML, BadOpenVinoFile, unpack
from workers.agent.runtimes.base import Array, RuntimeMissing, TensorSpec, UnreadableArtifact

DEVICE = "CPU"
ZIP = b"PK\x03\x04"
INSTALL = "pip install 'pruneloop[openvino]'"

# What floating-point layers are computed in. Left alone, a CPU with bfloat16 units computes fp32 files in bfloat16: another
# model than the one that was asked for. An int8 file says by its own QDQ nodes what is computed in int8.
COMPUTED_IN = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}
CAPABILITY = {"f16": "FP16", "bf16": "BF16"}


class OpenVino:
    """Loads ``.onnx`` and ``.openvino`` files, each compiled for the batch it is timed at, as one stream of so many threads."""

    name = "openvino"
    formats = READ_BY["openvino"]

    def probe(self) -> RuntimeInfo:
        try:
            library = _library()
            core = library.Core()
            able = _capabilities(core)
            cpu = str(core.get_property(DEVICE, "FULL_DEVICE_NAME"))
        except RuntimeMissing as error:
            return RuntimeInfo(name=self.name, available=False, formats=self.formats, detail=error.message)
        except Exception as error:  # OpenVINO raises RuntimeError for whatever a plug-in of its own cannot do
            detail = f"openvino imports and finds no CPU: {_first_line(error)}; {INSTALL} --force-reinstall"
            return RuntimeInfo(name=self.name, available=False, formats=self.formats, detail=detail)
        precisions = ("fp32", "fp16", "int8", *(("bf16",) if "BF16" in able else ()))
        note = "" if "FP16" in able else "; fp16 files are computed in fp32 here"
        return RuntimeInfo(
            name=self.name,
            available=True,
            version=_version(library),
            formats=self.formats,
            precisions=precisions,
            detail=f"{cpu}: {', '.join(sorted(able))}{note}",
        )

    def load(self, path: Path, *, threads: int, precision: str, batch: int) -> OpenVinoSession:
        library = _library()
        core = library.Core()
        wanted = COMPUTED_IN.get(precision, "f32")
        if wanted in CAPABILITY and CAPABILITY[wanted] not in _capabilities(core):
            wanted = "f32"
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": wanted,
            # The measuring process is pinned from outside, and threads of several sessions must not be nailed to one core.
            "ENABLE_CPU_PINNING": False,
            "ENABLE_MMAP": False,  # an IR is unpacked into a folder that is gone by the time it runs
            "ENABLE_HYPER_THREADING": True,
        }
        try:
            model = _read(core, path)
            is_fixed = _fix_shapes(model, batch)
            compiled = core.compile_model(model, DEVICE, options)
            return OpenVinoSession(library, compiled, is_fixed=is_fixed)
        except UnreadableArtifact:
            raise
        except Exception as error:  # OpenVINO raises RuntimeError for everything
            raise UnreadableArtifact(
                f"OpenVINO {_version(library)} does not load the file: {_first_line(error)}"
            ) from error


class OpenVinoSession:
    """A compiled file; inputs are shared with ours and outputs stay where they are, so that a run copies nothing."""

    def __init__(self, library: Any, compiled: Any, *, is_fixed: bool) -> None:
        self._library = library
        self._request = compiled.create_infer_request()
        self._run = self._request.infer
        self._outputs = {_name(port): port for port in compiled.outputs}
        self._ports = {_name(port): port for port in compiled.inputs}
        self._fed: list[Array] = []  # the tensors point into these
        self.inputs = tuple(
            TensorSpec(
                name,
                tuple(None if size.is_dynamic else int(size.get_length()) for size in port.partial_shape),
                np.dtype(port.element_type.to_dtype()).name,
            )
            for name, port in self._ports.items()
        )
        read = compiled.get_property
        self.conditions: Mapping[str, JsonValue] = {
            "runtime": OpenVino.name,
            "runtime_version": _version(library),
            "provider": ",".join(read("EXECUTION_DEVICES")),
            "performance_hint": "latency",
            "streams": int(read("NUM_STREAMS")),
            "inference_threads": int(read("INFERENCE_NUM_THREADS")),
            "computed_in": str(read("INFERENCE_PRECISION_HINT").get_type_name()),
            "cpu_pinning": bool(read("ENABLE_CPU_PINNING")),
            "denormals_as_zero": bool(read("CPU_DENORMALS_OPTIMIZATION")),
            "shapes": "fixed" if is_fixed else "free",
        }

    def bind(self, feeds: Mapping[str, Array]) -> None:
        fed = []
        try:
            for spec in self.inputs:
                array = np.ascontiguousarray(feeds[spec.name], dtype=spec.dtype)
                self._request.set_tensor(self._ports[spec.name], self._library.Tensor(array, shared_memory=True))
                fed.append(array)
        except KeyError as error:
            raise UnreadableArtifact(f"The file wants an input {error} that the check does not hold.") from error
        except Exception as error:  # see load
            raise UnreadableArtifact(f"OpenVINO does not take the inputs: {_first_line(error)}") from error
        self._fed = fed

    def run(self) -> None:
        self._run()

    def outputs(self) -> dict[str, Array]:
        return {name: np.array(self._request.get_tensor(port).data) for name, port in self._outputs.items()}


def _read(core: Any, path: Path) -> Any:
    """Return the model of a file, whatever it is called: an IR's two files come in a zip, which no ONNX file is."""
    with path.open("rb") as file:
        if file.read(len(ZIP)) != ZIP:
            return core.read_model(path)
    with tempfile.TemporaryDirectory(prefix="pruneloop-openvino-") as folder:
        try:
            unpack(path, Path(folder))
        except BadOpenVinoFile as error:
            raise UnreadableArtifact(error.message) from error
        return core.read_model(Path(folder, XML))


def _fix_shapes(model: Any, batch: int) -> bool:
    """Give a free batch its size before compiling, as a deployment would; a file that resists keeps its free shapes.

    Returns:
        Whether every shape of every input is fixed now.
    """
    shapes = {_name(port): port.partial_shape for port in model.inputs}
    free = {name: shape for name, shape in shapes.items() if shape.is_dynamic}
    if not free:
        return True
    wanted = {}
    for name, shape in free.items():
        sizes = [None if size.is_dynamic else int(size.get_length()) for size in shape]
        if None in sizes[1:]:
            return False  # only the batch is ours to choose
        wanted[name] = [batch, *sizes[1:]]
    try:
        model.reshape(wanted)
    except RuntimeError:
        model.reshape(dict(free))
        return False
    return True


def _name(port: Any) -> str:
    """Return what the file calls an input or output: a compiled one also goes by the names of casts that were folded away."""
    name = str(port.node.friendly_name).partition("/sink_port_")[0]
    return name if name in port.names else str(port.any_name)


def _capabilities(core: Any) -> frozenset[str]:
    return frozenset(core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"))


def _version(library: Any) -> str:
    return str(library.__version__).partition("-")[0]


def _first_line(error: Exception) -> str:
    """Return what an OpenVINO error says, less the places in its own source it came through."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith("Exception from")]
    return (told or lines or [type(error).__name__])[0][:400]


def _library() -> Any:
    # Importing OpenVINO tells its makers over the network, from a thread beside the measurement. Where that package cannot be
    # imported it uses a stub of its own and tells nobody.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # None is how Python bars an import
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise RuntimeMissing(f"openvino does not import ({error}); {INSTALL}") from error
