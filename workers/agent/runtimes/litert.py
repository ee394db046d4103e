"""LiteRT on the CPU, what Android and small Linux boards run: reads ``.tflite`` files, see ``domain.litert_file``.

XNNPACK is on, as it is in a deployment; it computes fp16 files in fp32 where the processor has no half precision. The extra
``litert`` installs it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue

from domain.device import RuntimeInfo
from domain.formats import FORMATS, LITERT, READ_BY
from domain.litert_file import BadLiteRtFile, check
from workers.agent.runtimes.base import Array, RuntimeMissing, TensorSpec, UnreadableArtifact

PACKAGE = "ai-edge-litert"
INSTALL = (
    f"pip install {PACKAGE}"  # not the extra: the wheel that a server hands its devices has only that of every device
)


class LiteRt:
    """Loads ``.tflite`` files for so many threads, each of the batch it was exported with."""

    name = "litert"
    formats = READ_BY["litert"]

    def probe(self) -> RuntimeInfo:
        try:
            library = _library()
            library.Interpreter  # noqa: B018 - a package of the same name may be another one
        except RuntimeMissing as error:
            return RuntimeInfo(name=self.name, available=False, formats=self.formats, detail=error.message)
        except Exception as error:  # a library of another version may lack anything
            detail = (
                f"{PACKAGE} imports and does not work: {type(error).__name__}: {error}; {INSTALL} --force-reinstall"
            )
            return RuntimeInfo(name=self.name, available=False, formats=self.formats, detail=detail)
        return RuntimeInfo(
            name=self.name,
            available=True,
            version=_version(),
            formats=self.formats,
            precisions=FORMATS[LITERT].precisions,
            detail="CPU, XNNPACK",
        )

    def load(self, path: Path, *, threads: int, precision: str, batch: int) -> LiteRtSession:
        del precision, batch  # the file's own types say the one; what is fed is held to its shapes
        library = _library()
        try:
            check(path)
            interpreter = library.Interpreter(model_path=str(path), num_threads=threads)
            interpreter.allocate_tensors()
            return LiteRtSession(interpreter, threads)
        except BadLiteRtFile as error:
            raise UnreadableArtifact(error.message) from error
        except UnreadableArtifact:
            raise
        except Exception as error:  # LiteRT raises ValueError and RuntimeError for everything
            raise UnreadableArtifact(f"LiteRT {_version()} does not load the file: {_first_line(error)}") from error


class LiteRtSession:
    """A loaded file. Inputs are copied in when they are bound; a run computes, and copies nothing."""

    def __init__(self, interpreter: Any, threads: int) -> None:
        self._interpreter = interpreter
        signatures = list(interpreter.get_signature_list())
        if len(signatures) != 1:
            raise UnreadableArtifact(f"The file has {len(signatures)} signatures; export it with one.")
        runner = interpreter.get_signature_runner(signatures[0])
        self._inputs = {name: int(one["index"]) for name, one in runner.get_input_details().items()}
        self._outputs = {name: int(one["index"]) for name, one in runner.get_output_details().items()}
        self.inputs = tuple(
            TensorSpec(name, tuple(int(size) for size in one["shape"]), np.dtype(one["dtype"]).name)
            for name, one in runner.get_input_details().items()
        )
        self.conditions: Mapping[str, JsonValue] = {
            "runtime": LiteRt.name,
            "runtime_version": _version(),
            "provider": "CPU",
            "delegate": "xnnpack",
            "num_threads": threads,
        }

    def bind(self, feeds: Mapping[str, Array]) -> None:
        for spec in self.inputs:
            if spec.name not in feeds:
                raise UnreadableArtifact(f"The file wants an input {spec.name} that the check does not hold.")
            array = np.ascontiguousarray(feeds[spec.name], dtype=spec.dtype)
            if array.shape != spec.shape:
                raise UnreadableArtifact(f"Input {spec.name} has shape {array.shape}, the file takes {spec.shape}.")
            self._interpreter.set_tensor(self._inputs[spec.name], array)

    def run(self) -> None:
        self._interpreter.invoke()

    def outputs(self) -> dict[str, Array]:
        return {name: np.array(self._interpreter.get_tensor(index)) for name, index in self._outputs.items()}


def _version() -> str:
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return "unknown"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:400]


def _library() -> Any:
    try:
        return importlib.import_module("ai_edge_litert.interpreter")
    except ImportError as error:
        raise RuntimeMissing(f"{PACKAGE} does not import ({error}); {INSTALL}") from error
