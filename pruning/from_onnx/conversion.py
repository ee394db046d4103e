"""File to module: every node once, in order; what is known is computed here, the rest becomes a graph."""

from __future__ import annotations

import operator as python_operator
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

import pruning.from_onnx.operators.activations
import pruning.from_onnx.operators.arithmetic
import pruning.from_onnx.operators.constants
import pruning.from_onnx.operators.indexing
import pruning.from_onnx.operators.layers
import pruning.from_onnx.operators.normalisation
import pruning.from_onnx.operators.pooling
import pruning.from_onnx.operators.quantisation
import pruning.from_onnx.operators.recurrent
import pruning.from_onnx.operators.reductions
import pruning.from_onnx.operators.resizing
import pruning.from_onnx.operators.shapes  # noqa: F401 - each of these registers its operators
from pruning.from_onnx.errors import BadOnnx, NeedsConstant, NotConverted, Refusal, UnsupportedOnnx
from pruning.from_onnx.naming import Paths, layer_path, safe_part, safe_path
from pruning.from_onnx.node import Node
from pruning.from_onnx.ranks import guessed_shape
from pruning.from_onnx.reading import OnnxGraph, OnnxNode, TensorInfo, read_graph
from pruning.from_onnx.registry import OPERATORS
from pruning.from_onnx.values import SHAPE, Call, Const, Ints, Layer, Result, Traced, Value, stack_ints

# Constants that these read are trained with the model, where they came from an initialiser.
_TRAINED_BY = {
    "Add", "Sub", "Mul", "Div", "MatMul", "Gemm", "Einsum", "Conv", "ConvTranspose", "Concat", "Expand", "PRelu",
    "LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization",
}  # fmt: skip
WHY_NOT = {
    "If": "its condition is computed from the model's inputs, so neither branch can be left out; fix it when exporting",
    "Loop": "how often it runs may depend on data; unroll it when exporting",
    "Scan": "how often it runs may depend on data; unroll it when exporting",
    "NonMaxSuppression": "how much it gives depends on data, and it has no gradient; export the model without this post-processing",
    **dict.fromkeys(
        ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"),
        "its weights are integers already, which cannot be trained; give the model as it was before quantisation",
    ),
    **dict.fromkeys(
        ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"),
        "it gives something else on every run",
    ),
}
_STORED_ONLY = {torch.uint16, torch.uint32, torch.uint64}
_MOVES = {
    "Cast",
    "Identity",
    "DequantizeLinear",
    "Reshape",
    "Shape",
    "Size",
    "Transpose",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
}


@dataclass(frozen=True)
class Converted:
    """A module in eval mode; it takes the inputs in order and gives one tensor, or a tuple where there are several outputs."""

    module: fx.GraphModule
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[str, ...]
    output_infos: tuple[TensorInfo, ...] = ()


def supported_operators() -> tuple[str, ...]:
    """Return the operators of the default domain that are converted, sorted."""
    return tuple(sorted(OPERATORS))


def convert(file: bytes, *, frees_batch: bool = False) -> Converted:
    """Turn an ONNX file into a module whose float weights are parameters.

    Args:
        file: A ModelProto of opset 9 or newer with all tensors inside.
        frees_batch: Let the first size of every input be any, whatever the file says of it.

    Raises:
        BadOnnx: If the file is damaged or invalid.
        UnsupportedOnnx: If operators, or forms of them, are not converted: all of them, each with its node.
    """
    source = read_graph(file, frees_batch=frees_batch)
    unknown = [
        Refusal(
            f"{node.domain}.{node.operator}" if node.domain else node.operator,
            node.name,
            WHY_NOT.get(node.operator, "it is not converted"),
        )
        for node in source.nodes
        if node.domain or node.operator not in OPERATORS
    ]
    if unknown:
        raise UnsupportedOnnx(unknown)
    return _Builder(source).build()


