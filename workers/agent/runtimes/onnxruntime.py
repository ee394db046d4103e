"""ONNX Runtime on the CPU: the default of every device."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue

from domain.device import RuntimeInfo
from workers.agent.runtimes.base import Array, RuntimeMissing, TensorSpec, UnreadableArtifact

PROVIDER = "CPUExecutionProvider"
LOG_FATAL_ONLY = 4  # a corrupt file is told by the exception; its log line would only repeat it

DTYPES = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64", "tensor(bool)": "bool",
    "tensor(int8)": "int8", "tensor(uint8)": "uint8", "tensor(int16)": "int16", "tensor(uint16)": "uint16",
    "tensor(int32)": "int32", "tensor(uint32)": "uint32", "tensor(int64)": "int64", "tensor(uint64)": "uint64",
}  # fmt: skip

CONFIG = {
    # Threads of one instance may spin while they compute, as in production, but must be off the cores when the next
    # instance's block begins.
    "session.intra_op.allow_spinning": "1",
    "session.force_spinning_stop": "1",
    # The default of a deployment: denormal weights of a pruned file cost there what they cost here.
    "session.set_denormal_as_zero": "0",
}


class OnnxRuntime:
    """Loads ``.onnx`` files with every graph optimisation on."""

    name = "onnxruntime"
    formats = ("onnx",)

    def probe(self) -> RuntimeInfo:
        try:
            ort = _library()
        except RuntimeMissing as error:
            return RuntimeInfo(name=self.name, available=False, formats=self.formats, detail=error.message)
        return RuntimeInfo(
            name=self.name,
            available=True,
            version=ort.__version__,
            formats=self.formats,
            precisions=("fp32", "fp16", "int8"),
            detail=", ".join(ort.get_available_providers()),
        )

    def load(self, path: Path, *, threads: int, precision: str, batch: int) -> OnnxSession:
        ort = _library()
        ort.set_default_logger_severity(LOG_FATAL_ONLY)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = LOG_FATAL_ONLY
        for key, value in CONFIG.items():
            options.add_session_config_entry(key, value)
        try:
            session = ort.InferenceSession(str(path), options, providers=[PROVIDER])
            return OnnxSession(ort, session, threads)
        except Exception as error:  # the library raises a class of its own for each status, with no common root
            raise UnreadableArtifact(f"ONNX Runtime {ort.__version__} does not load the file: {error}") from error


class OnnxSession:
    """A loaded ONNX file; inputs and outputs stay bound, so that a run copies nothing."""

    def __init__(self, ort: Any, session: Any, threads: int) -> None:
        self._ort = ort
        self._session = session
        self._binding = session.io_binding()
        self._run = session.run_with_iobinding
        self._names = [output.name for output in session.get_outputs()]
        self.inputs = tuple(
            TensorSpec(
                entry.name,
                tuple(size if isinstance(size, int) and size > 0 else None for size in entry.shape),
                _dtype(entry.name, entry.type),
            )
            for entry in session.get_inputs()
        )
        self.conditions: Mapping[str, JsonValue] = {
            "runtime": "onnxruntime",
            "runtime_version": str(ort.__version__),
            "provider": ",".join(session.get_providers()),
            "graph_optimization": "all",
            "execution_mode": "sequential",
            "intra_op_threads": threads,
            "inter_op_threads": 1,
            **{key.removeprefix("session."): value for key, value in CONFIG.items()},
        }

    def bind(self, feeds: Mapping[str, Array]) -> None:
        self._binding.clear_binding_inputs()
        self._binding.clear_binding_outputs()
        try:
            for spec in self.inputs:
                array = np.ascontiguousarray(feeds[spec.name], dtype=spec.dtype)
                self._binding.bind_ortvalue_input(spec.name, self._ort.OrtValue.ortvalue_from_numpy(array))
            for name in self._names:
                self._binding.bind_output(name)
        except KeyError as error:
            raise UnreadableArtifact(f"The file wants an input {error} that the check does not hold.") from error
        except Exception as error:  # see load
            raise UnreadableArtifact(f"ONNX Runtime does not take the inputs: {error}") from error

    def run(self) -> None:
        self._run(self._binding)

    def outputs(self) -> dict[str, Array]:
        return dict(zip(self._names, self._binding.copy_outputs_to_cpu(), strict=True))


def _dtype(name: str, kind: str) -> str:
    if kind not in DTYPES:
        raise UnreadableArtifact(f"Input {name} is a {kind}, which cannot be fed from an npz file.")
    return DTYPES[kind]


def _library() -> Any:
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise RuntimeMissing(f"onnxruntime does not import ({error}); pip install onnxruntime") from error
