"""``If`` with a condition that the file itself decides: the branch that is taken takes its place.

Exporters leave such nodes behind where the original code asked for a shape (``squeeze``, padding). What a condition is made of is
computed here: constants, and sizes that the file fixes. A condition that depends on data stays, and is refused by name later.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

MOST_ELEMENTS = 4096  # a condition is made of small things
MOST_ROUNDS = 16  # an If in a branch of an If, and so on
FREE = -(2**62)  # stands for a size the file leaves free
# What picks sizes out of a shape.
_PICKS = {"Gather", "Slice", "Squeeze", "Unsqueeze", "Identity", "Concat", "Split"}
# What computes with them; nothing that could make a giant out of small things.
_COMPUTES = {
    "Constant", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "Xor", "Cast", "Add", "Sub",
    "Mul", "Div", "Mod", "Min", "Max", "Neg", "Abs", "Where", "ReduceProd", "ReduceMin", "ReduceMax", "ReduceSum",
}  # fmt: skip


def fold_conditions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with every ``If`` of a known condition replaced by its branch; others stay as they are."""
    for _ in range(MOST_ROUNDS):
        if not any(node.op_type == "If" for node in model.graph.node):
            return model
        known = _Known(model)
        nodes, has_folded = [], False
        for node in model.graph.node:
            value = known.value(node.input[0]) if node.op_type == "If" and not node.domain else None
            if value is None:
                nodes.append(node)
                continue
            wanted = "then_branch" if bool(value.reshape(-1)[0]) else "else_branch"
            branch = next(attribute.g for attribute in node.attribute if attribute.name == wanted)
            model.graph.initializer.extend(branch.initializer)
            nodes.extend(branch.node)
            nodes.extend(
                helper.make_node("Identity", [inner.name], [outer], name=f"{node.name}:{wanted}")
                for inner, outer in zip(branch.output, node.output, strict=True)
                if outer
            )
            has_folded = True
        if not has_folded:
            return model
        made = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del model.graph.node[:]
        model.graph.node.extend(made)
    return model


class _Known:
    """What can be computed of a graph without any input."""

    def __init__(self, model: onnx.ModelProto) -> None:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        self._opsets = list(model.opset_import)
        self._ir_version = model.ir_version
        self._makers = {name: node for node in model.graph.node for name in node.output if name}
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._shapes = _shapes(inferred)
        self._values: dict[str, np.ndarray | None] = {}

    def value(self, name: str) -> np.ndarray | None:
        if name not in self._values:
            self._values[name] = None  # a file with a cycle does not get here, but must not hang here either
            self._values[name] = self._computed(name)
        return self._values[name]

    def _computed(self, name: str) -> np.ndarray | None:
        if name in self._constants:
            tensor = self._constants[name]
            return numpy_helper.to_array(tensor) if np.prod(tensor.dims, dtype=np.int64) <= MOST_ELEMENTS else None
        node = self._makers.get(name)
        if node is None or node.domain or node.op_type not in {*_PICKS, *_COMPUTES, "Shape"}:
            return None
        if node.op_type == "Shape":
            return self._sizes(node)
        given = {source: self.value(source) for source in node.input if source}
        if any(value is None or (node.op_type not in _PICKS and (value == FREE).any()) for value in given.values()):
            return None
        inputs = [helper.make_tensor_value_info(source, onnx.TensorProto.UNDEFINED, None) for source in given]
        outputs = [helper.make_tensor_value_info(one, onnx.TensorProto.UNDEFINED, None) for one in node.output if one]
        alone = helper.make_model(
            helper.make_graph([node], "one", inputs, outputs), opset_imports=self._opsets, ir_version=self._ir_version
        )
        try:
            (found,) = ReferenceEvaluator(alone).run([name], dict(given))
        except Exception:  # The evaluator knows no bounds in what it raises; then the value is simply not known.
            return None
        array = np.asarray(found)
        return array if array.size <= MOST_ELEMENTS else None

    def _sizes(self, node: onnx.NodeProto) -> np.ndarray | None:
        shape = self._shapes.get(node.input[0])
        if shape is None:
            return None
        options: dict[str, int] = {attribute.name: attribute.i for attribute in node.attribute}
        wanted = shape[options.get("start", 0) : options.get("end")]
        return np.array([FREE if size is None else size for size in wanted], dtype=np.int64)


def _shapes(graph: onnx.GraphProto) -> Mapping[str, tuple[int | None, ...]]:
    found: dict[str, tuple[int | None, ...]] = {}
    for value in (*graph.value_info, *graph.output, *graph.input):
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            found[value.name] = tuple(
                dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None for dim in kind.shape.dim
            )
    return found
