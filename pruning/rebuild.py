"""Rebuild a model from one safetensors file, without its source and without a pickle. This file stands alone: copy it.

    from rebuild import rebuild
    model = rebuild("t0-trial-007-fp32.safetensors")   # a torch.nn.Module, with the weights under their own names
    outputs = model(inputs)

It needs torch and safetensors and nothing else; ``python rebuild.py FILE`` says what a file takes and gives, and runs it once.

The file is safetensors, so any tool reads its weights. Its header's metadata holds, under ``architecture``, the graph as JSON:
inputs, outputs, and the nodes in order, each an operator of torch's own (``aten.conv2d.default``) with its arguments. Nodes are
carried out one by one; no code is generated or evaluated. An operator that is not torch's own, that writes into its arguments or
that reads files is refused by name, with its node.
"""

from __future__ import annotations

import json
import operator
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

FORMAT = "architecture"
VERSION = 1
MAX_GRAPH_CHARS = 16 << 20
NAME = re.compile(r"\w{1,200}(\.\w{1,200}){0,63}", re.ASCII)
SIZES: dict[str, Callable[..., Any]] = {
    "size.add": operator.add,
    "size.sub": operator.sub,
    "size.mul": operator.mul,
    "size.floordiv": operator.floordiv,
    "size.mod": operator.mod,
    "size.neg": operator.neg,
}
READS_FILES = frozenset({"from_file"})
WORDS: dict[str, type] = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
    "device": torch.device,
    "float": float,
}


class BadModelFile(ValueError):
    """The file is no model of this kind, or one of its nodes cannot be carried out."""


@dataclass(frozen=True)
class Port:
    """An input or output: name, shape with None where any size goes, and type."""

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class _Node:
    name: str
    call: Callable[..., Any]
    args: list[Any]
    kwargs: dict[str, Any]
    last_reads: tuple[str, ...]


