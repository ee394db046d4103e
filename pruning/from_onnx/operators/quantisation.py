"""Quantised files: values are rounded as the file says, arithmetic stays in floating point."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from pruning.from_onnx.errors import NotConverted
from pruning.from_onnx.node import Node
from pruning.from_onnx.registry import operator
from pruning.from_onnx.values import Call, Const, Result, Traced

RANGES = {torch.uint8: (0, 255), torch.int8: (-128, 127), torch.uint16: (0, 65535), torch.int16: (-32768, 32767)}


@operator("QuantizeLinear")
def quantize(node: Node) -> Result:
    zero = node.optional(2)
    dtype = torch.uint8
    if isinstance(zero, Const):
        dtype = zero.tensor.dtype
    elif isinstance(zero, Traced) and zero.dtype is not None:
        dtype = zero.dtype
    elif node.attribute("output_dtype"):
        raise NotConverted("a dtype without a zero point")
    _check(node, dtype)
    return Call(quantized, (node.input(0), node.input(1), zero, dtype, node.attribute("axis", 1)))


@operator("DequantizeLinear")
def dequantize(node: Node) -> Result:
    value, scale, zero = node.input(0), node.input(1), node.optional(2)
    _check(node, torch.uint8)
    straight = _straight(node)
    if straight is not None:
        return straight
    return Call(dequantized, (value, scale, zero, node.attribute("axis", 1)))


def quantized(x: Tensor, scale: Tensor, zero: Tensor | None, dtype: torch.dtype, axis: int) -> Tensor:
    low, high = RANGES[dtype]
    rounded = torch.round(x / along(scale.to(x.dtype), x, axis))
    if zero is not None:
        rounded = rounded + along(zero.to(x.dtype), x, axis)
    return rounded.clamp(low, high).to(torch.int32).to(dtype)


def dequantized(x: Tensor, scale: Tensor, zero: Tensor | None, axis: int) -> Tensor:
    wide = x.to(torch.int32)
    if zero is not None:
        wide = wide - along(zero.to(torch.int32), x, axis)
    return wide.to(scale.dtype) * along(scale, x, axis)


def rounded_by_tensor(x: Tensor, scale: float, zero: int, low: int, high: int) -> Tensor:
    """Quantise and dequantise at once; gradients pass straight through where nothing was cut off."""
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, low, high)


def along(parameter: Tensor, x: Tensor, axis: int) -> Tensor:
    """Shape a scale or zero point so that it goes along an axis."""
    if parameter.numel() == 1:
        return parameter.reshape(())
    shape = [1] * x.ndim
    shape[axis] = -1
    return parameter.reshape(shape)


def _straight(node: Node) -> Call | None:
    """Return both steps as one where a float tensor is quantised and dequantised on the spot, by one scale."""
    value, scale = node.input(0), node.input(1)
    if not isinstance(value, Traced) or not isinstance(scale, Const) or value.node.target is not quantized:
        return None
    source, first, zero, dtype, _ = value.node.args
    mine = node.optional(2)
    if scale.tensor.numel() != 1 or scale.tensor.dtype != torch.float32 or not isinstance(dtype, torch.dtype):
        return None
    same_zero = zero is None if mine is None else isinstance(mine, Const) and node.workshop.node_of(mine) is zero
    if node.workshop.node_of(scale) is not first or not same_zero:
        return None
    offset = int(mine.tensor.reshape(-1)[0].item()) if isinstance(mine, Const) else 0
    assert isinstance(source, fx.Node)
    return Call(rounded_by_tensor, (Traced(source), float(scale.tensor.reshape(-1)[0].item()), offset, *RANGES[dtype]))


def _check(node: Node, dtype: torch.dtype) -> None:
    if dtype not in RANGES:
        raise NotConverted(f"quantising to {dtype} is not converted")
    if node.attribute("block_size", 0):
        raise NotConverted("blocked scales are not converted")
