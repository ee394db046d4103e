"""Constants, casts and values made out of nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.from_onnx.errors import NotConverted
from pruning.from_onnx.node import Node
from pruning.from_onnx.reading import DTYPES
from pruning.from_onnx.registry import operator
from pruning.from_onnx.values import Call, Const, Ints, Item, Result, Traced, make_ints

MOST_ELEMENTS = 2**27  # of a tensor made from a few bytes of a file that nobody vouches for


@operator("Constant")
def constant(node: Node) -> Result:
    attributes = node.source.attributes
    name = node.source.outputs[0]
    if "value" in attributes:
        # A few numbers are part of a formula; a table is somebody's weight, whichever way it was written down.
        tensor = attributes["value"]
        return Const(tensor, name, is_weight=tensor.is_floating_point() and tensor.ndim > 1)
    for key, dtype in (
        ("value_float", torch.float32),
        ("value_floats", torch.float32),
        ("value_int", torch.int64),
        ("value_ints", torch.int64),
    ):
        if key in attributes:
            return Const(torch.tensor(attributes[key], dtype=dtype), name)
    raise NotConverted("only dense numbers are constants here")


@operator("Identity")
def identity(node: Node) -> Result:
    value = node.input(0)
    return Const(value.tensor, node.source.outputs[0], value.is_weight) if isinstance(value, Const) else value


@operator("Cast")
def cast(node: Node) -> Result:
    target = node.attribute("to")
    if target not in DTYPES:
        raise NotConverted(f"torch has no dtype for ONNX type {target}")
    dtype, value = DTYPES[target], node.input(0)
    if isinstance(value, Ints) and dtype in {torch.int64, torch.int32}:
        return value  # sizes are Python integers
    if isinstance(value, Traced) and value.dtype == dtype:
        return value
    return Call(cast_to, (value, dtype))


@operator("CastLike")
def cast_like(node: Node) -> Result:
    return Call(cast_as, (node.input(0), node.input(1)))


@operator("Shape")
def shape(node: Node) -> Result:
    value = node.input(0)
    rank = node.known_rank()
    start, end, _ = slice(node.attribute("start", 0), node.attribute("end")).indices(rank)
    if isinstance(value, Traced):
        known = value.shape or ()
        items: list[Item] = []
        for axis in range(start, end):
            whole = known[axis]
            items.append(node.workshop.emit(size_of, value, axis) if whole is None else whole)
    else:
        items = [whole or 0 for whole in (node.shape(0) or ())[start:end]]
    return make_ints(tuple(items), is_scalar=False, name=node.source.outputs[0])


@operator("Size")
def size(node: Node) -> Result:
    known = node.shape(0)
    if known is not None and all(one is not None for one in known):
        return Const(torch.tensor(torch.Size(one or 0 for one in known).numel()), node.source.outputs[0])
    return Ints((node.workshop.emit(torch.numel, node.input(0)),), is_scalar=True)


@operator("ConstantOfShape")
def constant_of_shape(node: Node) -> Result:
    value = node.attribute("value", torch.zeros(1))
    sizes = node.ints(0)
    if isinstance(sizes, list) and all(isinstance(one, int) for one in sizes):
        _refuse_giants([one for one in sizes if isinstance(one, int)])
        return Const(torch.full(sizes, value.reshape(-1)[0].item(), dtype=value.dtype), node.source.outputs[0])  # type: ignore[arg-type]
    return Call(filled, (sizes, value.reshape(-1)[0].item(), value.dtype, Traced(node.anchor)))


@operator("Range")
def arange(node: Node) -> Result:
    values = [node.input(index) for index in range(3)]
    if all(isinstance(one, Const) for one in values):
        start, limit, delta = (one.tensor.item() for one in values if isinstance(one, Const))
        _refuse_giants([max(0, int((limit - start) / delta))])
    bounds = [one.items[0] if isinstance(one, Ints) else one for one in values]
    return Call(counted, tuple(bounds))


@operator("EyeLike")
def eye_like(node: Node) -> Result:
    dtype = DTYPES[node.attribute("dtype")] if node.attribute("dtype") else None
    return Call(diagonal_like, (node.input(0), node.attribute("k", 0), dtype))


def cast_to(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the tensor in another dtype; out of an unsigned detour, so that -1.0 is 255 in uint8 everywhere."""
    if x.is_floating_point() and dtype in {torch.uint8, torch.uint16, torch.uint32}:
        return x.to(torch.int64).to(dtype)
    return x.to(dtype)


def cast_as(x: Tensor, like: Tensor) -> Tensor:
    return cast_to(x, like.dtype)


def size_of(x: Tensor, axis: int) -> int:
    return x.size(axis)


def filled(sizes: list[int], value: float, dtype: torch.dtype, like: Tensor) -> Tensor:
    return torch.full(sizes, value, dtype=dtype, device=like.device)


def counted(start: Tensor | int, limit: Tensor | int, delta: Tensor | int) -> Tensor:
    given = [one for one in (start, limit, delta) if isinstance(one, Tensor)]
    first, last, step = (one.item() if isinstance(one, Tensor) else one for one in (start, limit, delta))
    dtype = given[0].dtype if given else torch.int64
    return torch.arange(first, last, step, dtype=dtype, device=given[0].device if given else None)


def diagonal_like(x: Tensor, offset: int, dtype: torch.dtype | None) -> Tensor:
    rows, columns = x.shape
    lines = torch.arange(rows, device=x.device)[:, None]
    return (torch.arange(columns, device=x.device)[None] - lines == offset).to(dtype or x.dtype)


def _refuse_giants(sizes: list[int]) -> None:
    if torch.Size(sizes).numel() > MOST_ELEMENTS:
        raise NotConverted(f"it makes a constant of {torch.Size(sizes).numel()} elements")