class _Builder:
    """Builds one graph; see ``node.Workshop`` for what operators use of it."""

    def __init__(self, source: OnnxGraph) -> None:
        self.opset = source.opset
        self.baked_batch = source.baked_batch
        self._source = source
        self._graph = fx.Graph()
        self._paths = Paths()
        self._attributes: dict[str, Any] = {}  # path -> layer, parameter or buffer
        self._stored: dict[int, fx.Node] = {}  # constants in the graph, by identity
        self._parameters: dict[tuple[int, object], nn.Parameter] = {}
        self._kept: list[Tensor] = []  # alive, so that an identity stands for one tensor
        self._values: dict[str, Value] = {}
        self._broken: set[str] = set()
        self._refusals: list[Refusal] = []
        self._uses = Counter(name for node in source.nodes for name in node.inputs)
        self._uses.update(source.outputs)
        self._readers = _readers(source.nodes)
        self._anchor: fx.Node | None = None

    def build(self) -> Converted:
        for info in self._source.inputs:
            if info.dtype is None:
                self._refusals.append(Refusal("input", info.name, "torch has no tensors of its type"))
                self._broken.add(info.name)
                continue
            node = self._graph.create_node("placeholder", f"in_{safe_part(info.name)}")
            self._anchor = self._anchor or node
            self._values[info.name] = Traced(node, info.shape, info.dtype)
        for name, tensor in self._source.constants.items():
            self._values[name] = Const(tensor, name, is_weight=tensor.is_floating_point())
        for source in self._source.nodes:
            self._convert(source)
        if self._refusals:
            raise UnsupportedOnnx(self._refusals)
        missing = [name for name in self._source.outputs if name not in self._values]
        if missing:
            raise BadOnnx(f"Nothing computes the output {', '.join(missing)}; export the file again.")
        outputs = [self.node_of(self._values[name]) for name in self._source.outputs]
        self._graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
        root = {str(node.target): self._attributes[str(node.target)] for node in self._graph.nodes if _is_stored(node)}
        module = fx.GraphModule(root, self._graph, class_name="FromOnnx")
        if module.graph.eliminate_dead_code():
            module.recompile()
        _drop_unread(module)
        return Converted(module.eval(), self._source.inputs, self._source.outputs, self._source.output_infos)

    # What operators use.

    @property
    def anchor(self) -> fx.Node:
        if self._anchor is None:
            raise NotConverted("the file has no inputs")
        return self._anchor

    def emit(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        return self._graph.call_function(function, self._resolved(args))

    def uses(self, name: str) -> int:
        return self._uses[name]

    def module_of(self, value: Traced) -> nn.Module | None:
        if value.node.op != "call_module":
            return None
        module = self._attributes[str(value.node.target)]
        assert isinstance(module, nn.Module)
        return module

    def parameter(self, value: Const, key: object, made: Callable[[Tensor], Tensor]) -> nn.Parameter:
        if value.tensor.ndim < 2:
            # Exporters store vectors of equal values once (all those fresh biases): that ties nothing to anything.
            return nn.Parameter(made(value.tensor).contiguous().clone())
        place = (id(value.tensor), key)
        if place not in self._parameters:
            self._kept.append(value.tensor)
            self._parameters[place] = nn.Parameter(made(value.tensor).contiguous().clone())
        return self._parameters[place]

    def node_of(self, value: Value) -> fx.Node:
        if isinstance(value, Traced):
            return value.node
        if isinstance(value, Ints):
            return self.emit(stack_ints, list(value.items), value.is_scalar, self.anchor)
        if id(value.tensor) not in self._stored:
            self._kept.append(value.tensor)
            path = self._paths.claim(safe_path(value.name))
            is_trained = value.is_weight and value.tensor.is_floating_point() and value.tensor.numel() > 1
            is_trained = is_trained and bool(self._readers.get(value.name, set()) & _TRAINED_BY)
            self._attributes[path] = self.parameter(value, "", _itself) if is_trained else value.tensor.clone()
            self._stored[id(value.tensor)] = self._graph.create_node("get_attr", path)
        return self._stored[id(value.tensor)]

    # One node.

    def _convert(self, source: OnnxNode) -> None:
        if self._broken.intersection(source.inputs):
            self._broken.update(source.outputs)  # its own trouble, if any, is seen once the first is mended
            return
        inputs = tuple(self._values[name] if name else None for name in source.inputs)
        try:
            _refuse_dtypes(source, inputs)
            result = OPERATORS[source.operator](Node(source, inputs, self))
            values = self._finished(source, result)
        except NotConverted as error:
            self._refuse(source, str(error), needs_constant=isinstance(error, NeedsConstant))
            return
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError, ZeroDivisionError, OverflowError) as error:
            # Attributes of an untrusted file, given to torch: whatever does not fit is said of the node.
            first = (str(error).splitlines() or [type(error).__name__])[0]
            self._refuse(source, f"it does not fit together: {first}")
            return
        for name, value in zip(source.outputs, values, strict=False):
            if name and value is not None:
                self._values[name] = value

    def _refuse(self, source: OnnxNode, reason: str, *, needs_constant: bool = False) -> None:
        self._refusals.append(Refusal(source.operator, source.name, reason, needs_constant))
        self._broken.update(source.outputs)

    def _finished(self, source: OnnxNode, result: Result) -> tuple[Value | None, ...]:
        if isinstance(result, tuple):
            return result
        if isinstance(result, Call):
            return self._call(source, result)
        if isinstance(result, Layer):
            return self._layer(source, result)
        return (result,)

    def _call(self, source: OnnxNode, call: Call) -> tuple[Value | None, ...]:
        everything = (call.args, dict(call.kwargs))
        if all(isinstance(leaf, Const) for leaf in _leaves(everything)):
            with torch.no_grad():
                given = call.function(*_tensors(call.args), **_tensors(dict(call.kwargs)))
            is_weight = any(leaf.is_weight for leaf in _leaves(everything) if isinstance(leaf, Const))
            given = tuple(given) if call.outputs > 1 else (given,)
            return tuple(
                Const(tensor, name, is_weight=is_weight and tensor.is_floating_point())
                for tensor, name in zip(given, source.outputs, strict=False)
            )
        node = self._graph.create_node(
            "call_function",
            call.function,
            self._resolved(call.args),
            self._resolved(dict(call.kwargs)),
            name=_node_name(source),
        )
        return self._traced(source, node, call.outputs)

    def _layer(self, source: OnnxNode, layer: Layer) -> tuple[Value | None, ...]:
        weight = layer.weight.name if layer.weight is not None else None
        if weight is not None and self._uses[weight] > 1 and source.name.startswith("/"):
            weight = None  # stored once for several layers: the node's own scope tells them apart
        path = self._paths.claim(layer_path(weight, source.name, source.operator, source.outputs))
        self._attributes[path] = layer.module
        node = self._graph.create_node("call_module", path, self._resolved(layer.args), name=_node_name(source))
        if layer.after is not None:
            node = self._graph.call_function(layer.after, (node, *self._resolved(layer.after_args)))
        return self._traced(source, node, layer.outputs)

    def _traced(self, source: OnnxNode, node: fx.Node, outputs: int) -> tuple[Value | None, ...]:
        nodes = [node] if outputs == 1 else []
        for index in range(outputs if outputs > 1 else 0):
            nodes.append(self._graph.call_function(python_operator.getitem, (node, index)))
        inputs = tuple(self._values.get(name) for name in source.inputs)
        values: list[Value | None] = []
        for name, one in zip(source.outputs, nodes, strict=False):
            info = self._source.known.get(name, TensorInfo(name, None, None))
            shape = guessed_shape(source, inputs) if info.shape is None else info.shape
            one.meta[SHAPE] = shape
            values.append(Traced(one, shape, info.dtype))
        return tuple(values)

    def _resolved(self, argument: Any) -> Any:
        if isinstance(argument, Const | Ints | Traced):
            return self.node_of(argument)
        if isinstance(argument, tuple | list):
            return type(argument)(self._resolved(one) for one in argument)
        if isinstance(argument, dict):
            return {key: self._resolved(one) for key, one in argument.items()}
        return argument


