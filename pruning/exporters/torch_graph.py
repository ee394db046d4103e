"""torch files: safetensors with the graph in its header, that ``pruning.rebuild`` makes a module of without the model's source.

The graph is what ``torch.export`` traces: torch's own operators, with the batch left free where the model allows it. Its own file
format is not used: ``torch.export.load`` unpickles.

fp16 stores weights in half precision and computes in it; inputs and outputs stay fp32, as in every format.
"""

from __future__ import annotations

import json
import math
import operator
import tempfile
import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, fx, nn

from domain.artifact import ArtifactKind
from domain.formats import TORCH, why_not
from domain.ports import Hold
from pruning.exporters.feeds import feeds_of_ports, in_batches
from pruning.exporters.outputs import ExportFailed, check_outputs, joined
from pruning.rebuild import FORMAT, NAME, SIZES, VERSION, BadModelFile, Rebuilt, rebuild
from pruning.signature import Packed, Port, Signature, signature_of

RUN_BATCH = 64
_SIZE_NAMES = {found: name for name, found in SIZES.items()}
_PREFIX = "net."


class TracedExporter:
    """What the exporters of ``torch.export``'s graph share: a file is written from the model in each precision, and run by torch.

    A subclass has ``format`` and ``kind``, writes a file and runs it.
    """

    format: str
    kind: ArtifactKind

    def require(self) -> None:
        """Nothing beside the builder's own packages is needed."""

    def export(self, model: nn.Module, example: Tensor) -> bytes:
        return self._written(model, example, is_half=False)

    def in_precision(
        self, file: bytes, precision: str, *, model: nn.Module, example: Tensor, calibration: Tensor, hold: Hold
    ) -> bytes:
        del file, calibration
        refused = why_not(self.format, precision=precision)
        if refused is not None:
            raise ExportFailed(refused[1], code=refused[0])
        with hold():
            return self._written(model, example, is_half=precision == "fp16")

    def run(self, file: bytes, inputs: Tensor, *, threads: int, precision: str = "fp32") -> Tensor:
        del precision  # the file's own nodes say it
        return joined(list(self._run(file, inputs, threads)[1].values()))

    def check(self, file: bytes, inputs: Tensor, outputs: Tensor) -> Mapping[str, np.ndarray]:
        return check_outputs(self.format, *self._run(file, inputs, 1), outputs)

    def _written(self, model: nn.Module, example: Tensor, *, is_half: bool) -> bytes:
        raise NotImplementedError

    def _run(self, file: bytes, samples: Tensor, threads: int) -> tuple[dict[str, np.ndarray], dict[str, Tensor]]:
        """Return what a file was fed and what it gave, by its own names."""
        raise NotImplementedError


class TorchExporter(TracedExporter):
    """Makes and runs torch files: ports as the model's signature names them, else one ``input`` and one ``output``."""

    format = TORCH
    kind = ArtifactKind.TORCH

    def _written(self, model: nn.Module, example: Tensor, *, is_half: bool) -> bytes:
        program, signature = traced(model, example, is_half=is_half)
        try:
            graph = _described(program, signature)
        except _Unsaid as error:
            raise ExportFailed(f"The model cannot be written as a torch file: {error}") from error
        weights, buffers = _weights(program)
        told = json.dumps({**graph, "buffers": buffers}, separators=(",", ":"))
        return save(weights, metadata={FORMAT: told})  # one entry: several come in any order

    def _run(self, file: bytes, samples: Tensor, threads: int) -> tuple[dict[str, np.ndarray], dict[str, Tensor]]:
        model = _opened(file)
        feeds = feeds_of_ports(_ports(model), samples)
        made = run_module(model, feeds, model.inputs[0].shape[0], threads)
        return feeds, dict(zip(model.outputs, made, strict=True))


