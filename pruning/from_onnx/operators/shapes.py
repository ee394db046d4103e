"""Operators that move values and change none of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere
from torch import Tensor, fx

from pruning.from_onnx.errors import NotConverted
from pruning.from_onnx.node import Node
from pruning.from_onnx.operators.constants import MOST_ELEMENTS, size_of
from pruning.from_onnx.registry import operator
from pruning.from_onnx.values import Call, Const, Ints, Item, Result, Traced, Value, make_ints


@operator("Reshape")
def reshape(node: Node) -> Result:
    value, shape = node.input(0), node.shape(0)
    sizes: Any = node.ints(1) if node.has(1) else list(node.attribute("shape"))
    if isinstance(value, Ints):
        return _reshaped_ints(node, value, sizes)
    keeps_zero = bool(node.attribute("allowzero", 0))
    if isinstance(sizes, list) and shape is not None and not (0 in sizes and keeps_zero):
        sizes = _said_by_place(node, value, sizes, shape)
    if isinstance(sizes, list) and shape is not None and len(sizes) == 2 and len(shape) > 2 and not keeps_zero:
        rest = [size for size in shape[1:] if size is not None]
        is_whole = len(rest) == len(shape) - 1 and sizes[1] in {-1, torch.Size(rest).numel()}
        if is_whole and (sizes[0] == 0 or _is_batch(sizes[0], shape[0], value)):
            return Call(torch.flatten, (value, 1))  # says what is meant, and stays true when channels go
    if isinstance(sizes, fx.Node) or (0 in sizes and not keeps_zero):
        return Call(reshaped, (value, sizes, keeps_zero))
    return Call(torch.reshape, (value, sizes))


@operator("Flatten")
def flatten(node: Node) -> Result:
    axis = node.axis(1)
    rank = node.rank(0)
    if axis == 1 and (rank is None or rank > 1):
        return Call(torch.flatten, (node.input(0), 1))
    return Call(flattened, (node.input(0), axis))


@operator("Transpose")
def transpose(node: Node) -> Result:
    order = node.attribute("perm") or list(reversed(range(node.known_rank())))
    return Call(torch.permute, (node.input(0), list(order)))


@operator("Squeeze")
def squeeze(node: Node) -> Result:
    value, axes = node.input(0), node.known_ints(1, "axes")
    if isinstance(value, Ints):
        return Ints(value.items, is_scalar=True) if len(value.items) == 1 else _no_shape(value)
    if axes is None:
        return Call(torch.squeeze, (value,))
    return Call(torch.squeeze, (value, tuple(axes)))


@operator("Unsqueeze")
def unsqueeze(node: Node) -> Result:
    value, axes = node.input(0), node.known_ints(1, "axes") or []
    if isinstance(value, Ints):
        return Ints(value.items) if value.is_scalar and axes in ([0], [-1]) else _no_shape(value)
    if len(axes) == 1:
        return Call(torch.unsqueeze, (value, axes[0]))
    return Call(unsqueezed, (value, axes))


@operator("Concat")
def concat(node: Node) -> Result:
    values, axis = node.all_inputs(), node.attribute("axis")
    if any(isinstance(value, Ints) for value in values):
        items = _joined(values)
        if items is not None:
            return make_ints(items, is_scalar=False, name=node.source.outputs[0])
    return values[0] if len(values) == 1 else Call(torch.cat, (values, axis))


@operator("Split")
def split(node: Node) -> Result:
    value, axis = node.input(0), node.attribute("axis", 0)
    sizes: Any = node.ints(1) if node.has(1) else node.attribute("split")
    count = len(node.source.outputs)
    if isinstance(value, Ints) and isinstance(sizes, list):
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        return tuple(Ints(value.items[a : a + size]) for a, size in zip(starts, sizes, strict=True))
    shape = node.shape(0)
    if sizes is None and shape is not None and (whole := shape[axis]) is not None:
        step = -(-whole // count)
        sizes = [max(0, min(step, whole - step * index)) for index in range(count)]
    if sizes is None:
        return _several(Call(split_evenly, (value, count, axis), outputs=count))
    return _several(Call(torch.split, (value, sizes, axis), outputs=count))


@operator("Expand")
def expand(node: Node) -> Result:
    value, sizes = node.input(0), node.ints(1)
    _refuse_giants(value, sizes)
    return Call(expanded, (value, sizes))


@operator("Tile")
def tile(node: Node) -> Result:
    value, repeats = node.input(0), node.ints(1)
    if isinstance(value, Const) and isinstance(repeats, list):
        known = [one for one in repeats if isinstance(one, int)]
        if value.tensor.numel() * max(torch.Size(known).numel(), 0) > MOST_ELEMENTS:
            raise NotConverted("it repeats a constant into a giant")
    return Call(torch.tile, (value, repeats))


@operator("Pad")
def pad(node: Node) -> Result:
    mode = node.attribute("mode", "constant")
    sizes: Any = node.ints(1) if node.has(1) else list(node.attribute("pads"))
    filler = node.optional(2) if node.has(2) else float(node.attribute("value", 0.0))
    if isinstance(filler, Const):
        filler = filler.tensor.reshape(-1)[0].item()
    rank = node.known_rank()
    axes = [axis % rank for axis in (node.known_ints(3) or range(rank))]
    if mode not in {"constant", "reflect", "edge", "wrap"}:
        raise NotConverted(f"padding mode {mode}")
    value = node.input(0)
    if isinstance(sizes, list) and all(isinstance(one, int) for one in sizes):
        wide = [0] * 2 * rank
        for index, axis in enumerate(axes):
            wide[axis], wide[axis + rank] = sizes[index], sizes[index + len(axes)]
        ordered = [size for axis in reversed(range(rank)) for size in (wide[axis], wide[axis + rank])]
        while len(ordered) > 2 and ordered[-2:] == [0, 0]:
            ordered = ordered[:-2]
        if mode == "constant" and isinstance(filler, int | float):
            return Call(F.pad, (value, ordered, "constant", filler))
        fits = rank in {3, 4, 5} and len(ordered) == 2 * (rank - 2) and min(ordered) >= 0 and node.is_floating(0)
        if mode in {"reflect", "edge"} and fits:
            return Call(F.pad, (value, ordered, "replicate" if mode == "edge" else mode))
    return Call(padded, (value, sizes, axes, mode, filler))


@operator("DepthToSpace")
def depth_to_space(node: Node) -> Result:
    size = node.attribute("blocksize")
    if node.attribute("mode", "DCR") == "CRD":
        return Call(torch.pixel_shuffle, (node.input(0), size))
    return Call(depth_into_space, (node.input(0), size))


@operator("SpaceToDepth")
def space_to_depth(node: Node) -> Result:
    if node.attribute("mode", "DCR") == "CRD":
        return Call(torch.pixel_unshuffle, (node.input(0), node.attribute("blocksize")))
    return Call(space_into_depth, (node.input(0), node.attribute("blocksize")))


@operator("Trilu")
def triangle(node: Node) -> Result:
    offset = int(node.number(1, 0))
    return Call(torch.triu if node.attribute("upper", 1) else torch.tril, (node.input(0), offset))


def reshaped(x: Tensor, sizes: list[int], keeps_zero: bool) -> Tensor:
    """Reshape; a zero copies the old size unless it is meant as one."""
    if not keeps_zero:
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def flattened(x: Tensor, axis: int) -> Tensor:
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(x.shape[:axis].numel(), x.shape[axis:].numel())


def unsqueezed(x: Tensor, axes: list[int]) -> Tensor:
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def split_evenly(x: Tensor, count: int, axis: int) -> tuple[Tensor, ...]:
    step = -(-x.shape[axis] // count)
    return torch.split(x, step, axis)


def expanded(x: Tensor, sizes: list[int]) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(sizes)))


def padded(x: Tensor, sizes: list[int], axes: list[int], mode: str, filler: Any) -> Tensor:
    """Pad any dimensions, by places that are computed one dimension at a time."""
    count = len(axes)
    for index, axis in enumerate(axes):
        before, after, old = sizes[index], sizes[index + count], x.shape[axis]
        if not before and not after:
            continue
        places = torch.arange(-before, old + after, device=x.device)
        if mode == "wrap":
            x = x.index_select(axis, places % old)
        elif mode == "reflect":
            period = max(1, 2 * (old - 1))
            folded = places % period
            x = x.index_select(axis, torch.where(folded < old, folded, period - folded))
        else:
            edge = x.index_select(axis, places.clamp(0, old - 1))
            if mode == "constant":
                shape = [1] * x.ndim
                shape[axis] = -1
                inside = ((places >= 0) & (places < old)).reshape(shape)
                value = torch.zeros((), dtype=x.dtype, device=x.device) if filler is None else filler
                edge = torch.where(inside, edge, torch.as_tensor(value, dtype=x.dtype, device=x.device))
            x = edge
    return x


def depth_into_space(x: Tensor, size: int) -> Tensor:
    batch, channels, height, width = x.shape
    parts = x.reshape(batch, size, size, channels // size**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(batch, channels // size**2, height * size, width * size)


def space_into_depth(x: Tensor, size: int) -> Tensor:
    batch, channels, height, width = x.shape
    parts = x.reshape(batch, channels, height // size, size, width // size, size).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(batch, channels * size**2, height // size, width // size)


def _is_batch(size: Item, known: int | None, value: Value) -> bool:
    """Is this item of a new shape the first size of the tensor itself?"""
    if isinstance(size, int):
        return known is not None and size == known
    if not isinstance(value, Traced) or len(size.args) != 2:
        return False
    return size.args[0] is value.node and bool(size.args[1] == 0)


def _said_by_place(node: Node, value: Value, sizes: list[Any], shape: tuple[int | None, ...]) -> list[Any]:
    """Return the sizes with those that are copied from the tensor read off it, so that they stay true when channels go.

    A batch that the file baked in is one of them. Where dimensions are merged at the end, the last one is what is left.
    """
    made = list(sizes)
    for axis, (size, known) in enumerate(zip(sizes, shape, strict=False)):
        is_batch = axis == 0 and size == node.workshop.baked_batch
        if isinstance(size, int) and size > 0 and isinstance(value, Traced) and (size == known or is_batch):
            made[axis] = node.workshop.emit(size_of, value, axis)
        elif size == 0 or not isinstance(size, int) or size == known:
            continue
        else:
            break
    if len(sizes) < len(shape) and len(sizes) > 1 and isinstance(sizes[-1], int) and sizes[-1] > 0 and -1 not in sizes:
        made[-1] = -1
    return made


def _reshaped_ints(node: Node, value: Ints, sizes: Any) -> Result:
    if sizes == [] and len(value.items) == 1:
        return Ints(value.items, is_scalar=True)
    if isinstance(sizes, list) and len(sizes) == 1 and sizes[0] in {-1, len(value.items)}:
        return Ints(value.items)
    return Call(torch.reshape, (value, sizes))


def _no_shape(value: Ints) -> Result:
    raise NotConverted(f"{len(value.items)} sizes in a shape that sizes do not have")


def _joined(values: list[Value]) -> tuple[Item, ...] | None:
    items: list[Item] = []
    for value in values:
        if isinstance(value, Ints) and not value.is_scalar:
            items.extend(value.items)
        elif isinstance(value, Const) and value.tensor.ndim == 1 and not value.tensor.is_floating_point():
            items.extend(int(one) for one in value.tensor.tolist())
        else:
            return None
    return tuple(items)


def _several(call: Call) -> Call:
    return call if call.outputs > 1 else Call(first_of, (call.function, call.args))


def first_of(function: Any, args: tuple[Any, ...]) -> Any:
    return function(*args)[0]


def _refuse_giants(value: Value, sizes: Any) -> None:
    if isinstance(value, Const) and isinstance(sizes, list) and all(isinstance(one, int) for one in sizes):
        count = torch.broadcast_shapes(value.tensor.shape, tuple(sizes)).numel()
        if count > MOST_ELEMENTS:
            raise NotConverted(f"it expands a constant to {count} elements")
