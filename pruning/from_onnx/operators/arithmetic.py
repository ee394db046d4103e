"""Element-wise arithmetic, comparisons and logic; on sizes they are done on the integers themselves."""

from __future__ import annotations

import operator as python_operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from pruning.from_onnx.errors import NotConverted
from pruning.from_onnx.node import Node, broadcast_items
from pruning.from_onnx.registry import operator
from pruning.from_onnx.values import Call, Const, Ints, Item, Result, Traced, Value, make_ints


def divided(left: Tensor | float, right: Tensor | float) -> Tensor:
    """Divide; integers towards zero."""
    if any(isinstance(one, float) or (isinstance(one, Tensor) and one.is_floating_point()) for one in (left, right)):
        made: Tensor = left / right  # type: ignore[assignment]  # one of them is a tensor
        return made
    return torch.div(left, right, rounding_mode="trunc")


def divided_sizes(left: int, right: int) -> int:
    """Divide integers towards zero."""
    return -(-left // right) if (left < 0) != (right < 0) else left // right


BINARY: dict[str, Callable[..., Any]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": divided,
    "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor,
    "Equal": torch.eq, "Greater": torch.gt, "Less": torch.lt, "GreaterOrEqual": torch.ge, "LessOrEqual": torch.le,
    "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or, "BitwiseXor": torch.bitwise_xor,
}  # fmt: skip
ON_SIZES: dict[str, Callable[[Any, Any], Any]] = {
    "Add": python_operator.add, "Sub": python_operator.sub, "Mul": python_operator.mul, "Div": divided_sizes,
    "Equal": python_operator.eq, "Greater": python_operator.gt, "Less": python_operator.lt,
}  # fmt: skip
PAIRWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Min": torch.minimum, "Max": torch.maximum, "Sum": torch.add, "Mean": torch.add,
}  # fmt: skip
ON_FLOATS: dict[str, Callable[[Any, Any], Any]] = {
    "Add": python_operator.add, "Sub": python_operator.sub, "Mul": python_operator.mul, "Div": python_operator.truediv,
}  # fmt: skip
UNARY: dict[str, Callable[..., Any]] = {
    "Sqrt": torch.sqrt, "Exp": torch.exp, "Log": torch.log, "Neg": torch.neg, "Abs": torch.abs, "Floor": torch.floor,
    "Ceil": torch.ceil, "Round": torch.round, "Sign": torch.sign, "Reciprocal": torch.reciprocal, "Not": torch.logical_not,
    "Sin": torch.sin, "Cos": torch.cos, "Tan": torch.tan, "Asin": torch.asin, "Acos": torch.acos, "Atan": torch.atan,
    "Sinh": torch.sinh, "Cosh": torch.cosh, "Asinh": torch.asinh, "Acosh": torch.acosh, "Atanh": torch.atanh,
    "IsNaN": torch.isnan, "BitwiseNot": torch.bitwise_not, "Det": torch.det,
}  # fmt: skip


@operator(*UNARY)
def unary(node: Node) -> Result:
    return Call(UNARY[node.source.operator], (node.input(0),))


@operator(*BINARY)
def binary(node: Node) -> Result:
    name, left, right = node.source.operator, node.input(0), node.input(1)
    if name in ON_SIZES and (isinstance(left, Ints) or isinstance(right, Ints)):
        done = _on_sizes(node, name, left, right)
        if done is not None:
            return done
    if name == "Add":
        biased = _as_bias(node, left, right) or _as_bias(node, right, left)
        if biased is not None:
            return biased
    first = _simple(left, right)
    if isinstance(first, float) and name in ON_FLOATS:
        return Call(
            ON_FLOATS[name], (first, right)
        )  # torch's functions want a tensor on the left, Python's operators do not
    return Call(BINARY[name], (left, _simple(right, left)))


@operator("Pow")
def power(node: Node) -> Result:
    base, exponent = node.input(0), node.input(1)
    return Call(raised, (base, _simple(exponent, base)))


@operator("Mod")
def modulo(node: Node) -> Result:
    function = torch.fmod if node.attribute("fmod", 0) else torch.remainder
    return Call(function, (node.input(0), node.input(1)))


@operator("Min", "Max", "Sum", "Mean")
def variadic(node: Node) -> Result:
    values = node.all_inputs()
    if len(values) == 2 and node.source.operator != "Mean":
        return Call(PAIRWISE[node.source.operator], (values[0], values[1]))
    return Call(combined, (node.source.operator, values))


@operator("Where")
def where(node: Node) -> Result:
    condition, left, right = node.input(0), node.input(1), node.input(2)
    if isinstance(condition, Const) and (isinstance(left, Ints) or isinstance(right, Ints)):
        lists = broadcast_items([condition, left, right])
        if lists is not None:
            chosen = tuple(a if is_left else b for is_left, a, b in zip(*lists, strict=True))
            return make_ints(chosen, is_scalar=_are_scalar([condition, left, right]), name=node.source.outputs[0])
    return Call(torch.where, (condition, left, right))


