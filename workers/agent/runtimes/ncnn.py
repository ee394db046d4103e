"""ncnn on the CPU, the usual runtime of small ARM boards; reads ``.ncnn`` files, see ``domain.ncnn_file``.

ncnn has no batch axis: a blob is one sample. More than one is refused, not looped: nobody deploys the loop as a batch, and a loop
of single runs would be told of as a batch's latency. The extra ``ncnn`` installs it.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue

from domain.device import RuntimeInfo
from domain.formats import FORMATS, NCNN, why_not
from domain.ncnn_file import PARAM, WEIGHTS, BadNcnnFile, NcnnGraph, unpack
from workers.agent.runtimes.base import Array, RuntimeMissing, TensorSpec, UnreadableArtifact

INSTALL = "pip install ncnn"  # not the extra: the wheel that a server hands its devices has only that of every device

# What each switches: weights and blobs held in half precision, packed by pairs; and computed in it where the processor can.
FP16 = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic")
NEVER = ("use_vulkan_compute", "use_bf16_packed", "use_bf16_storage")
KEPT = ("lightmode", "use_winograd_convolution", "use_sgemm_convolution", "use_packing_layout", "openmp_blocktime")
# Where its wheels compute in half precision: ARMv8.2. Elsewhere they hold it so, and compute in single precision.
HALF = "cpu_support_arm_asimdhp"


class Ncnn:
    """Loads ``.ncnn`` files for so many threads, intermediate blobs freed as they are used up (light mode)."""

    name = "ncnn"
    formats = (NCNN,)

    def probe(self) -> RuntimeInfo:
        try:
            library = _library()
            library.Net().opt.num_threads = 1
        except RuntimeMissing as error:
            return RuntimeInfo(name=self.name, available=False, formats=self.formats, detail=error.message)
        except Exception as error:  # a library of another version may lack anything
            detail = f"ncnn imports and does not work: {type(error).__name__}: {error}; {INSTALL} --force-reinstall"
            return RuntimeInfo(name=self.name, available=False, formats=self.formats, detail=detail)
        return RuntimeInfo(
            name=self.name,
            available=True,
            version=_version(library),
            formats=self.formats,
            precisions=FORMATS[NCNN].precisions,
            detail="fp16 is " + ("computed" if _computes_half(library) else "stored, and computed in fp32 here"),
        )

    def load(self, path: Path, *, threads: int, precision: str, batch: int) -> NcnnSession:
        refused = why_not(NCNN, precision=precision, batch=batch)
        if refused is not None:
            raise UnreadableArtifact(f"ncnn: {refused[1]}", code=refused[0])
        library = _library()
        net = library.Net()
        net.opt.num_threads = threads
        net.opt.lightmode = True
        for name in FP16:
            setattr(net.opt, name, precision == "fp16")
        for name in NEVER:
            if hasattr(net.opt, name):
                setattr(net.opt, name, False)
        with tempfile.TemporaryDirectory(prefix="pruneloop-ncnn-") as folder:
            try:
                graph = unpack(path, Path(folder))
            except BadNcnnFile as error:
                raise UnreadableArtifact(error.message) from error
            # Paths, not memory: given memory, ncnn would go on reading from it for as long as it lives.
            if net.load_param(str(Path(folder, PARAM))) != 0:
                kinds = ", ".join(sorted(set(graph.layer_types)))
                raise UnreadableArtifact(
                    f"ncnn {_version(library)} does not load the graph; its layers are {kinds}. Update ncnn: {INSTALL} -U"
                )
            if net.load_model(str(Path(folder, WEIGHTS))) != 0:
                raise UnreadableArtifact("The weights are not those of the graph; export the model again.")
        return NcnnSession(library, net, graph, precision)


class NcnnSession:
    """A loaded net. Inputs lie in ncnn's own memory; each run goes through an extractor of its own, as ncnn wants it."""

    def __init__(self, library: Any, net: Any, graph: NcnnGraph, precision: str) -> None:
        self._library = library
        self._net = net
        self._names = graph.outputs
        self._fed: tuple[tuple[str, Any], ...] = ()
        self._given: list[Any] = []
        self.inputs = tuple(TensorSpec(name, (1, *shape), "float32") for name, shape in graph.inputs.items())
        self.conditions: Mapping[str, JsonValue] = {
            "runtime": Ncnn.name,
            "runtime_version": _version(library),
            "provider": "CPU",
            "num_threads": int(net.opt.num_threads),
            "computed_in": "fp16" if precision == "fp16" and _computes_half(library) else "fp32",
            **{name: bool(getattr(net.opt, name)) for name in FP16},
            **{name: int(getattr(net.opt, name)) for name in KEPT if hasattr(net.opt, name)},
        }

    def bind(self, feeds: Mapping[str, Array]) -> None:
        fed = []
        for spec in self.inputs:
            if spec.name not in feeds:
                raise UnreadableArtifact(f"The file wants an input {spec.name} that the check does not hold.")
            array = np.ascontiguousarray(feeds[spec.name], dtype=np.float32)
            if array.shape != spec.shape:
                raise UnreadableArtifact(f"Input {spec.name} has shape {array.shape}, the file takes {spec.shape}.")
            fed.append((spec.name, self._library.Mat(array[0]).clone()))  # a clone is aligned as ncnn likes it
        self._fed = tuple(fed)

    def run(self) -> None:
        extractor = self._net.create_extractor()
        for name, mat in self._fed:
            extractor.input(name, mat)
        given = []
        for name in self._names:
            code, mat = extractor.extract(name)
            if code != 0:
                raise RuntimeError(f"ncnn gives no {name}: code {code}")
            given.append(mat)
        self._given = given

    def outputs(self) -> dict[str, Array]:
        return {name: np.array(mat)[None].copy() for name, mat in zip(self._names, self._given, strict=True)}


def _computes_half(library: Any) -> bool:
    return bool(getattr(library, HALF)()) if hasattr(library, HALF) else False


def _version(library: Any) -> str:
    return str(library.__version__)


def _library() -> Any:
    try:
        return importlib.import_module("ncnn")
    except ImportError as error:
        raise RuntimeMissing(f"ncnn does not import ({error}); {INSTALL}") from error
