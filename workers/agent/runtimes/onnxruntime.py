"""ONNX Runtime: on the CPU, the default of every device, and on the providers that need another build of it.

A runtime's name decides the provider. Where it does not start, ONNX Runtime falls back to the CPU without a word: that is
refused here, both when asked whether it works and when a file is loaded.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue

from domain.device import RuntimeInfo
from workers.agent.runtimes.base import Array, RuntimeMissing, TensorSpec, UnreadableArtifact

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
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
RECORD_NODES = {"session.record_ep_graph_assignment_info": "1"}  # which provider got how many nodes

# y = -x on one float, opset 13: the smallest file that makes a provider start.
PROBE_FILE = bytes.fromhex(
    "08083a320a0b0a017812017922034e65671201675a0f0a0178120a0a08080112040a020801"
    "620f0a0179120a0a08080112040a02080142040a00100d"
)


@dataclass(frozen=True)
class Provider:
    """An execution provider: its name, those it may hand nodes on to, where tensors lie, and what to install."""

    name: str
    then: tuple[str, ...] = ()
    memory: str = "cpu"
    install: str = "pip install onnxruntime"

    def options(self, name: str, *, threads: int, precision: str) -> dict[str, str]:
        """Return the options of one of the providers, those that change speed said aloud."""
        if name == CUDA:
            # An fp32 file is computed in fp32; the library's own default is TF32, which keeps ten bits of a mantissa.
            return {"device_id": "0", "use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"}
        if name == "TensorrtExecutionProvider":
            return {
                "device_id": "0",
                "trt_fp16_enable": str(int(precision == "fp16")),
                "trt_int8_enable": str(int(precision == "int8")),
                "trt_engine_cache_enable": "0",
            }
        if name == "XnnpackExecutionProvider":
            return {"intra_op_num_threads": str(threads)}
        return {}


GPU_BUILD = (
    "it needs an NVIDIA GPU with its driver, and the GPU build in place of the plain one: "
    "pip uninstall onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]'"
)
PROVIDERS = {
    "onnxruntime": Provider(CPU),
    "onnxruntime-cuda": Provider(CUDA, (CPU,), "cuda", GPU_BUILD),
    "onnxruntime-tensorrt": Provider(
        "TensorrtExecutionProvider", (CUDA, CPU), "cuda", f"{GPU_BUILD}, and pip install tensorrt of its CUDA version"
    ),
    "onnxruntime-xnnpack": Provider(
        "XnnpackExecutionProvider",
        (CPU,),
        install="the wheels on PyPI do not hold it: build ONNX Runtime with --use_xnnpack --build_wheel and install that",
    ),
}


class OnnxRuntime:
    """Loads ``.onnx`` files with every graph optimisation on.

    Args:
        name: One of ``PROVIDERS``.
    """

    formats = ("onnx",)

    def __init__(self, name: str = "onnxruntime") -> None:
        self._name = name
        self._provider = PROVIDERS[name]
        self._working: Any = None

    @property
    def name(self) -> str:
        return self._name

    def probe(self) -> RuntimeInfo:
        try:
            ort = self._working_library()
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
        ort = self._working_library()
        is_cpu = self._provider.name == CPU
        # XNNPACK brings threads of its own; the library's must not compete with them.
        own_threads = 1 if self._provider.name == "XnnpackExecutionProvider" else threads
        config = CONFIG if is_cpu else CONFIG | RECORD_NODES
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = own_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = LOG_FATAL_ONLY
        for key, value in config.items():
            options.add_session_config_entry(key, value)
        names = (self._provider.name, *self._provider.then)
        asked = {name: self._provider.options(name, threads=threads, precision=precision) for name in names}
        try:
            session = ort.InferenceSession(str(path), options, providers=list(asked.items()))
            has_started = self._provider.name in session.get_providers()
            conditions: dict[str, JsonValue] = {
                "runtime": self.name,
                "runtime_version": str(ort.__version__),
                "provider": ",".join(session.get_providers()),
                "graph_optimization": "all",
                "execution_mode": "sequential",
                "intra_op_threads": own_threads,
                "inter_op_threads": 1,
                **{key.removeprefix("session."): value for key, value in CONFIG.items()},
            }
            if not is_cpu and has_started:
                conditions |= {"provider_options": dict(asked[self._provider.name]), "nodes": _nodes(session)}
            if has_started:
                if self._provider.memory == "cpu":
                    return OnnxSession(ort, session, conditions)
                return DeviceSession(ort, session, conditions, memory=self._provider.memory)
        except Exception as error:  # the library raises a class of its own for each status, with no common root
            raise UnreadableArtifact(f"ONNX Runtime {ort.__version__} does not load the file: {error}") from error
        raise self._missing("the library fell back to another provider for this file")

    def _working_library(self) -> Any:
        """Return the library; the first time, once the provider has shown that it starts."""
        if self._working is None:
            self._working = self._tried_library()
        return self._working

    def _tried_library(self) -> Any:
        ort = _library()
        ort.set_default_logger_severity(LOG_FATAL_ONLY)
        name = self._provider.name
        if name == CPU:
            return ort
        if name not in ort.get_available_providers():
            raise self._missing(f"this build of onnxruntime {ort.__version__} has no {name}")
        if self._provider.memory == "cuda" and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # CUDA and cuDNN where they were installed by pip
        options = ort.SessionOptions()
        options.log_severity_level = LOG_FATAL_ONLY
        try:
            session = ort.InferenceSession(PROBE_FILE, options, providers=[name, *self._provider.then])
        except Exception as error:  # see load
            raise self._missing(f"{name} does not start ({error})") from error
        if name not in session.get_providers():
            raise self._missing(
                f"{name} does not start; the library would use {session.get_providers()[0]} in its place"
            )
        return ort

    def _missing(self, reason: str) -> RuntimeMissing:
        return RuntimeMissing(f"{reason}; {self._provider.install}", metadata={"runtime": self.name})


class OnnxSession:
    """A loaded ONNX file; inputs and outputs stay bound in the provider's memory, so that a run copies nothing."""

    def __init__(self, ort: Any, session: Any, conditions: Mapping[str, JsonValue], *, memory: str = "cpu") -> None:
        self._ort = ort
        self._session = session
        self._memory = memory
        self._binding = session.io_binding()
        self._run = session.run_with_iobinding
        self._names = [output.name for output in session.get_outputs()]
        self.conditions = conditions
        self.inputs = tuple(
            TensorSpec(
                entry.name,
                tuple(size if isinstance(size, int) and size > 0 else None for size in entry.shape),
                _dtype(entry.name, entry.type),
            )
            for entry in session.get_inputs()
        )

    def bind(self, feeds: Mapping[str, Array]) -> None:
        self._binding.clear_binding_inputs()
        self._binding.clear_binding_outputs()
        try:
            for spec in self.inputs:
                array = np.ascontiguousarray(feeds[spec.name], dtype=spec.dtype)
                value = self._ort.OrtValue.ortvalue_from_numpy(array, self._memory, 0)
                self._binding.bind_ortvalue_input(spec.name, value)
            for name in self._names:
                self._binding.bind_output(name, self._memory)
            if self._memory != "cpu":
                self._binding.synchronize_inputs()  # the copy to the device is over before anything is timed
        except KeyError as error:
            raise UnreadableArtifact(f"The file wants an input {error} that the check does not hold.") from error
        except Exception as error:  # see OnnxRuntime.load
            raise UnreadableArtifact(f"ONNX Runtime does not take the inputs: {error}") from error

    def run(self) -> None:
        self._run(self._binding)

    def outputs(self) -> dict[str, Array]:
        return dict(zip(self._names, self._binding.copy_outputs_to_cpu(), strict=True))


class DeviceSession(OnnxSession):
    """A file whose tensors lie in a device's memory: a run is over when the device is, not when its work is queued."""

    def run(self) -> None:
        self._run(self._binding)
        self._binding.synchronize_outputs()


def _nodes(session: Any) -> dict[str, JsonValue] | None:
    """Return how many nodes each provider got; None where the library does not tell."""
    counts: Counter[str] = Counter()
    try:
        for graph in session.get_provider_graph_assignment_info():
            counts[graph.ep_name] += len(graph.get_nodes())
    except Exception:  # only for the record: libraries before 1.24 do not tell, each provider in its own way
        return None
    return dict(counts)


def _dtype(name: str, kind: str) -> str:
    if kind not in DTYPES:
        raise UnreadableArtifact(f"Input {name} is a {kind}, which cannot be fed from an npz file.")
    return DTYPES[kind]


def _library() -> Any:
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise RuntimeMissing(f"onnxruntime does not import ({error}); pip install onnxruntime") from error
