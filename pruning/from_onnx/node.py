"""A node as its operator sees it: inputs as values, attributes, and the many places a parameter may be in from opset to opset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from pruning.from_onnx.errors import NeedsConstant, NotConverted
from pruning.from_onnx.reading import OnnxNode, Shape
from pruning.from_onnx.values import Const, Ints, Item, Traced, Value, unstack_ints

IntList = list[Item] | fx.Node


class Workshop(Protocol):
    """What a node needs of the graph being built."""

    opset: int
    baked_batch: int | None

    def emit(self, function: Callable[..., Any], *args: Any) -> fx.Node: ...
    def parameter(self, value: Const, key: object, made: Callable[[Tensor], Tensor]) -> nn.Parameter: ...
    def node_of(self, value: Value) -> fx.Node: ...
    def uses(self, name: str) -> int: ...
    def module_of(self, value: Traced) -> nn.Module | None: ...

    @property
    def anchor(self) -> fx.Node: ...


class Node:
    """One node under conversion."""

    def __init__(self, source: OnnxNode, inputs: tuple[Value | None, ...], workshop: Workshop) -> None:
        self.source = source
        self.inputs = inputs
        self.workshop = workshop
        self.opset = workshop.opset

    def has(self, index: int) -> bool:
        """Is there an input of this index? Optional ones may be left out."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def input(self, index: int) -> Value:
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            raise NotConverted(f"input {index} is missing")
        return value

    def all_inputs(self) -> list[Value]:
        return [value for value in self.inputs if value is not None]

    def optional(self, index: int) -> Value | None:
        return self.inputs[index] if self.has(index) else None

    def gives(self, index: int) -> bool:
        """Does anybody read the output of this index?"""
        outputs = self.source.outputs
        return index < len(outputs) and bool(outputs[index]) and self.workshop.uses(outputs[index]) > 0

    def attribute(self, name: str, default: Any = None) -> Any:
        return self.source.attributes.get(name, default)

    def const(self, index: int, what: str = "") -> Const:
        value = self.input(index)
        if not isinstance(value, Const):
            raise NeedsConstant(f"its {what or f'input {index}'} must be a constant of the file")
        return value

    def number(self, index: int, default: float | None = None, attribute: str | None = None) -> Any:
        """Return a scalar from an input or, in older opsets, an attribute."""
        if self.has(index):
            return self.const(index).tensor.reshape(-1)[0].item()
        return self.attribute(attribute, default) if attribute else default

    def ints(self, index: int) -> IntList:
        """Return an integer input as sizes; a list that is known only when the module runs is one node."""
        value = self.input(index)
        if isinstance(value, Const):
            return unstack_ints(value.tensor)  # type: ignore[return-value]  # ints are items
        if isinstance(value, Ints):
            return list(value.items)
        return self.workshop.emit(unstack_ints, value.node)

    def known_ints(self, index: int, attribute: str | None = None) -> list[int] | None:
        """Return integers from an input or, in older opsets, an attribute; None where neither is there."""
        if self.has(index):
            return unstack_ints(self.const(index, attribute or "").tensor)
        given = self.attribute(attribute) if attribute else None
        return None if given is None else list(given)

    def shape(self, index: int) -> Shape | None:
        value = self.input(index)
        if isinstance(value, Const):
            return tuple(value.tensor.shape)
        if isinstance(value, Ints):
            return () if value.is_scalar else (len(value.items),)
        return value.shape

    def rank(self, index: int) -> int | None:
        shape = self.shape(index)
        return None if shape is None else len(shape)

    def known_rank(self, index: int = 0) -> int:
        rank = self.rank(index)
        if rank is None:
            raise NotConverted(f"the number of dimensions of input {index} is not known")
        return rank

    def axis(self, default: int, index: int = 0) -> int:
        """Return the attribute ``axis``, not negative where the rank is known."""
        axis, rank = int(self.attribute("axis", default)), self.rank(index)
        return axis + rank if axis < 0 and rank is not None else axis

    def is_floating(self, index: int) -> bool | None:
        value = self.input(index)
        if isinstance(value, Ints):
            return False
        dtype = value.tensor.dtype if isinstance(value, Const) else value.dtype
        return None if dtype is None else dtype.is_floating_point

    def parameter(self, value: Const, made: Callable[[Tensor], Tensor] | None = None, key: object = "") -> nn.Parameter:
        """Return a constant as a parameter; a matrix in the same form ``key`` is the same one for every use: tied weights."""
        return self.workshop.parameter(value, key, made or _itself)

    @property
    def anchor(self) -> fx.Node:
        """A tensor that lies where new ones should."""
        return self.workshop.anchor


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def broadcast_items(values: list[Value]) -> list[tuple[Item, ...]] | None:
    """Return sizes and integer constants as item lists of one length; None if one of them is something else."""
    lists: list[tuple[Item, ...]] = []
    for value in values:
        if isinstance(value, Ints):
            lists.append(value.items)
        elif isinstance(value, Const) and value.tensor.ndim < 2 and not value.tensor.is_floating_point():
            is_bool = value.tensor.dtype == torch.bool
            lists.append(tuple(bool(item) if is_bool else int(item) for item in value.tensor.reshape(-1).tolist()))
        else:
            return None
    length = max(map(len, lists))
    if any(len(one) not in {1, length} for one in lists):
        return None
    return [one * length if len(one) == 1 else one for one in lists]
