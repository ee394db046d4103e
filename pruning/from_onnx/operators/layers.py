"""Layers with weights: convolutions, linear layers, embeddings. With weights computed from data they become functions."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere
from torch import Tensor, nn

from pruning.from_onnx.errors import NotConverted
from pruning.from_onnx.node import Node
from pruning.from_onnx.registry import operator
from pruning.from_onnx.values import Call, Const, Layer, Result, Value

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
Window = tuple[list[int], list[int], list[int]]


def window(node: Node, kernel: list[int]) -> tuple[list[int], list[int]]:
    """Return strides and dilations, one a spatial dimension."""
    count = len(kernel)
    return list(node.attribute("strides") or [1] * count), list(node.attribute("dilations") or [1] * count)


def padding(
    node: Node, kernel: list[int], strides: list[int], dilations: list[int]
) -> tuple[list[int], list[int]] | None:
    """Return the padding before and after each spatial dimension; None where it depends on sizes that are not known."""
    count, automatic = len(kernel), node.attribute("auto_pad", "NOTSET")
    if automatic == "VALID":
        return [0] * count, [0] * count
    if automatic == "NOTSET":
        pads = list(node.attribute("pads") or [0] * 2 * count)
        return pads[:count], pads[count:]
    if automatic not in {"SAME_UPPER", "SAME_LOWER"}:
        raise NotConverted(f"auto_pad {automatic}")
    shape = node.shape(0)
    sizes = (None,) * count if shape is None else shape[2:]
    totals: list[int] = []
    for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        if size is None and s > 1:
            return None
        totals.append(same_padding(size or s, k, s, d))
    less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (less, more) if automatic == "SAME_UPPER" else (more, less)


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> int:
    """Return how much padding a dimension needs so that ``ceil(size / stride)`` comes out."""
    return max(0, (-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size)


def padded_same(
    x: Tensor, kernel: list[int], strides: list[int], dilations: list[int], is_upper: bool, value: float = 0.0
) -> Tensor:
    """Pad so that ``ceil(size / stride)`` comes out, for sizes that are known only now."""
    pads: list[int] = []
    for axis in reversed(range(len(kernel))):
        total = same_padding(x.shape[axis + 2], kernel[axis], strides[axis], dilations[axis])
        pads += [total // 2, total - total // 2] if is_upper else [total - total // 2, total // 2]
    return F.pad(x, pads, value=value)


def spread(before: list[int], after: list[int]) -> list[int]:
    """Return padding in the order of ``torch.nn.functional.pad``: last dimension first."""
    return [size for pair in zip(reversed(before), reversed(after), strict=True) for size in pair]


@operator("Conv")
def conv(node: Node) -> Result:
    value, weight = node.input(0), node.input(1)
    shape = node.shape(1)
    kernel = node.attribute("kernel_shape") or (None if shape is None else list(shape[2:]))
    if kernel is None or None in kernel or len(kernel) not in CONVOLUTIONS:
        raise NotConverted("convolutions have one to three spatial dimensions of known kernel size here")
    strides, dilations = window(node, kernel)
    pads = padding(node, kernel, strides, dilations)
    given: Value | Call = value
    if pads is None:
        is_upper = node.attribute("auto_pad") == "SAME_UPPER"
        given = _emitted(node, padded_same, value, kernel, strides, dilations, is_upper)
        pads = [0] * len(kernel), [0] * len(kernel)
    if pads[0] != pads[1]:
        given, pads = _emitted(node, F.pad, given, spread(*pads)), ([0] * len(kernel), [0] * len(kernel))
    groups, bias = node.attribute("group", 1), node.optional(2)
    if isinstance(weight, Const) and (bias is None or isinstance(bias, Const)):
        outputs, inputs = weight.tensor.shape[0], weight.tensor.shape[1] * groups
        layer = _empty(
            CONVOLUTIONS[len(kernel)], inputs, outputs, tuple(kernel), stride=tuple(strides), padding=tuple(pads[0]),
            dilation=tuple(dilations), groups=groups, bias=bias is not None,
        )  # fmt: skip
        _furnish(node, layer, weight, bias)
        return Layer(layer, (given,), weight)
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(kernel)]
    return Call(function, (given, weight, bias, strides, pads[0], dilations, groups))


@operator("ConvTranspose")
def conv_transpose(node: Node) -> Result:
    value, weight, bias = node.input(0), node.input(1), node.optional(2)
    shape, sizes = node.shape(1), node.shape(0)
    kernel = node.attribute("kernel_shape") or (None if shape is None else list(shape[2:]))
    if kernel is None or None in kernel or len(kernel) not in TRANSPOSED:
        raise NotConverted("transposed convolutions have one to three spatial dimensions of known kernel size here")
    count = len(kernel)
    strides, dilations = window(node, kernel)
    extra = list(node.attribute("output_padding") or [0] * count)
    automatic, wanted = node.attribute("auto_pad", "NOTSET"), node.attribute("output_shape")
    if wanted is not None or automatic.startswith("SAME"):
        before, after = [], []
        for axis in range(count):
            full = strides[axis] * -1 + extra[axis] + (kernel[axis] - 1) * dilations[axis] + 1
            if wanted is not None:
                size = None if sizes is None else sizes[axis + 2]
                if size is None:
                    raise NotConverted("output_shape needs inputs of a known size")
                total = strides[axis] * size + full - wanted[-count:][axis]
            else:
                total = full  # the output is the input times the stride
            if total < 0:
                extra[axis], total = extra[axis] - total, 0
            small, large = total // 2, total - total // 2
            before.append(small if automatic == "SAME_UPPER" else large)
            after.append(large if automatic == "SAME_UPPER" else small)
    else:
        before, after = padding(node, kernel, strides, dilations) or ([], [])
    # torch takes as much off both ends; the rest of what the file takes off goes afterwards.
    common = [min(pair) for pair in zip(before, after, strict=True)]
    rest = [a - c for a, c in zip(before, common, strict=True)], [a - c for a, c in zip(after, common, strict=True)]
    for axis in range(count):  # what is added and taken off again need not be computed; torch allows little of it
        both = min(extra[axis], rest[1][axis])
        extra[axis], rest[1][axis] = extra[axis] - both, rest[1][axis] - both
        if extra[axis] >= max(strides[axis], dilations[axis]):
            raise NotConverted("torch adds less than a stride at the end of a transposed convolution")
    groups = node.attribute("group", 1)
    if isinstance(weight, Const) and (bias is None or isinstance(bias, Const)):
        inputs, outputs = weight.tensor.shape[0], weight.tensor.shape[1] * groups
        layer = _empty(
            TRANSPOSED[count], inputs, outputs, tuple(kernel), stride=tuple(strides), padding=tuple(common),
            output_padding=tuple(extra), groups=groups, dilation=tuple(dilations), bias=bias is not None,
        )  # fmt: skip
        _furnish(node, layer, weight, bias)
        if any(rest[0]) or any(rest[1]):
            cut = [-size for size in spread(*rest)]
            return Layer(layer, (value,), weight, after=F.pad, after_args=(cut,))
        return Layer(layer, (value,), weight)
    function = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[count]
    made = _emitted(node, function, value, weight, bias, strides, common, extra, groups, dilations)
    return Call(F.pad, (made, [-size for size in spread(*rest)]))


@operator("Gemm")
def gemm(node: Node) -> Result:
    value, weight, bias = node.input(0), node.input(1), node.optional(2)
    alpha, beta = float(node.attribute("alpha", 1.0)), float(node.attribute("beta", 1.0))
    is_turned = bool(node.attribute("transB", 0))
    if isinstance(weight, Const) and not node.attribute("transA", 0) and (bias is None or isinstance(bias, Const)):
        width = weight.tensor.shape[0 if is_turned else 1]
        if bias is None or bias.tensor.numel() in {1, width}:

            def turned(tensor: Tensor) -> Tensor:
                return (
                    (tensor if is_turned else tensor.t()) * alpha
                    if alpha != 1
                    else (tensor if is_turned else tensor.t())
                )

            def stretched(tensor: Tensor) -> Tensor:
                return (tensor.reshape(-1) * beta if beta != 1 else tensor.reshape(-1)).expand(width)

            made = node.parameter(weight, turned, "" if is_turned and alpha == 1 else ("linear", is_turned, alpha))
            layer = _empty(nn.Linear, made.shape[1], made.shape[0], bias=bias is not None)
            layer.weight = made
            if bias is not None:
                key = "" if bias.tensor.shape == (width,) and beta == 1 else ("bias", width, beta)
                layer.bias = node.parameter(bias, stretched, key)
            return Layer(layer, (value,), weight)
    return Call(general_product, (value, weight, bias, alpha, beta, bool(node.attribute("transA", 0)), is_turned))


@operator("MatMul")
def matmul(node: Node) -> Result:
    value, weight = node.input(0), node.input(1)
    if isinstance(weight, Const) and weight.tensor.ndim == 2 and weight.is_weight and not isinstance(value, Const):
        layer = _empty(nn.Linear, weight.tensor.shape[0], weight.tensor.shape[1], bias=False)
        layer.weight = node.parameter(weight, torch.t, ("linear", False, 1.0))
        return Layer(layer, (value,), weight)
    return Call(torch.matmul, (value, weight))


def embedding(node: Node, table: Const, indices: Value) -> Result:
    """Convert a lookup of rows; ``indices`` are not negative, as in every model that embeds tokens."""
    layer = _empty(nn.Embedding, table.tensor.shape[0], table.tensor.shape[1])
    layer.weight = node.parameter(table)
    return Layer(layer, (indices,), table)


@operator("Einsum")
def einsum(node: Node) -> Result:
    return Call(torch.einsum, (node.attribute("equation").replace(" ", ""), *node.all_inputs()))


def general_product(
    a: Tensor, b: Tensor, c: Tensor | None, alpha: float, beta: float, turn_a: bool, turn_b: bool
) -> Tensor:
    product = torch.matmul(a.t() if turn_a else a, b.t() if turn_b else b)
    product = product if alpha == 1 else product * alpha
    if c is None:
        return product
    return (product + (c if beta == 1 else c * beta)).to(product.dtype)


def _empty(kind: Any, *args: Any, **options: Any) -> Any:
    """Make a layer without spending time on random weights."""
    return kind(*args, **options, device="meta")


def _furnish(node: Node, layer: Any, weight: Const, bias: Const | Literal[None]) -> None:
    if tuple(layer.weight.shape) != tuple(weight.tensor.shape):
        raise NotConverted(f"weights of shape {tuple(weight.tensor.shape)} where {tuple(layer.weight.shape)} fits")
    layer.weight = node.parameter(weight)
    if bias is not None:
        layer.bias = node.parameter(bias)


def _emitted(node: Node, function: Any, *args: Any) -> Any:
    from pruning.from_onnx.values import Traced

    return Traced(node.workshop.emit(function, *args))