@operator("Clip")
def clip(node: Node) -> Result:
    low, high = (
        (node.optional(index) if node.has(index) else node.attribute(name)) for index, name in ((1, "min"), (2, "max"))
    )
    low, high = (
        one.tensor.item() if isinstance(one, Const) and one.tensor.numel() == 1 else one for one in (low, high)
    )
    if low is None and high is None:
        return node.input(0)
    if isinstance(low, Traced | Ints) or isinstance(high, Traced | Ints):
        return Call(bounded, (node.input(0), low, high))
    return Call(torch.clamp, (node.input(0),), {"min": low, "max": high})


@operator("IsInf")
def is_inf(node: Node) -> Result:
    positive, negative = bool(node.attribute("detect_positive", 1)), bool(node.attribute("detect_negative", 1))
    return Call(infinite, (node.input(0), positive, negative))


@operator("BitShift")
def bit_shift(node: Node) -> Result:
    is_left = node.attribute("direction", "") == "LEFT"
    return Call(shifted, (node.input(0), node.input(1), is_left))


def raised(base: Tensor, exponent: Tensor | float) -> Tensor:
    """Raise to a power; the result is of the base's dtype."""
    return torch.pow(base, exponent).to(base.dtype)


def bounded(x: Tensor, low: Tensor | float | None, high: Tensor | float | None) -> Tensor:
    if low is not None:
        x = torch.maximum(x, torch.as_tensor(low, dtype=x.dtype, device=x.device))
    return x if high is None else torch.minimum(x, torch.as_tensor(high, dtype=x.dtype, device=x.device))


def combined(operator_name: str, values: list[Tensor]) -> Tensor:
    """Return the least, the largest, the sum or the mean of any number of tensors."""
    result = values[0]
    for value in values[1:]:
        result = PAIRWISE[operator_name](result, value)
    return result / len(values) if operator_name == "Mean" else result


def infinite(x: Tensor, positive: bool, negative: bool) -> Tensor:
    found = torch.zeros_like(x, dtype=torch.bool)
    if positive:
        found = found | torch.isposinf(x)
    return found | torch.isneginf(x) if negative else found


def shifted(x: Tensor, by: Tensor, is_left: bool) -> Tensor:
    wide, amount = x.to(torch.int64), by.to(torch.int64)
    return (wide << amount if is_left else wide >> amount).to(x.dtype)


def _simple(value: Value, other: Value) -> Any:
    """Return a constant without dimensions as a number where the other side is a tensor: it needs no place in the module."""
    if isinstance(value, Const) and isinstance(other, Traced) and value.tensor.ndim == 0:
        if value.tensor.dtype == torch.bool:
            return value
        return value.tensor.item()
    return value


def _on_sizes(node: Node, name: str, left: Value, right: Value) -> Result | None:
    lists = broadcast_items([left, right])
    if lists is None:
        return None
    items: list[Item] = []
    for a, b in zip(*lists, strict=True):
        if isinstance(a, int) and isinstance(b, int):
            items.append(ON_SIZES[name](a, b))
        elif name == "Equal" and ((isinstance(a, int) and a < 0) or (isinstance(b, int) and b < 0)):
            items.append(False)  # a size read off a tensor is never negative
        elif name in {"Equal", "Greater", "Less"}:
            return None
        else:
            items.append(_emitted(node, name, a, b))
    is_scalar = _are_scalar([left, right])
    if name in {"Equal", "Greater", "Less"}:
        found = torch.tensor([bool(item) for item in items])
        return Const(found.reshape(()) if is_scalar else found, node.source.outputs[0])
    return make_ints(tuple(items), is_scalar=is_scalar, name=node.source.outputs[0])


def _emitted(node: Node, name: str, a: Item, b: Item) -> Item:
    if (name == "Mul" and 1 in {a, b} - {None}) or (name == "Div" and b == 1):
        return a if b == 1 else b
    emitted = node.workshop.emit(ON_SIZES[name], a, b)
    assert isinstance(emitted, fx.Node)
    return emitted


def _are_scalar(values: list[Value]) -> bool:
    known = [value for value in values if not isinstance(value, Traced)]
    return all(value.is_scalar if isinstance(value, Ints) else value.tensor.ndim == 0 for value in known)


def _as_bias(node: Node, value: Value, bias: Value) -> Value | None:
    """Give a linear layer without bias the constant that is added to what it gives, if nobody reads it before."""
    if not (isinstance(value, Traced) and isinstance(bias, Const) and bias.is_weight):
        return None
    layer: Any = node.workshop.module_of(value)  # torch's own annotation says that every linear layer has a bias
    if not isinstance(layer, nn.Linear) or "bias" in dict(layer.named_parameters()):
        return None
    index = node.inputs.index(value)
    if node.workshop.uses(node.source.inputs[index]) != 1 or tuple(bias.tensor.shape) != (layer.out_features,):
        return None
    if bias.tensor.dtype != layer.weight.dtype:
        raise NotConverted("a bias of another dtype than its weights")
    layer.bias = node.parameter(bias)
    return value
