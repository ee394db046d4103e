"""Small convolutional networks with random weights, as ONNX files: something real to time, with the outputs it must give."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

IR_VERSION = 10
OPSET = 18


@dataclass(frozen=True)
class TinyNet:
    """A written file and its check."""

    path: Path
    check: Path


def write_conv_net(
    path: Path, *, channels: int = 32, depth: int = 4, size: int = 28, batch: int | None = None, seed: int = 0
) -> TinyNet:
    """Write a stack of 3x3 convolutions with a linear head, and beside it the check a runtime must pass.

    Args:
        path: Where the file goes; the check lies beside it as ``.npz``.
        channels: Width of every convolution: what decides the latency.
        depth: Convolutions.
        size: Height and width of the one-channel input.
        batch: Fixed batch of the file; None leaves the axis free.
        seed: Of the weights and of the inputs of the check.
    """
    rng = np.random.default_rng(seed)
    nodes, weights = [], []
    name, width = "x", 1
    for index in range(depth):
        kernel = rng.standard_normal((channels, width, 3, 3)).astype(np.float32) * np.sqrt(2 / (width * 9))
        weights.append(numpy_helper.from_array(kernel.astype(np.float32), f"w{index}"))
        nodes.append(helper.make_node("Conv", [name, f"w{index}"], [f"c{index}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        name, width = f"r{index}", channels
    head = (rng.standard_normal((channels, 10)) / np.sqrt(channels)).astype(np.float32)
    weights.append(numpy_helper.from_array(head, "head"))
    nodes.append(helper.make_node("GlobalAveragePool", [name], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    nodes.append(helper.make_node("MatMul", ["flat", "head"], ["y"]))
    axis = batch if batch is not None else "n"
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [axis, 1, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [axis, 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    inputs = rng.standard_normal((batch or 1, 1, size, size)).astype(np.float32)
    # onnx's own reference evaluator: outputs that no timed runtime had a hand in.
    from onnx.reference import ReferenceEvaluator

    (outputs,) = ReferenceEvaluator(model).run(None, {"x": inputs})
    check = path.with_suffix(".npz")
    np.savez(check, input_x=inputs, output_y=outputs)
    return TinyNet(path, check)


def write_loop(path: Path, *, repeats: int, width: int = 64, seed: int = 0) -> TinyNet:
    """Write one block, run ``repeats`` times by an ONNX ``Loop``: two such files differ in one integer and in nothing else.

    The block multiplies by an orthogonal matrix, so that values neither grow nor fade, however often. Same code, same weights in
    the same place, same memory: a file with 2 % more repeats takes 2 % longer by construction, but for the fixed cost of a call
    (that of a file with no repeats).

    Args:
        path: Where the file goes; the check lies beside it as ``.npz``.
        repeats: Of the block.
        width: Of the matrix.
        seed: Of the matrix and of the input of the check.
    """
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((width, width)))[0].astype(np.float32)
    block = helper.make_graph(
        [helper.make_node("MatMul", ["in", "turn"], ["out"]), helper.make_node("Identity", ["go"], ["go_on"])],
        "block",
        [
            helper.make_tensor_value_info("index", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("in", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("out", TensorProto.FLOAT, None),
        ],
        [numpy_helper.from_array(turn, "turn")],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["repeats", "yes", "x"], ["y"], body=block)],
        "loop",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width, width])],
        [
            numpy_helper.from_array(np.array(repeats, np.int64), "repeats"),
            numpy_helper.from_array(np.array(True), "yes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    inputs = rng.standard_normal((1, width, width)).astype(np.float32)
    check = path.with_suffix(".npz")
    outputs = inputs @ np.linalg.matrix_power(turn.astype(np.float64), repeats)
    np.savez(check, input_x=inputs, output_y=outputs.astype(np.float32))
    return TinyNet(path, check)
