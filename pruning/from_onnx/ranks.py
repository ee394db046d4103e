"""The number of dimensions where onnx's shape inference gives up: in older opsets it does so behind shapes that are computed."""

from __future__ import annotations

from pruning.from_onnx.reading import OnnxNode, Shape
from pruning.from_onnx.values import Const, Ints, Traced, Value

_AS_ITS_INPUT = {
    "Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "BatchNormalization",
    "InstanceNormalization", "LayerNormalization", "GroupNormalization", "LRN", "Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid",
    "HardSigmoid", "HardSwish", "Tanh", "Elu", "Selu", "Gelu", "Erf", "Softmax", "LogSoftmax", "Dropout", "Cast", "Concat", "Pad",
    "Resize", "Upsample", "Slice", "Split", "Transpose", "Sqrt", "Exp", "Log", "Neg", "Abs", "QuantizeLinear", "DequantizeLinear",
    "DepthToSpace", "SpaceToDepth",
}  # fmt: skip
_BROADCASTS = {"Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Where", "MatMul"}


def guessed_shape(node: OnnxNode, inputs: tuple[Value | None, ...]) -> Shape | None:
    """Return a shape with at least the right number of dimensions, or None where not even that is known."""
    if node.operator == "Reshape" and len(inputs) > 1:
        return _written_down(inputs[1])
    if node.operator == "Flatten":
        return (None, None)
    shapes = [_shape(value) for value in inputs if value is not None]
    keeps = node.operator.startswith("Reduce") and bool(node.attributes.get("keepdims", 1))
    if (node.operator in _AS_ITS_INPUT or keeps) and shapes and shapes[0] is not None:
        return (None,) * len(shapes[0])
    axes = node.attributes.get("axes")  # an input in newer opsets, whose shapes are inferred
    if node.operator in {"Squeeze", "Unsqueeze"} and axes and shapes and shapes[0] is not None:
        return (None,) * (len(shapes[0]) + (len(axes) if node.operator == "Unsqueeze" else -len(axes)))
    if node.operator in _BROADCASTS and all(shape is not None and len(shape) != 1 for shape in shapes[:1]):
        ranks = [len(shape) for shape in shapes if shape is not None]
        return (None,) * max(ranks) if len(ranks) == len(shapes) else None
    return None


def _written_down(sizes: Value | None) -> Shape | None:
    if isinstance(sizes, Const):
        return tuple(int(size) if size > 0 else None for size in sizes.tensor.tolist())
    if isinstance(sizes, Ints):
        return tuple(size if isinstance(size, int) and size > 0 else None for size in sizes.items)
    return None


def _shape(value: Value) -> Shape | None:
    if isinstance(value, Traced):
        return value.shape
    if isinstance(value, Const):
        return tuple(value.tensor.shape)
    return () if value.is_scalar else (len(value.items),)
