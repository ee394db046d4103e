"""PyTorch as a runtime: the very file the builder exported, turned into a torch module and run, eager or compiled.

Nothing is unpickled: an ONNX file is parsed (``pruning.from_onnx``), a torch file is safetensors (``pruning.rebuild``). It stands
outside ``workers.agent``, which knows it by name only, as it knows a plug-in; torch is imported once somebody asks whether it
works, or loads a file.

Installed by the extra ``torch``.
"""

from __future__ import annotations

import importlib
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue

from domain.device import RuntimeInfo
from domain.errors import PruneloopError
from domain.formats import READ_BY
from workers.agent.runtimes.base import Array, RuntimeMissing, TensorSpec, UnreadableArtifact

INSTALL = "pip install 'pruneloop[torch]'"
GPU_INSTALL = (
    "it needs an NVIDIA GPU with its driver, and a build of torch for its CUDA version in place of the CPU one"
)
COMPILERS = ("g++", "clang++", "c++")
PRECISIONS = ("fp32", "fp16")


@dataclass(frozen=True)
class Mode:
    """One way to run a module: where its tensors lie, and whether it is compiled."""

    torch_device: str = "cpu"
    is_compiled: bool = False


MODES = {
    "torch": Mode(),
    "torch-compile": Mode(is_compiled=True),
    "torch-cuda": Mode("cuda"),
    "torch-compile-cuda": Mode("cuda", is_compiled=True),
}


class TorchRuntime:
    """Loads ``.onnx`` and torch files of fp32 and fp16.

    int8 files are refused: their QDQ nodes would be rounded as the file says and computed in floating point, which is the
    model's accuracy and no int8 latency.

    Args:
        name: One of ``MODES``.
    """

    formats = READ_BY["torch"]

    def __init__(self, name: str = "torch") -> None:
        self._name = name
        self._mode = MODES[name]
        self._is_tried = False

    @property
    def name(self) -> str:
        return self._name

    def probe(self) -> RuntimeInfo:
        try:
            torch = self._working_library()
        except RuntimeMissing as error:
            return RuntimeInfo(name=self.name, available=False, formats=self.formats, detail=error.message)
        parts = [torch.cuda.get_device_name(0) if self._mode.torch_device == "cuda" else "CPU"]
        if self._mode.is_compiled:
            parts.append(f"compiled by {_compiler() if self._mode.torch_device == 'cpu' else 'triton'}")
        return RuntimeInfo(
            name=self.name,
            available=True,
            version=str(torch.__version__),
            formats=self.formats,
            precisions=PRECISIONS,
            detail=", ".join(parts),
        )

    def load(self, path: Path, *, threads: int, precision: str, batch: int) -> TorchSession:
        torch = self._working_library()
        if precision not in PRECISIONS:
            raise UnreadableArtifact(
                f"{self.name} computes in {' and '.join(PRECISIONS)}; it has no kernels for {precision} files and would emulate"
                f" them in floating point. Measure {precision} with onnxruntime or openvino."
            )
        try:
            converted = _converted(path)
            return TorchSession(torch, converted, self.name, threads=threads, batch=batch)
        except UnreadableArtifact:
            raise
        except PruneloopError as error:
            raise UnreadableArtifact(f"torch does not run the file: {error.message}") from error
        except OSError as error:
            raise UnreadableArtifact(f"The file cannot be read: {error}") from error

    def _working_library(self) -> Any:
        torch = _library("torch")
        _library("onnx")
        if self._mode.torch_device == "cuda" and not torch.cuda.is_available():
            raise self._missing(f"torch {torch.__version__} sees no GPU; {GPU_INSTALL}")
        if self._mode.torch_device == "cuda" and not self._is_tried:
            self._try_gpu(torch)
        if self._mode.is_compiled:
            if self._mode.torch_device == "cpu" and _compiler() is None:
                raise self._missing("torch.compile finds no C++ compiler; install g++, or name one in CXX")
            if self._mode.torch_device == "cuda":
                _library("triton")
        return torch

    def _try_gpu(self, torch: Any) -> None:
        """Compute something small: a build of torch without kernels for this GPU, or with another cuDNN, sees it all the same."""
        try:
            place = torch.device(self._mode.torch_device)
            kernel = torch.ones(1, 1, 3, 3, device=place)
            torch.nn.functional.conv2d(kernel, kernel).cpu()
        except RuntimeError as error:  # also cuDNN's and CUDA's
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise self._missing(
                f"torch {torch.__version__} sees a GPU that it cannot use ({first}); {GPU_INSTALL}"
            ) from error
        self._is_tried = True

    def _missing(self, reason: str) -> RuntimeMissing:
        return RuntimeMissing(reason, metadata={"runtime": self.name})


