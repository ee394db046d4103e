"""Element-wise non-linearities, softmax and dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere
from torch import Tensor, nn

from pruning.from_onnx.errors import NotConverted
from pruning.from_onnx.node import Node
from pruning.from_onnx.registry import operator
from pruning.from_onnx.values import Call, Const, Layer, Result

SOFTMAX_IS_FLAT_BEFORE = 13  # until then it flattened everything from its axis on


@operator("Relu", "Sigmoid", "Tanh", "HardSwish", "Softplus", "Softsign", "Mish", "Erf")
def plain(node: Node) -> Result:
    functions = {
        "Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "HardSwish": F.hardswish,
        "Softplus": softplus, "Softsign": F.softsign, "Mish": F.mish, "Erf": torch.erf,
    }  # fmt: skip
    return Call(functions[node.source.operator], (node.input(0),))


@operator("LeakyRelu")
def leaky_relu(node: Node) -> Result:
    return Call(F.leaky_relu, (node.input(0), node.attribute("alpha", 0.01)))


@operator("PRelu")
def prelu(node: Node) -> Result:
    slope, rank = node.input(1), node.rank(0)
    if isinstance(slope, Const):
        shape = tuple(slope.tensor.shape)
        is_channelwise = rank is not None and len(shape) == rank - 1 and all(size == 1 for size in shape[1:])
        if slope.tensor.numel() == 1 or is_channelwise:
            layer = nn.PReLU(slope.tensor.numel())
            layer.weight = node.parameter(slope, _flat, "flat")
            return Layer(layer, (node.input(0),), slope)
    return Call(scaled_below_zero, (node.input(0), slope))


@operator("HardSigmoid")
def hard_sigmoid(node: Node) -> Result:
    alpha, beta = node.attribute("alpha", 0.2), node.attribute("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return Call(F.hardsigmoid, (node.input(0),))
    return Call(clipped_line, (node.input(0), alpha, beta))


@operator("Elu")
def elu(node: Node) -> Result:
    return Call(F.elu, (node.input(0), node.attribute("alpha", 1.0)))


@operator("Selu")
def selu(node: Node) -> Result:
    alpha = node.attribute("alpha", 1.67326319217681884765625)
    return Call(scaled_elu, (node.input(0), alpha, node.attribute("gamma", 1.05070102214813232421875)))


@operator("Celu")
def celu(node: Node) -> Result:
    return Call(F.celu, (node.input(0), node.attribute("alpha", 1.0)))


@operator("Gelu")
def gelu(node: Node) -> Result:
    return Call(F.gelu, (node.input(0),), {"approximate": node.attribute("approximate", "none")})


@operator("Swish")
def swish(node: Node) -> Result:
    return Call(swish_of, (node.input(0), node.attribute("alpha", 1.0)))


@operator("ThresholdedRelu")
def thresholded_relu(node: Node) -> Result:
    return Call(F.threshold, (node.input(0), node.attribute("alpha", 1.0), 0.0))


@operator("Shrink")
def shrink(node: Node) -> Result:
    return Call(shrunk, (node.input(0), node.attribute("lambd", 0.5), node.attribute("bias", 0.0)))


@operator("Softmax", "LogSoftmax", "Hardmax")
def softmax(node: Node) -> Result:
    function = OVER_AXIS[node.source.operator]
    if node.opset >= SOFTMAX_IS_FLAT_BEFORE:
        return Call(function, (node.input(0), node.axis(-1)))
    axis, rank = node.axis(1), node.rank(0)
    if rank is not None and axis == rank - 1:
        return Call(function, (node.input(0), axis))
    return Call(over_flattened, (node.input(0), axis, node.source.operator))


@operator("Dropout")
def dropout(node: Node) -> Result:
    if node.has(2) and bool(node.const(2, "training_mode").tensor):
        raise NotConverted("it drops values in inference too (training_mode)")
    share = float(node.number(1, 0.5, "ratio"))
    if node.gives(1):
        return Call(kept_all, (node.input(0),), outputs=2)
    value = node.input(0)
    if isinstance(value, Const):
        return value
    # In training it drops again, as the model did that was exported.
    return Layer(nn.Dropout(share), (value,))


def softplus(x: Tensor) -> Tensor:
    """Return log(1 + exp(x)) without torch's shortcut above 20."""
    return torch.logaddexp(x, torch.zeros_like(x))


def scaled_below_zero(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def clipped_line(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(alpha * x + beta, 0, 1)


def scaled_elu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    return gamma * F.elu(x, alpha)


def swish_of(x: Tensor, alpha: float) -> Tensor:
    return x * torch.sigmoid(alpha * x)


def shrunk(x: Tensor, edge: float, bias: float) -> Tensor:
    zero = torch.zeros_like(x)
    return torch.where(x < -edge, x + bias, torch.where(x > edge, x - bias, zero)).to(x.dtype)


def hardmax(x: Tensor, axis: int) -> Tensor:
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)


OVER_AXIS: dict[str, Callable[..., Any]] = {
    "Softmax": torch.softmax,
    "LogSoftmax": torch.log_softmax,
    "Hardmax": hardmax,
}


def over_flattened(x: Tensor, axis: int, operator_name: str) -> Tensor:
    """Apply to a matrix of all dimensions before the axis by all from it on, as opsets before 13 did."""
    axis = axis + x.ndim if axis < 0 else axis
    flat = x.reshape(x.shape[:axis].numel(), -1)
    made: Tensor = OVER_AXIS[operator_name](flat, 1)
    return made.reshape(x.shape)


def kept_all(x: Tensor) -> tuple[Tensor, Tensor]:
    return x, torch.ones_like(x, dtype=torch.bool)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1)
