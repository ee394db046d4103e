"""An uploaded ONNX file as a model: read by a limited child first, then turned into a trainable module under its own names."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, fx

from domain.errors import FieldProblem, Invalid, NotFound
from domain.ports import ArtifactStore
from pruning.from_onnx import BadOnnx, Converted, convert
from pruning.from_onnx.layout import channels_first
from pruning.from_onnx.simplify import free_heads, simplify
from pruning.signature import Ending, Packed, Port, Signature

FIELD = "model.artifact"
CHECK_TIMEOUT_S = 300.0
CHECK_MEMORY_BYTES = 16 * 2**30  # address space: a reader of a 2 GiB file needs several times that
MOST_BYTES = 2 * 2**30  # what a protobuf may hold


def check_file(path: Path) -> None:
    """Convert a file in a child process with limits on time and memory: what comes of it is thrown away, only its faults are told.

    A file that brings the reader down, or that keeps it busy for ever, takes the child along and nothing else.

    Raises:
        Invalid: ``bad_onnx`` or ``unsupported_onnx``, with every node that is not converted.
    """
    if path.stat().st_size > MOST_BYTES:
        raise _bad("it is larger than 2 GiB")
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PRUNELOOP_")}
    root = str(Path(__file__).resolve().parents[2])
    command = [
        sys.executable,
        "-m",
        "pruning.from_onnx.child",
        str(path),
        str(CHECK_MEMORY_BYTES),
        str(CHECK_TIMEOUT_S),
    ]
    try:
        done = subprocess.run(
            command,
            cwd=root,
            env={**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": root},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=CHECK_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _bad(f"it could not be read within {CHECK_TIMEOUT_S:g} s") from None
    if done.returncode < 0:
        raise _bad(f"reading it was ended by {signal.Signals(-done.returncode).name}")
    lines = done.stdout.decode(errors="replace").splitlines()
    if done.returncode != 0 or not lines:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["nothing was said"])[-1]
        raise _bad(f"reading it failed: {last}")
    told = json.loads(lines[-1])
    if told:
        fields = [FieldProblem(FIELD, reason) for reason in told["fields"]] or [FieldProblem(FIELD, told["message"])]
        raise Invalid(told["message"], code=told["code"], fields=fields, metadata=told["metadata"])


def stored_path(digest: str, artifacts: ArtifactStore | None) -> Path:
    """Return where an uploaded file lies; raises NotFound ``model_not_found``."""
    if artifacts is None or not artifacts.exists(digest):
        raise NotFound(
            f"No artifact {digest}; upload the file with POST /v1/artifacts?kind=onnx and give its digest.",
            code="model_not_found",
        )
    return artifacts.local_path(digest)


def open_file(file: bytes) -> Packed:
    """Return an ONNX file as a model: its weights are parameters, its names and free dimensions the signature.

    Raises:
        Invalid: ``bad_onnx``, ``unsupported_onnx``, or ``baked_batch`` where the file works for one batch size only.
    """
    converted = convert(file, frees_batch=True)
    simplify(converted.module)
    channels_first(converted.module)
    heads = free_heads(converted.module)
    signature = _signature(converted)
    _require_samples(signature)
    is_vector = len(signature.outputs) == 1 and len(signature.outputs[0].shape) == 2
    return Packed(converted.module, signature, ending=_ending(converted.module) if is_vector else "", heads=heads)


def require_free_batch(model: Packed, sample: Tensor) -> None:
    """Check that each of several samples gets the answer it gets alone: files are often exported for one sample only.

    Args:
        model: Bound to the data, in eval mode.
        sample: At least two samples, ``(N, ...)``.

    Raises:
        Invalid: ``baked_batch``, with the node that does not take several.
    """
    with torch.no_grad():
        alone = [model(one) for one in sample[:2].split(1)]
        try:
            together = model(sample[:2])
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            node = _first_that_fails(model, sample[:2])
            raise _baked(f"{node}: {str(error).splitlines()[0]}") from error
    if together.shape != (2, *alone[0].shape[1:]):
        raise _baked(f"two samples give outputs of shape {tuple(together.shape)}, one gives {tuple(alone[0].shape)}")
    scale = float(together.abs().max())
    if not torch.allclose(together, torch.cat(alone), rtol=1e-3, atol=1e-3 * max(scale, 1e-6)):
        raise _baked("two samples together give other answers than one by one")


def _first_that_fails(model: Packed, samples: Tensor) -> str:
    """Return the name of the node at which a converted graph stops."""
    assert isinstance(model.net, fx.GraphModule)
    interpreter = _Watched(model.net)
    try:
        interpreter.run(*model.unpack(samples))
    except Exception:  # Whatever it raises, it is the place that is wanted.
        return interpreter.at
    return "the graph"


class _Watched(fx.Interpreter):
    """Remembers the node it is at."""

    at = "the graph"

    def run_node(self, n: fx.Node) -> object:
        self.at = n.name
        return super().run_node(n)


def _signature(converted: Converted) -> Signature:
    return Signature(
        tuple(Port(info.name, info.sizes, info.dtype or torch.float32) for info in converted.inputs),
        tuple(Port(info.name, info.sizes, info.dtype or torch.float32) for info in converted.output_infos),
    )


def _require_samples(signature: Signature) -> None:
    scalars = [port.name for port in signature.inputs if not port.shape]
    if scalars:
        message = f"Input {', '.join(scalars)} has no batch: it is one number for all samples. Make it a constant of the file."
        raise Invalid(message, code="unsupported_onnx", fields=[FieldProblem(FIELD, message)])


def _ending(module: fx.GraphModule) -> Ending:
    """Say whether the one output is a softmax over its last dimension, or a sigmoid."""
    (end,) = (node for node in module.graph.nodes if node.op == "output")
    last = end.args[0]
    if isinstance(last, fx.Node) and last.target is torch.softmax and last.args[1] in {-1, 1}:
        return "softmax"
    return "sigmoid" if isinstance(last, fx.Node) and last.target is torch.sigmoid else ""


def _baked(why: str) -> Invalid:
    message = (
        f"The ONNX file works for one batch size only ({why}). Export it with a dynamic batch (dynamic_axes or dynamic_shapes),"
        " and reshape with -1 in place of the batch."
    )
    return Invalid(message, code="baked_batch", fields=[FieldProblem(FIELD, message)])


def _bad(why: str) -> Invalid:
    message = f"The ONNX file cannot be used: {why}. Export it again."
    return BadOnnx(message, fields=[FieldProblem(FIELD, message)])