class Rebuilt(nn.Module):
    """A model as its file says. Parameters and buffers have the names they had; ``inputs`` and ``outputs`` describe the ports.

    Call it with the inputs in order. One output is a tensor, several are a tuple.
    """

    def __init__(self, graph: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        buffers = set(graph["buffers"])
        for name, tensor in weights.items():
            self._place(name, tensor, is_buffer=name in buffers or not tensor.is_floating_point())
        self.inputs = tuple(_port(entry) for entry in graph["inputs"])
        self.outputs = tuple(entry["name"] for entry in graph["outputs"])
        self._results = graph["results"]
        self._nodes = self._read_nodes(graph["nodes"], set(weights))

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        if len(inputs) != len(self.inputs):
            raise TypeError(f"the model takes {len(self.inputs)} inputs, {len(inputs)} were given")
        values: dict[str, Any] = {port.name: value for port, value in zip(self.inputs, inputs, strict=True)}
        device = inputs[0].device if inputs else torch.device("cpu")
        for node in self._nodes:
            args = _filled(node.args, values, self._weight, device)
            kwargs = {name: _filled(part, values, self._weight, device) for name, part in node.kwargs.items()}
            values[node.name] = node.call(*args, **kwargs)
            for name in node.last_reads:  # as much memory as the model itself would take
                del values[name]
        given = tuple(_filled(entry, values, self._weight, device) for entry in self._results)
        return given[0] if len(given) == 1 else given

    def _weight(self, name: str) -> Tensor:
        path, _, leaf = name.rpartition(".")
        found = getattr(self.get_submodule(path), leaf)
        assert isinstance(found, Tensor)
        return found

    def _place(self, name: str, tensor: Tensor, *, is_buffer: bool) -> None:
        if not NAME.fullmatch(name):
            raise BadModelFile(f"{name!a} is no name of a weight.")
        *path, leaf = name.split(".")
        module: nn.Module = self
        try:
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            if is_buffer:
                module.register_buffer(leaf, tensor)
            else:
                module.register_parameter(leaf, nn.Parameter(tensor))
        except KeyError as error:
            raise BadModelFile(f"The weight {name!a} cannot be placed: {error}.") from error

    def _read_nodes(self, entries: list[Mapping[str, Any]], weights: set[str]) -> tuple[_Node, ...]:
        inputs = {port.name for port in self.inputs}
        known: set[str] = set(inputs)
        read: list[tuple[str, Callable[..., Any], list[Any], dict[str, Any], set[str]]] = []
        for entry in entries:
            name, args, kwargs = entry["name"], entry["args"], entry["kwargs"]
            used: set[str] = set()
            _check_argument([*args, *kwargs.values()], known, weights, name, used)
            if name in known or not NAME.fullmatch(name):
                raise BadModelFile(f"The node {name!a} stands twice, or has no proper name.")
            known.add(name)
            read.append((name, _operator(entry["op"], name), args, kwargs, used))
        kept: set[str] = set()
        _check_argument(self._results, known, weights, "the results", kept)
        nodes = []
        for name, call, args, kwargs, used in reversed(read):
            last = used - kept
            kept |= used
            nodes.append(_Node(name, call, args, kwargs, tuple(sorted(last))))
        return tuple(reversed(nodes))


def rebuild(path: str | Path) -> Rebuilt:
    """Return the model of a file, in eval mode, on the CPU.

    Raises:
        BadModelFile: Where it is no such file, or a node cannot be carried out here.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            told = (file.metadata() or {}).get(FORMAT)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    except (SafetensorError, OSError, RuntimeError) as error:
        raise BadModelFile(f"{path} is no whole safetensors file: {error}") from error
    if told is None:
        raise BadModelFile(f"{path} holds weights only: its header has no {FORMAT!r}.")
    if len(told) > MAX_GRAPH_CHARS:
        raise BadModelFile(f"The graph has {len(told)} characters; at most {MAX_GRAPH_CHARS} are taken.")
    try:
        graph = json.loads(told)
        if graph["version"] != VERSION:
            raise BadModelFile(f"The graph is of version {graph['version']}; this loader reads {VERSION}.")
        return Rebuilt(graph, weights).eval()
    except BadModelFile:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadModelFile(f"The graph in {path} cannot be read: {type(error).__name__}: {error}") from error


def _operator(name: str, node: str) -> Callable[..., Any]:
    if name in SIZES:
        return SIZES[name]
    if name == "getitem":
        return operator.getitem
    library, _, rest = name.partition(".")
    packet, _, overload = rest.partition(".")
    found = getattr(getattr(torch.ops.aten, packet, None), overload, None) if packet and overload else None
    if library != "aten" or packet in READS_FILES or not isinstance(found, torch._ops.OpOverload):
        raise BadModelFile(f"The node {node!a} wants {name!a}, which is no operator this loader carries out.")
    if found._schema.is_mutable:
        raise BadModelFile(f"The node {node!a} wants {name!a}, which writes into its arguments.")
    return found


def _port(entry: Mapping[str, Any]) -> Port:
    shape = tuple(None if size is None else int(size) for size in entry["shape"])
    if not NAME.fullmatch(entry["name"]):
        raise BadModelFile(f"{entry['name']!a} is no name of an input.")
    return Port(entry["name"], shape, _torch_word(entry["dtype"], torch.dtype))


def _torch_word(word: str, kind: type) -> Any:
    found = getattr(torch, str(word), None)
    if not isinstance(found, kind):
        raise BadModelFile(f"{word!a} is no {kind.__name__} of torch.")
    return found


def _check_argument(value: Any, known: set[str], weights: set[str], where: str, used: set[str]) -> None:
    """Check an argument of a node, and note which values it reads."""
    if isinstance(value, list):
        for part in value:
            _check_argument(part, known, weights, where, used)
    elif isinstance(value, dict):
        ((kind, name),) = value.items() if len(value) == 1 else (("", None),)
        if kind == "value" and name in known:
            used.add(name)
        elif not (kind == "weight" and name in weights) and kind not in WORDS:
            raise BadModelFile(f"The node {where!a} reads {value!a}, which is not there.")


def _filled(value: Any, values: Mapping[str, Any], weight: Callable[[str], Tensor], device: torch.device) -> Any:
    """Return an argument with what it refers to in its place."""
    if isinstance(value, list):
        return [_filled(part, values, weight, device) for part in value]
    if not isinstance(value, dict):
        return value
    ((kind, name),) = value.items()
    if kind == "value":
        return values[name]
    if kind == "weight":
        return weight(name)
    if kind == "device":  # where the inputs are
        return device
    return float(name) if kind == "float" else _torch_word(name, WORDS[kind])


def _main() -> None:
    model = rebuild(sys.argv[1])
    say = sys.stdout.write
    say(f"{sum(weight.numel() for weight in model.parameters())} weights\n")
    for port in model.inputs:
        shape = ", ".join("any" if size is None else str(size) for size in port.shape)
        say(f"takes {port.name}: ({shape}), {port.dtype}\n")
    feeds = [torch.zeros([size or 1 for size in port.shape], dtype=port.dtype) for port in model.inputs]
    with torch.inference_mode():
        given = model(*feeds)
    for name, tensor in zip(model.outputs, (given,) if isinstance(given, Tensor) else given, strict=True):
        say(f"gives {name}: {tuple(tensor.shape)}, {tensor.dtype}\n")


if __name__ == "__main__":
    _main()
