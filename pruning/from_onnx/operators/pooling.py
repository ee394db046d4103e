"""Pooling, windowed and global."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere
from torch import Tensor

from pruning.from_onnx.errors import NotConverted
from pruning.from_onnx.node import Node
from pruning.from_onnx.operators.layers import padded_same, padding, spread, window
from pruning.from_onnx.registry import operator
from pruning.from_onnx.values import Call, Result, Traced

MAX: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
CONVOLVE: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@operator("MaxPool")
def max_pool(node: Node) -> Result:
    kernel, strides, dilations, before, after, value = _read(node, float("-inf"))
    is_ceiled, has_indices = bool(node.attribute("ceil_mode", 0)), node.gives(1)
    fits = before == after and all(2 * pad <= k for pad, k in zip(before, kernel, strict=True))
    if has_indices:
        if not fits or node.attribute("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
            raise NotConverted("it gives indices and pads unevenly")
        is_by_column = bool(node.attribute("storage_order", 0))
        return Call(
            max_pooled_with_indices, (value, kernel, strides, before, dilations, is_ceiled, is_by_column), outputs=2
        )
    is_float = node.is_floating(0)
    if fits and is_float:
        return Call(MAX[len(kernel)], (value, kernel, strides, before, dilations, is_ceiled))
    return Call(max_pooled, (value, kernel, strides, spread(before, after), dilations, is_ceiled))


@operator("AveragePool")
def average_pool(node: Node) -> Result:
    kernel, strides, dilations, before, after, value = _read(node, 0.0, keeps_count=True)
    is_ceiled, counts_padding = bool(node.attribute("ceil_mode", 0)), bool(node.attribute("count_include_pad", 0))
    fits = before == after and all(2 * pad <= k for pad, k in zip(before, kernel, strict=True))
    if fits and all(one == 1 for one in dilations):
        return Call(AVERAGE[len(kernel)], (value, kernel, strides, before, is_ceiled, counts_padding))
    return Call(averaged, (value, kernel, strides, spread(before, after), dilations, is_ceiled, counts_padding))


@operator("LpPool")
def lp_pool(node: Node) -> Result:
    kernel, strides, dilations, before, after, value = _read(node, 0.0)
    order = float(node.attribute("p", 2))
    args = (value, kernel, strides, spread(before, after), dilations, bool(node.attribute("ceil_mode", 0)), order)
    return Call(lp_pooled, args)


@operator("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(node: Node) -> Result:
    axes = tuple(range(2, node.known_rank()))
    if node.source.operator == "GlobalAveragePool":
        return Call(torch.mean, (node.input(0), axes, True))
    if node.source.operator == "GlobalMaxPool":
        return Call(torch.amax, (node.input(0), axes, True))
    return Call(torch.linalg.vector_norm, (node.input(0), float(node.attribute("p", 2)), axes, True))


def max_pooled(
    x: Tensor, kernel: list[int], strides: list[int], pads: list[int], dilations: list[int], is_ceiled: bool
) -> Tensor:
    """Pool with padding of any size, and integers too."""
    wide = x if x.is_floating_point() else x.to(torch.float64)
    padded = F.pad(wide, pads, value=float("-inf"))
    pooled: Tensor = MAX[len(kernel)](padded, kernel, strides, 0, dilations, is_ceiled)
    return pooled.to(x.dtype)


def max_pooled_with_indices(
    x: Tensor, kernel: list[int], strides: list[int], pads: list[int], dilations: list[int], is_ceiled: bool,
    is_by_column: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the largest values and where they lie in the whole tensor, row by row or column by column."""
    pooled, index = MAX[len(kernel)](x, kernel, strides, pads, dilations, is_ceiled, return_indices=True)
    spatial = x.shape[2:]
    if is_by_column:
        places, rest, stride = torch.zeros_like(index), index, 1
        coordinates = []
        for size in reversed(spatial):
            coordinates.append(rest % size)
            rest = rest // size
        for coordinate, size in zip(reversed(coordinates), spatial, strict=True):
            places, stride = places + coordinate * stride, stride * size
        index = places
    images = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(*x.shape[:2], *[1] * len(spatial))
    return pooled, index + images * spatial.numel()


def averaged(
    x: Tensor, kernel: list[int], strides: list[int], pads: list[int], dilations: list[int], is_ceiled: bool,
    counts_padding: bool,
) -> Tensor:  # fmt: skip
    """Average over windows with any padding and dilation: sums divided by how many values they are of."""
    sums = summed(F.pad(x, pads), kernel, strides, dilations, is_ceiled)
    ones = torch.ones_like(x[:1, :1])
    counts = F.pad(ones, pads, value=1.0 if counts_padding else 0.0)
    return sums / summed(counts, kernel, strides, dilations, is_ceiled)


def summed(x: Tensor, kernel: list[int], strides: list[int], dilations: list[int], is_ceiled: bool) -> Tensor:
    """Sum over windows, each channel by itself; with ``is_ceiled`` windows may begin inside and end outside."""
    over: list[int] = []
    for size, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        span, missing = (k - 1) * d + 1, 0
        if is_ceiled and (size - span) % s:
            last = -(-(size - span) // s) * s  # where the last window begins
            missing = max(0, last + span - size) if last < size else 0
        over = [0, missing, *over]
    batch, channels = x.shape[:2]
    alone = F.pad(x, over).reshape(
        batch * channels, 1, *[a + b for a, b in zip(x.shape[2:], over[1::2][::-1], strict=True)]
    )
    ones = torch.ones(1, 1, *kernel, dtype=x.dtype, device=x.device)
    sums: Tensor = CONVOLVE[len(kernel)](alone, ones, None, strides, 0, dilations)
    return sums.reshape(batch, channels, *sums.shape[2:])


def lp_pooled(
    x: Tensor, kernel: list[int], strides: list[int], pads: list[int], dilations: list[int], is_ceiled: bool,
    order: float,
) -> Tensor:  # fmt: skip
    return summed(F.pad(x, pads).abs() ** order, kernel, strides, dilations, is_ceiled) ** (1 / order)


def _read(
    node: Node, filler: float, *, keeps_count: bool = False
) -> tuple[list[int], list[int], list[int], list[int], list[int], Any]:
    kernel = list(node.attribute("kernel_shape"))
    if len(kernel) not in MAX:
        raise NotConverted("pooling has one to three spatial dimensions here")
    strides, dilations = window(node, kernel)
    pads = padding(node, kernel, strides, dilations)
    if pads is not None:
        return kernel, strides, dilations, *pads, node.input(0)
    if keeps_count:
        raise NotConverted("auto_pad needs inputs of a known size")
    is_upper = node.attribute("auto_pad") == "SAME_UPPER"
    padded = node.workshop.emit(padded_same, node.input(0), kernel, strides, dilations, is_upper, filler)
    return kernel, strides, dilations, [0] * len(kernel), [0] * len(kernel), Traced(padded)
