"""Reductions, arg-max and top-k."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pruning.from_onnx.node import Node
from pruning.from_onnx.registry import operator
from pruning.from_onnx.values import Call, Result


def product(x: Tensor, axes: list[int], keeps: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keeps)
    return x


def largest(x: Tensor, axes: list[int], keeps: bool) -> Tensor:
    if x.numel() == 0:
        return over_nothing(x, axes, keeps, is_largest=True)
    return torch.amax(x.to(torch.uint8) if x.dtype == torch.bool else x, axes, keeps).to(x.dtype)


def smallest(x: Tensor, axes: list[int], keeps: bool) -> Tensor:
    if x.numel() == 0:
        return over_nothing(x, axes, keeps, is_largest=False)
    return torch.amin(x.to(torch.uint8) if x.dtype == torch.bool else x, axes, keeps).to(x.dtype)


def over_nothing(x: Tensor, axes: list[int], keeps: bool, *, is_largest: bool) -> Tensor:
    """Return the extreme of no values: the least there is where the largest was asked, and the other way round."""
    if x.is_floating_point():
        value: float = float("-inf") if is_largest else float("inf")
    elif x.dtype == torch.bool:
        value = 0 if is_largest else 1
    else:
        value = torch.iinfo(x.dtype).min if is_largest else torch.iinfo(x.dtype).max
    return torch.full_like(x.sum(axes, keeps), value, dtype=x.dtype)


def mean(x: Tensor, axes: list[int], keeps: bool) -> Tensor:
    if x.is_floating_point():
        return torch.mean(x, axes, keeps)
    return torch.mean(x.to(torch.float64), axes, keeps).trunc().to(x.dtype)


def sum_of(x: Tensor, axes: list[int], keeps: bool) -> Tensor:
    return torch.sum(x, axes, keeps, dtype=x.dtype)


def sum_of_magnitudes(x: Tensor, axes: list[int], keeps: bool) -> Tensor:
    return torch.sum(x.abs(), axes, keeps, dtype=x.dtype)


def euclidean(x: Tensor, axes: list[int], keeps: bool) -> Tensor:
    wide = x if x.is_floating_point() else x.to(torch.float64)
    return torch.linalg.vector_norm(wide, 2, axes, keeps).to(x.dtype)


def sum_of_squares(x: Tensor, axes: list[int], keeps: bool) -> Tensor:
    return torch.sum(x.square(), axes, keeps, dtype=x.dtype)


def log_of_sum(x: Tensor, axes: list[int], keeps: bool) -> Tensor:
    return torch.log(torch.sum(x, axes, keeps)).to(x.dtype)


def log_of_sum_of_exponentials(x: Tensor, axes: list[int], keeps: bool) -> Tensor:
    return torch.logsumexp(x, axes, keeps)


REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceMean": mean, "ReduceSum": sum_of, "ReduceMax": largest, "ReduceMin": smallest, "ReduceProd": product,
    "ReduceL1": sum_of_magnitudes, "ReduceL2": euclidean, "ReduceSumSquare": sum_of_squares,
    "ReduceLogSum": log_of_sum, "ReduceLogSumExp": log_of_sum_of_exponentials,
}  # fmt: skip
EACH: dict[str, Callable[[Tensor], Tensor]] = {
    "ReduceL1": torch.abs, "ReduceL2": torch.abs, "ReduceSumSquare": torch.square, "ReduceLogSum": torch.log,
}  # fmt: skip


@operator(*REDUCTIONS)
def reduction(node: Node) -> Result:
    name, value = node.source.operator, node.input(0)
    function, keeps = REDUCTIONS[name], bool(node.attribute("keepdims", 1))
    axes: list[int] | None = node.known_ints(1, "axes")
    if not axes and node.attribute("noop_with_empty_axes", 0):
        return Call(EACH[name], (value,)) if name in EACH else value  # reduced over nothing
    if not axes:
        rank = node.rank(0)
        if rank is None:
            return Call(reduced_whole, (value, name, keeps))
        axes = list(range(rank))
    if not axes:
        return Call(reduced_whole, (value, name, keeps))
    if name == "ReduceMean" and node.is_floating(0):
        return Call(torch.mean, (value, axes, keeps))
    return Call(function, (value, axes, keeps))


@operator("ArgMax", "ArgMin")
def arg_extreme(node: Node) -> Result:
    args = (node.input(0), node.attribute("axis", 0), bool(node.attribute("keepdims", 1)))
    if node.attribute("select_last_index", 0):
        return Call(last_extreme, (*args, node.source.operator == "ArgMax"))
    return Call(torch.argmax if node.source.operator == "ArgMax" else torch.argmin, args)


@operator("TopK")
def top_k(node: Node) -> Result:
    count: Any = node.ints(1) if node.has(1) else [node.attribute("k")]
    args = (node.input(0), count, node.attribute("axis", -1), bool(node.attribute("largest", 1)))
    return Call(top, args, outputs=2)


@operator("CumSum")
def cumulative_sum(node: Node) -> Result:
    axis = node.const(1, "axis").tensor.reshape(-1)[0].item()
    return Call(
        summed_up,
        (node.input(0), int(axis), bool(node.attribute("exclusive", 0)), bool(node.attribute("reverse", 0))),
    )


def reduced_whole(x: Tensor, name: str, keeps: bool) -> Tensor:
    """Reduce over all dimensions; a tensor without dimensions is reduced over one that is made for it."""
    if x.ndim == 0:
        return REDUCTIONS[name](x.reshape(1), [0], False)
    return REDUCTIONS[name](x, list(range(x.ndim)), keeps)


def last_extreme(x: Tensor, axis: int, keeps: bool, is_largest: bool) -> Tensor:
    flipped = x.flip(axis)
    found = flipped.argmax(axis, keeps) if is_largest else flipped.argmin(axis, keeps)
    return x.shape[axis] - 1 - found


def top(x: Tensor, count: list[int], axis: int, is_largest: bool) -> tuple[Tensor, Tensor]:
    """Return the k extremes and their places; of equal values the first ones, in their order."""
    order = torch.argsort(x, dim=axis, descending=is_largest, stable=True).narrow(axis, 0, count[0])
    return torch.gather(x, axis, order), order


def summed_up(x: Tensor, axis: int, is_exclusive: bool, is_reversed: bool) -> Tensor:
    given = x.flip(axis) if is_reversed else x
    total = torch.cumsum(given, axis, dtype=x.dtype)
    total = total - given if is_exclusive else total
    return total.flip(axis) if is_reversed else total