class TorchSession:
    """A converted file with its inputs in memory. Threads are the process's: sessions side by side share one number."""

    def __init__(self, torch: Any, converted: Any, name: str, *, threads: int, batch: int) -> None:
        self._torch, self._mode, self._threads = torch, MODES[name], threads
        self._place = torch.device(self._mode.torch_device)
        self._names = converted.outputs
        self.inputs = tuple(_spec(info) for info in converted.inputs)
        self._fed: tuple[Any, ...] = ()
        self._given: Any = None
        self._set_up()
        self._module = converted.module.requires_grad_(False).to(self._place)
        if self._mode.is_compiled:
            self._compile(batch)
        self.conditions: Mapping[str, JsonValue] = {
            "runtime": name,
            "runtime_version": str(torch.__version__),
            "provider": self._mode.torch_device,
            "compiled": "inductor" if self._mode.is_compiled else "no",
            "intra_op_threads": int(torch.get_num_threads()),
            "memory_format": "contiguous",
            "fp32_precision": str(torch.backends.fp32_precision),
            "denormals_as_zero": False,
        }
        if self._mode.torch_device == "cuda":
            self.conditions = {
                **self.conditions,
                "gpu": str(torch.cuda.get_device_name(0)),
                "cuda_version": str(torch.version.cuda),
                "cudnn_version": torch.backends.cudnn.version(),
                "fp32_precision": str(torch.backends.cudnn.conv.fp32_precision),
            }

    def bind(self, feeds: Mapping[str, Array]) -> None:
        fed = []
        for spec in self.inputs:
            if spec.name not in feeds:
                raise UnreadableArtifact(f"The file wants an input {spec.name} that the check does not hold.")
            array = np.array(feeds[spec.name], dtype=spec.dtype, order="C")  # memory of our own, and writable
            wanted = zip(spec.shape, array.shape, strict=False)
            if len(spec.shape) != array.ndim or any(size not in {None, given} for size, given in wanted):
                raise UnreadableArtifact(f"Input {spec.name} has shape {array.shape}, the file takes {spec.shape}.")
            fed.append(self._torch.from_numpy(array).to(self._place))
        self._fed = tuple(fed)
        self._wait()
        self._torch.set_num_threads(self._threads)

    def run(self) -> None:
        with self._torch.inference_mode():
            self._given = self._module(*self._fed)
        self._wait()

    def outputs(self) -> dict[str, Array]:
        given = (self._given,) if len(self._names) == 1 else self._given
        return {name: _array(tensor) for name, tensor in zip(self._names, given, strict=True)}

    def _wait(self) -> None:
        """A run is over when the device is, not when its work is queued."""
        if self._mode.torch_device == "cuda":
            self._torch.cuda.synchronize()

    def _set_up(self) -> None:
        torch = self._torch
        torch.set_num_threads(self._threads)
        torch.set_flush_denormal(False)
        # An fp32 file is computed in fp32, not in TF32 or bfloat16. The flags first: torch before 2.13 goes by them alone, and
        # torch.export, which reads them, raises where they say another thing than the setting below.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.fp32_precision = "ieee"
        if self._mode.torch_device == "cuda":
            torch.backends.cudnn.benchmark = True
        if self._mode.is_compiled:
            inductor: Any = importlib.import_module("torch._inductor.config")
            inductor.compile_threads = 1  # no pool of compilers beside the measurement
            # These two caches are pickles on disk. What g++ made is found again by the hash of its source.
            inductor.fx_graph_cache = False
            functorch: Any = importlib.import_module("torch._functorch.config")
            functorch.enable_autograd_cache = False

    def _compile(self, batch: int) -> None:
        """Compile while loading: a call with values of the shapes that will come."""
        feeds = {
            spec.name: np.ones(
                [size if size is not None else (batch if axis == 0 else 1) for axis, size in enumerate(spec.shape)],
                spec.dtype,
            )
            for spec in self.inputs
        }
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch tells itself of its own deprecations while it compiles
                # The default back-end, told that shapes stay: a compiled file is one that was compiled for its batch.
                self._module = self._torch.compile(self._module, dynamic=False)
                self.bind(feeds)
                self.run()
        except UnreadableArtifact:
            raise
        except Exception as error:  # a compiler's errors have no common root
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UnreadableArtifact(f"torch.compile does not compile the file: {first[:400]}") from error


@dataclass(frozen=True)
class _Converted:
    """A module with its ports, as ``pruning.from_onnx`` gives them."""

    module: Any
    inputs: tuple[Any, ...]
    outputs: tuple[str, ...]


def _converted(path: Path) -> Any:
    """Return a file as a module, whatever it is called: safetensors begin with eight bytes of length and a brace."""
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] != b"{":
        from pruning.from_onnx import convert

        return convert(path.read_bytes())
    _library("safetensors")
    from pruning.rebuild import BadModelFile, rebuild

    try:
        module = rebuild(path)
    except BadModelFile as error:
        raise UnreadableArtifact(str(error)) from error
    return _Converted(module, module.inputs, module.outputs)


def torch_runtime() -> TorchRuntime:
    return TorchRuntime("torch")


def torch_compile_runtime() -> TorchRuntime:
    return TorchRuntime("torch-compile")


def torch_cuda_runtime() -> TorchRuntime:
    return TorchRuntime("torch-cuda")


def torch_compile_cuda_runtime() -> TorchRuntime:
    return TorchRuntime("torch-compile-cuda")


def _spec(info: Any) -> TensorSpec:
    if info.shape is None or info.dtype is None:
        raise UnreadableArtifact(f"Input {info.name} has no known shape; export the file with one.")
    dtype = str(info.dtype).removeprefix("torch.")
    if dtype == "bfloat16":
        raise UnreadableArtifact(f"Input {info.name} is bfloat16, which cannot be fed from an npz file.")
    return TensorSpec(info.name, info.shape, dtype)


def _array(tensor: Any) -> Array:
    plain = tensor.detach().cpu()
    if str(plain.dtype) == "torch.bfloat16":
        plain = plain.float()
    made: Array = np.array(plain.numpy())
    return made


def _compiler() -> str | None:
    """Return the C++ compiler that torch.compile would call on a CPU."""
    named = os.environ.get("CXX")
    return next((found for one in ((named,) if named else COMPILERS) if (found := shutil.which(one))), None)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RuntimeMissing(f"{name} does not import ({error}); {INSTALL}") from error
