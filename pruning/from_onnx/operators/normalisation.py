"""Normalisation layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere
from torch import Tensor, nn

from pruning.from_onnx.errors import NotConverted
from pruning.from_onnx.node import Node
from pruning.from_onnx.registry import operator
from pruning.from_onnx.values import Call, Const, Layer, Result

BATCH: dict[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
INSTANCE: dict[int, Any] = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}
GROUP_SCALE_BY_CHANNEL = 21  # before, one scale a group


@operator("BatchNormalization")
def batch_norm(node: Node) -> Result:
    if node.attribute("training_mode", 0):
        raise NotConverted("it computes statistics in inference (training_mode); export the model in eval mode")
    epsilon, momentum = node.attribute("epsilon", 1e-5), node.attribute("momentum", 0.9)
    value, rest = node.input(0), [node.input(index) for index in range(1, 5)]
    constants = [one for one in rest if isinstance(one, Const)]
    kind = BATCH.get(node.rank(0) or 0)
    if len(constants) == 4 and kind is not None:
        scale, bias, mean, variance = constants
        layer = kind(scale.tensor.numel(), eps=epsilon, momentum=1 - momentum)
        layer.weight, layer.bias = node.parameter(scale), node.parameter(bias)
        layer.running_mean, layer.running_var = mean.tensor.clone(), variance.tensor.clone()
        return Layer(layer, (value,), scale)
    return Call(normalised_batch, (value, *rest, epsilon))


@operator("LayerNormalization")
def layer_norm(node: Node) -> Result:
    value, scale, bias = node.input(0), node.input(1), node.optional(2)
    epsilon, axis, shape = node.attribute("epsilon", 1e-5), node.axis(-1), node.shape(0)
    if node.gives(1) or node.gives(2):
        return Call(layer_normalised, (value, scale, bias, axis, epsilon), outputs=3)
    if isinstance(scale, Const) and (bias is None or isinstance(bias, Const)):
        over = tuple(scale.tensor.shape)
        # Over the last dimension alone, a scale of more than one value says how long that is.
        is_last = axis == -1 or (shape is not None and axis == len(shape) - 1)
        fits = (shape is not None and shape[axis:] == over) or (is_last and len(over) == 1 and over[0] > 1)
        if fits and (bias is None or tuple(bias.tensor.shape) == over):
            layer = nn.LayerNorm(over, eps=epsilon, bias=bias is not None)
            layer.weight = node.parameter(scale)
            if bias is not None:
                layer.bias = node.parameter(bias)
            return Layer(layer, (value,), scale)
    return Call(only_normalised, (value, scale, bias, axis, epsilon))


@operator("RMSNormalization")
def rms_norm(node: Node) -> Result:
    return Call(
        rms_normalised, (node.input(0), node.input(1), node.attribute("axis", -1), node.attribute("epsilon", 1e-5))
    )


@operator("InstanceNormalization")
def instance_norm(node: Node) -> Result:
    value, scale, bias, epsilon = node.input(0), node.input(1), node.input(2), node.attribute("epsilon", 1e-5)
    kind = INSTANCE.get(node.rank(0) or 0)
    if kind is not None and isinstance(scale, Const) and isinstance(bias, Const):
        layer = kind(scale.tensor.numel(), eps=epsilon, affine=True)
        layer.weight, layer.bias = node.parameter(scale), node.parameter(bias)
        return Layer(layer, (value,), scale)
    return Call(F.instance_norm, (value,), {"weight": scale, "bias": bias, "eps": epsilon})


@operator("GroupNormalization")
def group_norm(node: Node) -> Result:
    value, scale, bias, epsilon = node.input(0), node.input(1), node.input(2), node.attribute("epsilon", 1e-5)
    groups, shape = node.attribute("num_groups"), node.shape(0)
    channels = None if shape is None else shape[1]
    if channels is not None and isinstance(scale, Const) and isinstance(bias, Const):

        def by_channel(tensor: Tensor) -> Tensor:
            return tensor.repeat_interleave(channels // tensor.numel())

        key = "" if scale.tensor.numel() == channels else ("channel", channels)
        layer = nn.GroupNorm(groups, channels, eps=epsilon)
        layer.weight, layer.bias = node.parameter(scale, by_channel, key), node.parameter(bias, by_channel, key)
        return Layer(layer, (value,), scale)
    return Call(group_normalised, (value, scale, bias, groups, epsilon))


@operator("LRN")
def local_response_norm(node: Node) -> Result:
    read = node.attribute
    return Call(
        locally_normalised,
        (node.input(0), read("size"), read("alpha", 1e-4), read("beta", 0.75), read("bias", 1.0)),
    )


@operator("LpNormalization")
def lp_norm(node: Node) -> Result:
    return Call(lp_normalised, (node.input(0), float(node.attribute("p", 2)), node.attribute("axis", -1)))


@operator("MeanVarianceNormalization")
def mean_variance_norm(node: Node) -> Result:
    return Call(standardised, (node.input(0), list(node.attribute("axes", [0, 2, 3]))))


def normalised_batch(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, epsilon: float) -> Tensor:
    return F.batch_norm(x, mean, variance, scale, bias, training=False, eps=epsilon)


def layer_normalised(
    x: Tensor, scale: Tensor, bias: Tensor | None, axis: int, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the normalised tensor, the means and the inverse deviations, the latter two in float32 at least."""
    axes = list(range(axis + x.ndim if axis < 0 else axis, x.ndim))
    wide = x.float() if x.dtype in {torch.float16, torch.bfloat16} else x
    mean = wide.mean(axes, keepdim=True)
    inverse = torch.rsqrt((wide - mean).square().mean(axes, keepdim=True) + epsilon)
    made = ((wide - mean) * inverse).to(x.dtype) * scale
    return made if bias is None else made + bias, mean, inverse


def only_normalised(x: Tensor, scale: Tensor, bias: Tensor | None, axis: int, epsilon: float) -> Tensor:
    return layer_normalised(x, scale, bias, axis, epsilon)[0]


def rms_normalised(x: Tensor, scale: Tensor, axis: int, epsilon: float) -> Tensor:
    axes = list(range(axis + x.ndim if axis < 0 else axis, x.ndim))
    wide = x.float() if x.dtype in {torch.float16, torch.bfloat16} else x
    return (wide * torch.rsqrt(wide.square().mean(axes, keepdim=True) + epsilon)).to(x.dtype) * scale


def group_normalised(x: Tensor, scale: Tensor, bias: Tensor, groups: int, epsilon: float) -> Tensor:
    channels = x.shape[1]
    wide = [one.repeat_interleave(channels // one.numel()) for one in (scale, bias)]
    return F.group_norm(x, groups, wide[0], wide[1], epsilon)


def locally_normalised(x: Tensor, size: int, alpha: float, beta: float, bias: float) -> Tensor:
    """Divide by a power of the mean square of neighbouring channels; of an even number, the extra one lies after."""
    squares = x.square().flatten(2).unsqueeze(1)
    padded = F.pad(squares, (0, 0, (size - 1) // 2, size // 2))
    mean = F.avg_pool2d(padded, (size, 1), stride=1).squeeze(1).reshape(x.shape)
    return x / (bias + alpha * mean) ** beta


def lp_normalised(x: Tensor, order: float, axis: int) -> Tensor:
    norm = torch.linalg.vector_norm(x, order, dim=axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


def standardised(x: Tensor, axes: list[int]) -> Tensor:
    mean = x.mean(axes, keepdim=True)
    deviation = (x - mean).square().mean(axes, keepdim=True).sqrt()
    return (x - mean) / (deviation + 1e-9)