def _leaves(argument: Any) -> Iterable[Value | fx.Node]:
    if isinstance(argument, Const | Ints | Traced | fx.Node):
        yield argument
    elif isinstance(argument, dict):
        yield from _leaves(list(argument.values()))
    elif isinstance(argument, tuple | list):
        for one in argument:
            yield from _leaves(one)


def _tensors(argument: Any) -> Any:
    if isinstance(argument, Const):
        return argument.tensor
    if isinstance(argument, tuple | list):
        return type(argument)(_tensors(one) for one in argument)
    if isinstance(argument, dict):
        return {key: _tensors(one) for key, one in argument.items()}
    return argument


def _readers(nodes: Iterable[OnnxNode]) -> dict[str, set[str]]:
    readers: dict[str, set[str]] = {}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, set()).add(node.operator)
    return readers


def _node_name(source: OnnxNode) -> str | None:
    return safe_part(f"{source.operator.lower()}_{source.outputs[0]}") if source.outputs else None


def _drop_unread(module: fx.GraphModule) -> None:
    """Remove layers and tensors that nothing calls: values that were needed while converting only."""
    module.delete_all_unused_submodules()
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    held = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    layers = {str(node.target) for node in module.graph.nodes if node.op == "call_module"}
    for name in held:
        path, _, last = name.rpartition(".")
        if name not in read and not any(name.startswith(f"{layer}.") for layer in layers):
            delattr(module.get_submodule(path), last)


def _refuse_dtypes(source: OnnxNode, inputs: tuple[Value | None, ...]) -> None:
    for value in inputs:
        if isinstance(value, Traced) and value.dtype in _STORED_ONLY and source.operator not in _MOVES:
            raise NotConverted(f"torch stores {str(value.dtype).removeprefix('torch.')} and does not compute with it")


def _is_stored(node: fx.Node) -> bool:
    return node.op in {"call_module", "get_attr"}


def _itself(tensor: Tensor) -> Tensor:
    return tensor