def run_module(
    module: Callable[..., object], feeds: Mapping[str, np.ndarray], batch: int | None, threads: int
) -> list[Tensor]:
    """Return the outputs of a module, in order, for feeds in its inputs' order.

    Args:
        module: Gives a tensor, or several.
        feeds: Input name -> array ``(N, ...)``.
        batch: The one batch size it takes; None: any.
        threads: Torch's, meanwhile.
    """
    parts: list[tuple[Tensor, ...]] = []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for chunk, count in in_batches(feeds, batch or RUN_BATCH, is_fixed=batch is not None):
            with torch.inference_mode():
                given = module(*(torch.from_numpy(chunk[name]) for name in feeds))
            outputs = given if isinstance(given, (tuple, list)) else (given,)
            parts.append(tuple(tensor[:count].clone() for tensor in outputs))
    finally:
        torch.set_num_threads(before)
    return [torch.cat(one) for one in zip(*parts, strict=True)]


def ports_of(file: bytes) -> list[Port]:
    """Return what a torch file takes, in order."""
    return _ports(_opened(file))


def _ports(model: Rebuilt) -> list[Port]:
    return [Port(port.name, port.shape, port.dtype) for port in model.inputs]


class _AsFloat(nn.Module):
    """A network that takes and gives fp32, whatever it computes in; integers it takes stay as they are."""

    def __init__(self, net: nn.Module, *, is_half: bool) -> None:
        super().__init__()
        self.net = _halved(net) if is_half else net
        self._is_half = is_half

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        given = self.net(*(self._cast(tensor, torch.half) for tensor in inputs))
        if isinstance(given, (tuple, list)):
            return tuple(self._cast(tensor, torch.float) for tensor in given)
        found: Tensor = self._cast(given, torch.float)
        return found

    def _cast(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        return tensor.to(dtype) if self._is_half and tensor.is_floating_point() else tensor


def _halved(net: nn.Module) -> nn.Module:
    return deepcopy(net).half()


def traced(model: nn.Module, example: Tensor, *, is_half: bool) -> tuple[torch.export.ExportedProgram, Signature]:
    """Return a model as ``torch.export`` sees it, with fp32 inputs and outputs, and what these are called."""
    net = _AsFloat(model.net if isinstance(model, Packed) else model, is_half=is_half).eval()
    signature = signature_of(model) or Signature((Port("input", (None, *example.shape[1:])),), (Port("output", ()),))
    return _traced(net, model, example, signature), signature


def _traced(net: nn.Module, model: nn.Module, example: Tensor, signature: Signature) -> torch.export.ExportedProgram:
    """Trace with the sizes free that the signature leaves free, or for the example's own where the model does not."""
    any_batch = example if len(example) > 1 else torch.cat([example, example])
    free = tuple(
        {
            axis: torch.export.Dim.AUTO if axis else torch.export.Dim.DYNAMIC
            for axis, size in enumerate(port.shape)
            if not isinstance(size, int)
        }
        for port in signature.inputs
    )
    tries: tuple[tuple[Tensor, Any], ...] = ((any_batch, (free,)), (example, None))
    for number, (samples, shapes) in enumerate(tries):
        args = model.unpack(samples) if isinstance(model, Packed) else (samples,)
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # torch tells itself of its own deprecations
                program = torch.export.export(net, args, dynamic_shapes=shapes, strict=False)
                # Without decompositions, so that a convolution stays one; what writes in place becomes what does not.
                return program.run_decompositions({}) if _writes(program.graph) else program
        except Exception as error:  # tracing runs the model's code, which raises what it likes
            if number == len(tries) - 1:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise ExportFailed(f"The model cannot be traced by torch.export: {reason}") from error
    raise AssertionError("unreachable")


def _writes(graph: fx.Graph) -> bool:
    targets = [node.target for node in graph.nodes]
    return any(isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable for target in targets)


class _Unsaid(Exception):
    """A node or an argument that the file has no word for."""


def _described(program: torch.export.ExportedProgram, ports: Signature) -> dict[str, Any]:
    signature = program.graph_signature
    taken = {node.name for node in program.graph.nodes}
    targets = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    targets |= signature.inputs_to_lifted_tensor_constants
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        raise _Unsaid("it changes its own buffers or inputs while it runs")
    inputs: list[dict[str, Any]] = []
    nodes, results = [], []
    says: dict[fx.Node, dict[str, str]] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in targets:
            says[node] = {"weight": targets[node.name].removeprefix(_PREFIX)}
        elif node.op == "placeholder":
            value = node.meta["val"]
            shape = [size if isinstance(size, int) else None for size in value.shape]
            name = ports.inputs[len(inputs)].name
            name = name if NAME.fullmatch(name) and name not in taken - {node.name} else node.name
            inputs.append({"name": name, "shape": shape, "dtype": _word(value.dtype)})
            says[node] = {"value": name}
        elif node.op == "call_function":
            says[node] = {"value": node.name}
            args = [_argument(part, says, node) for part in node.args]
            kwargs = {key: _argument(part, says, node) for key, part in node.kwargs.items()}
            nodes.append({"name": node.name, "op": _operator_name(node), "args": args, "kwargs": kwargs})
        elif node.op == "output":
            results = [_argument(part, says, node) for part in node.args[0]]
        else:
            raise _Unsaid(f"node {node.name} is a {node.op}")
    if len(results) != len(ports.outputs):
        raise _Unsaid(f"it gives {len(results)} outputs where its signature has {len(ports.outputs)}")
    named = [{"name": port.name} for port in ports.outputs]
    return {"version": VERSION, "inputs": inputs, "outputs": named, "results": results, "nodes": nodes}


def _operator_name(node: fx.Node) -> str:
    target = node.target
    if target is operator.getitem:
        return "getitem"
    if target in _SIZE_NAMES:
        return _SIZE_NAMES[target]
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        if target._schema.is_mutable:
            raise _Unsaid(f"node {node.name} ({target}) writes into its arguments")
        return f"aten.{target._opname}.{target._overloadname}"
    raise _Unsaid(f"node {node.name} is a {target}, which is no operator of torch's own")


def _argument(value: Any, says: Mapping[fx.Node, dict[str, str]], node: fx.Node) -> Any:
    if isinstance(value, fx.Node):
        return says[value]
    if isinstance(value, (list, tuple)):
        return [_argument(part, says, node) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    for kind, type_ in (("dtype", torch.dtype), ("layout", torch.layout), ("memory_format", torch.memory_format)):
        if isinstance(value, type_):
            return {kind: _word(value)}
    if isinstance(value, torch.device):
        return {"device": "inputs"}
    raise _Unsaid(f"node {node.name} has an argument of type {type(value).__name__}")


def _weights(program: torch.export.ExportedProgram) -> tuple[dict[str, Tensor], list[str]]:
    """Return every tensor the graph reads by its own name, none sharing memory with another, and which are no parameters."""
    signature = program.graph_signature
    read = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    state = {**program.constants, **program.state_dict}
    found, buffers = {}, []
    parameters = signature.inputs_to_parameters
    others = {**signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    for placeholder, name in {**parameters, **others}.items():
        if placeholder in read:
            plain = name.removeprefix(_PREFIX)
            found[plain] = state[name].detach().cpu().contiguous().clone()
            if placeholder in others:
                buffers.append(plain)
    return found, buffers


def _word(value: Any) -> str:
    return str(value).removeprefix("torch.")


def _opened(file: bytes) -> Rebuilt:
    with tempfile.TemporaryDirectory(prefix="pruneloop-torch-") as place:
        path = Path(place, "model.safetensors")
        path.write_bytes(file)
        try:
            return rebuild(path)
        except BadModelFile as error:
            raise ExportFailed(f"The torch file is not valid: {error}") from error
