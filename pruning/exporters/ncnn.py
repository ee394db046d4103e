"""ncnn files: the ONNX file converted by pnnx, a program of its own, and run in ncnn.

pnnx runs in a process with a time limit and a scratch folder: it is a C++ parser of graphs, and may crash, hang or fill the disk
on one it does not know. It calls inputs and outputs ``in0``, ``out0``; here they are ``input`` and ``output``, several outputs
``output_0``, ``output_1``, ... in the model's order, which a graph of ncnn's does not keep by itself. Operators
it cannot say in ncnn's words stay in the graph under torch's names: such a file is refused with the operator's name.

Weights of an fp16 file are stored in half precision; ncnn computes so where the processor can. int8 is not made: ncnn's own
quantiser comes with no package.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from domain.artifact import ArtifactKind
from domain.errors import Unavailable
from domain.formats import NCNN, why_not
from domain.ncnn_file import PARAM, WEIGHTS, BadNcnnFile, pack, read_graph, rename, unpack
from domain.ports import Hold
from pruning.exporters.onnx import OnnxExporter
from pruning.exporters.outputs import ExportFailed, by_order, check_outputs, joined
from pruning.signature import signature_of

INSTALL = "pip install 'pruneloop[build]'"
TIMEOUT_S = 120.0  # a network of a hundred layers takes one second
SAID_CHARS = 300


class NcnnExporter:
    """Makes and runs ``.ncnn`` files of one sample, with one input.

    Args:
        program: pnnx; None: the one its package brings.
        timeout_s: How long it may take.
    """

    format = NCNN
    kind = ArtifactKind.NCNN

    def __init__(self, program: Path | None = None, *, timeout_s: float = TIMEOUT_S) -> None:
        self._program = program
        self._timeout_s = timeout_s

    def require(self) -> None:
        _library()
        if self._program is None:
            _find_pnnx()

    def export(self, model: nn.Module, example: Tensor) -> bytes:
        _require_one_image(model)
        return self._converted(OnnxExporter().export(model, example), example, "fp32")

    def in_precision(
        self, file: bytes, precision: str, *, model: nn.Module, example: Tensor, calibration: Tensor, hold: Hold
    ) -> bytes:
        del file, calibration  # weights are halved by the converter, from the model
        with hold():
            return self._converted(OnnxExporter().export(model, example), example, precision)

    def run(self, file: bytes, inputs: Tensor, *, threads: int, precision: str = "fp32") -> Tensor:
        return joined(self._run(file, inputs, threads, precision))

    def _run(self, file: bytes, inputs: Tensor, threads: int, precision: str) -> list[Tensor]:
        """Return what a file gives, in the model's order and its own shapes."""
        library = _library()
        net, names = _loaded(library, file, threads, precision)
        outputs: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for sample in inputs.float().cpu().numpy():
            extractor = net.create_extractor()
            mat = library.Mat(np.ascontiguousarray(sample)).clone()
            extractor.input("input", mat)
            for name in names:
                code, given = extractor.extract(name)
                if code != 0:
                    raise ExportFailed(f"ncnn does not run the file: code {code}.")
                outputs[name].append(np.array(given))
        return [torch.from_numpy(np.stack(one)) for one in outputs.values()]

    def check(self, file: bytes, inputs: Tensor, outputs: Tensor) -> Mapping[str, np.ndarray]:
        feeds = {"input": inputs.float().cpu().numpy()}
        return check_outputs(self.format, feeds, by_order(self._run(file, inputs, 1, "fp32")), outputs)

    def _converted(self, onnx_file: bytes, example: Tensor, precision: str) -> bytes:
        refused = why_not(NCNN, precision=precision, batch=len(example))
        if refused is not None:
            raise ExportFailed(refused[1], code=refused[0])
        with tempfile.TemporaryDirectory(prefix="pruneloop-pnnx-") as place:
            folder = Path(place)
            (folder / "model.onnx").write_bytes(onnx_file)
            shape = ",".join(str(size) for size in example.shape)
            said = self._run_pnnx(folder, [f"inputshape=[{shape}]f32", f"fp16={int(precision == 'fp16')}"])
            try:
                param, weights = (folder / PARAM).read_text("ascii"), (folder / WEIGHTS).read_bytes()
                count = len(onnx.load_from_string(onnx_file).graph.output)
                names = {f"out{number}": "output" if count == 1 else f"output_{number}" for number in range(count)}
                renamed = rename(param, {"in0": "input", **names}, {"input": tuple(example.shape[1:])})
                graph = read_graph(renamed)
                foreign = sorted({kind for kind in graph.layer_types if re.search(r"[.:]", kind)})
                if foreign:
                    raise ExportFailed(
                        f"ncnn has no {', '.join(foreign)}; leave it out of the model, or export another format."
                    )
                if tuple(graph.inputs) != ("input",) or set(graph.outputs) != set(names.values()):
                    found = ", ".join((*graph.inputs, *graph.outputs))
                    raise ExportFailed(f"The ncnn graph has other inputs or outputs than the model: {found}.")
                return pack(renamed, weights)
            except (OSError, KeyError, ValueError, BadNcnnFile) as error:
                raise ExportFailed(f"pnnx gives no ncnn file: {error}; it says: {said}") from error

    def _run_pnnx(self, folder: Path, options: list[str]) -> str:
        """Run the converter in a folder and return the last it said; raises ExportFailed, Unavailable."""
        command = [
            str(self._program or _find_pnnx()),
            "model.onnx",
            *options,
            "device=cpu",
            f"ncnnparam={PARAM}",
            f"ncnnbin={WEIGHTS}",
        ]
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PRUNELOOP_")}
        with tempfile.TemporaryFile() as words:
            try:
                running = subprocess.Popen(
                    command,
                    cwd=folder,
                    env={**kept, "OMP_NUM_THREADS": "1", "HOME": str(folder), "TMPDIR": str(folder)},
                    stdin=subprocess.DEVNULL,
                    stdout=words,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise Unavailable(f"pnnx does not start ({error}); {INSTALL}", code="exporter_missing") from error
            try:
                code = running.wait(self._timeout_s)
            except subprocess.TimeoutExpired:
                raise ExportFailed(
                    f"pnnx did not finish in {self._timeout_s:g} s; leave ncnn out of this job.", code="export_timeout"
                ) from None
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(running.pid, signal.SIGKILL)
                running.wait()
            words.seek(0)
            said = _last_words(words.read(1 << 20).decode(errors="replace"))
        if code != 0:
            how = signal.Signals(-code).name if code < 0 else f"code {code}"
            raise ExportFailed(f"pnnx cannot convert the model ({how}): {said}")
        return said


def _require_one_image(model: nn.Module) -> None:
    """Refuse by name what a Mat of floats cannot be: integers, or several inputs."""
    signature = signature_of(model)
    if signature is None:
        return
    told = ", ".join(f"{port.name} ({str(port.dtype).removeprefix('torch.')})" for port in signature.inputs)
    if len(signature.inputs) > 1 or not signature.inputs[0].dtype.is_floating_point:
        raise ExportFailed(
            f"ncnn files take one input of floating point, the model takes {told}; export another format."
        )


def _last_words(text: str) -> str:
    """Return what a converter complained of, else its last line."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    lines = [line.strip() for line in plain.splitlines() if line.strip() and "Unknown CPU vendor" not in line]
    complaints = [line for line in lines if re.search(r"not support|unknown|fail|error|ignore", line, re.IGNORECASE)]
    return "; ".join((complaints or lines or ["nothing"])[-3:])[:SAID_CHARS]


def _find_pnnx() -> Path:
    """Return the program inside its package, which is not imported: that would import what it likes."""
    found = find_spec("pnnx")
    program = Path(found.origin).with_name("pnnx") if found is not None and found.origin else None
    if program is None or not program.is_file():
        raise Unavailable(f"pnnx, which writes ncnn files, is not installed; {INSTALL}", code="exporter_missing")
    return program


def _loaded(library: Any, file: bytes, threads: int, precision: str) -> tuple[Any, list[str]]:
    """Return (net, names of its outputs in order), computing as a device that is asked for the precision does."""
    net = library.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    with tempfile.TemporaryDirectory(prefix="pruneloop-ncnn-") as place:
        try:
            graph = unpack(file, Path(place))
        except BadNcnnFile as error:
            raise ExportFailed(error.message) from error
        for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
            setattr(net.opt, name, precision == "fp16")
        if net.load_param(str(Path(place, PARAM))) != 0 or net.load_model(str(Path(place, WEIGHTS))) != 0:
            kinds = ", ".join(sorted(set(graph.layer_types)))
            raise ExportFailed(f"ncnn does not load the file; its layers are {kinds}.")
    return net, sorted(graph.outputs, key=lambda name: int(name.partition("_")[2] or 0))


def _library() -> Any:
    try:
        return import_module("ncnn")
    except ImportError as error:
        raise Unavailable(f"ncnn does not import ({error}); {INSTALL}", code="exporter_missing") from error
