"""Slices, gathers and scatters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pruning.from_onnx.errors import NeedsConstant, NotConverted
from pruning.from_onnx.node import Node
from pruning.from_onnx.operators.layers import embedding
from pruning.from_onnx.registry import operator
from pruning.from_onnx.values import Call, Const, Ints, Result, Traced, make_ints

FAR = 2**62  # beyond any size: ONNX says "to the end" by the largest integer, and backwards by the smallest


@operator("Slice")
def slices(node: Node) -> Result:
    if node.has(1):
        starts, ends = node.ints(1), node.ints(2)
        axes: Any = node.known_ints(3)
        steps: Any = node.known_ints(4)
    else:
        starts, ends = list(node.attribute("starts")), list(node.attribute("ends"))
        axes, steps = node.attribute("axes"), None
    if not isinstance(starts, list) or not isinstance(ends, list):
        raise NeedsConstant("its bounds are computed from data")
    axes = list(axes) if axes is not None else list(range(len(starts)))
    steps = list(steps) if steps is not None else [1] * len(starts)
    value = node.input(0)
    if isinstance(value, Ints):
        if all(isinstance(one, int) for one in (*starts, *ends)):
            items = value.items[_python_slice(starts[0], ends[0], steps[0])]
            return make_ints(items, is_scalar=False, name=node.source.outputs[0])
        raise NotConverted("sizes cut at a computed place")
    return Call(sliced, (value, starts, ends, axes, steps))


@operator("Gather")
def gather(node: Node) -> Result:
    value, indices, axis = node.input(0), node.input(1), node.axis(0)
    if isinstance(value, Ints) and isinstance(indices, Const):
        picked = tuple(value.items[int(index)] for index in indices.tensor.reshape(-1).tolist())
        return make_ints(picked, is_scalar=indices.tensor.ndim == 0, name=node.source.outputs[0])
    if (
        isinstance(value, Const)
        and isinstance(indices, Traced)
        and axis == 0
        and value.tensor.ndim == 2
        and value.is_weight
    ):
        return embedding(node, value, indices)
    if isinstance(indices, Const) and indices.tensor.ndim == 0:
        return Call(torch.select, (value, axis, int(indices.tensor.item())))
    return Call(gathered, (value, indices, axis))


@operator("GatherElements")
def gather_elements(node: Node) -> Result:
    return Call(elements_gathered, (node.input(0), node.input(1), node.axis(0)))


@operator("GatherND")
def gather_nd(node: Node) -> Result:
    return Call(gathered_nd, (node.input(0), node.input(1), node.attribute("batch_dims", 0)))


@operator("ScatterElements", "Scatter")
def scatter_elements(node: Node) -> Result:
    reduction = node.attribute("reduction", "none")
    return Call(scattered, (node.input(0), node.input(1), node.input(2), node.axis(0), reduction))


@operator("ScatterND")
def scatter_nd(node: Node) -> Result:
    reduction = node.attribute("reduction", "none")
    return Call(scattered_nd, (node.input(0), node.input(1), node.input(2), reduction))


@operator("OneHot")
def one_hot(node: Node) -> Result:
    depth = int(node.number(1))
    return Call(one_hot_of, (node.input(0), depth, node.input(2), node.attribute("axis", -1)))


@operator("NonZero")
def non_zero(node: Node) -> Result:
    return Call(places_not_zero, (node.input(0),))


@operator("Compress")
def compress(node: Node) -> Result:
    return Call(compressed, (node.input(0), node.input(1), node.attribute("axis")))


@operator("ReverseSequence")
def reverse_sequence(node: Node) -> Result:
    return Call(
        reversed_sequences,
        (node.input(0), node.input(1), node.attribute("batch_axis", 1), node.attribute("time_axis", 0)),
    )


def sliced(x: Tensor, starts: list[int], ends: list[int], axes: list[int], steps: list[int]) -> Tensor:
    """Slice as Python does, backwards too."""
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        bounds = _python_slice(start, end, step).indices(x.shape[axis])
        if step > 0:
            places = [slice(None)] * (axis % x.ndim) + [slice(bounds[0], max(bounds[0], bounds[1]), step)]
            x = x[tuple(places)]
        else:
            x = x.index_select(axis, torch.arange(*bounds, device=x.device))
    return x


def gathered(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    axis = axis % x.ndim
    places = torch.where(indices < 0, indices + x.shape[axis], indices)
    picked = x.index_select(axis, places.reshape(-1))
    return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def elements_gathered(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    return torch.gather(x, axis, _from_start(indices, x.shape[axis]))


def gathered_nd(x: Tensor, indices: Tensor, batch_dims: int) -> Tensor:
    depth, batch = indices.shape[-1], x.shape[:batch_dims]
    flat = x.reshape(batch.numel(), *x.shape[batch_dims:])
    places = indices.reshape(batch.numel(), -1, depth)
    lines = torch.arange(batch.numel(), device=x.device)[:, None].expand(places.shape[:2])
    columns = [_from_start(places[..., index], flat.shape[index + 1]) for index in range(depth)]
    picked = flat[(lines, *columns)]
    return picked.reshape(*indices.shape[:-1], *x.shape[batch_dims + depth :])


REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scattered(x: Tensor, indices: Tensor, updates: Tensor, axis: int, reduction: str) -> Tensor:
    places = _from_start(indices, x.shape[axis])
    if reduction == "none":
        return torch.scatter(x, axis, places, updates)
    return torch.scatter_reduce(x, axis, places, updates, REDUCE[reduction])


def scattered_nd(x: Tensor, indices: Tensor, updates: Tensor, reduction: str) -> Tensor:
    depth = indices.shape[-1]
    inner = x.shape[depth:].numel()
    flat = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=x.device)
    for index in range(depth):
        flat = flat * x.shape[index] + _from_start(indices[..., index], x.shape[index])
    places = flat.reshape(-1)[:, None].expand(-1, inner)
    rows, values = x.reshape(-1, inner), updates.reshape(-1, inner)
    return scattered(rows, places, values, 0, reduction).reshape(x.shape)


def one_hot_of(indices: Tensor, depth: int, values: Tensor, axis: int) -> Tensor:
    places = indices.to(torch.int64)
    axis = axis + places.ndim + 1 if axis < 0 else axis
    shape = [1] * (places.ndim + 1)
    shape[axis] = depth
    classes = torch.arange(depth, device=indices.device).reshape(shape)
    is_hot = classes == torch.where(places < 0, places + depth, places).unsqueeze(axis)
    return torch.where(is_hot, values[1], values[0])


def places_not_zero(x: Tensor) -> Tensor:
    return torch.nonzero(x).t()


def compressed(x: Tensor, condition: Tensor, axis: int | None) -> Tensor:
    x, axis = (x.reshape(-1), 0) if axis is None else (x, axis)
    return x.index_select(axis, torch.nonzero(condition).reshape(-1))


def reversed_sequences(x: Tensor, lengths: Tensor, batch_axis: int, time_axis: int) -> Tensor:
    times = torch.arange(x.shape[time_axis], device=x.device)[None]
    ends = lengths.reshape(-1, 1)
    places = torch.where(times < ends, ends - 1 - times, times)  # (batch, time)
    places = places if batch_axis < time_axis else places.t()
    shape = [size if axis in {batch_axis, time_axis} else 1 for axis, size in enumerate(x.shape)]
    return torch.gather(x, time_axis, places.reshape(shape).expand(x.shape))


def _from_start(indices: Tensor, size: int) -> Tensor:
    places = indices.to(torch.int64)
    return torch.where(places < 0, places + size, places)


def _python_slice(start: Any, end: Any, step: int) -> slice:
    """Return bounds that torch's 64-bit integers hold; before the beginning is None where it goes backwards."""
    first = max(-FAR, min(FAR, start)) if isinstance(start, int) else start
    last = max(-FAR, min(FAR, end)) if isinstance(end, int) else end
    return slice(first, last, step)
