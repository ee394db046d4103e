"""Makes the golden files that devices check themselves with: ``python -m benchmarks.make_golden [FOLDER]``.

    golden.onnx      six 3x3 convolutions with one set of weights
    yardstick.onnx   six products with one 48 x 48 matrix

Both work in a core's own cache, so that a neighbour's use of memory moves neither; one bound by memory moved their ratio by
9 % on a shared machine. Both grow what they work on out of a small input, so that the files stay small. The expected outputs
are those of the reference evaluator of ONNX, in numpy.
The files are committed and their hashes fixed in ``workers/agent/health.py``: a device's history is only good for one file.
"""

from __future__ import annotations

import hashlib
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

FOLDER = Path(__file__).resolve().parents[1] / "workers/agent/golden"
OPSET, IR_VERSION = 17, 8  # old enough for every runtime that reads ONNX
SEED = 20261101
CHANNELS, SMALL, TILES = 8, 8, 6
LAYERS = 6


def golden(rng: np.random.Generator) -> ModelProto:
    """Return the model that is watched."""
    weight = rng.standard_normal((CHANNELS, CHANNELS, 3, 3)) * np.sqrt(2 / (CHANNELS * 9))
    bias = rng.uniform(0.05, 0.2, CHANNELS)
    nodes = [helper.make_node("Tile", ["x", "tiles"], ["h0"])]
    for layer in range(LAYERS):
        nodes.append(helper.make_node("Conv", [f"h{layer}", "weight", "bias"], [f"c{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"h{layer + 1}"]))
    nodes += [
        helper.make_node("GlobalAveragePool", [f"h{LAYERS}"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["y"]),
    ]
    constants = {
        "weight": weight.astype(np.float32),
        "bias": bias.astype(np.float32),
        "tiles": np.array([1, 1, TILES, TILES], np.int64),
    }
    return model("golden", nodes, constants, [1, CHANNELS, SMALL, SMALL], [1, CHANNELS])


def yardstick(rng: np.random.Generator) -> ModelProto:
    """Return the model that the golden one is timed against."""
    nodes = [
        helper.make_node("Tile", ["x", "tiles"], ["h0"]),
        helper.make_node("Tile", ["small", "wide"], ["weight"]),
    ]
    for layer in range(LAYERS):
        nodes.append(helper.make_node("MatMul", [f"h{layer}", "weight"], [f"m{layer}"]))
        nodes.append(helper.make_node("Relu", [f"m{layer}"], [f"h{layer + 1}"]))
    nodes += [
        helper.make_node("GlobalAveragePool", [f"h{LAYERS}"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["y"]),
    ]
    small = rng.uniform(-0.5, 1.0, (SMALL, SMALL)) * 4 / (SMALL * TILES)
    constants = {
        "small": small.astype(np.float32),
        "wide": np.array([TILES, TILES], np.int64),
        "tiles": np.array([1, 1, TILES, TILES], np.int64),
    }
    return model("yardstick", nodes, constants, [1, CHANNELS, SMALL, SMALL], [1, CHANNELS])


def model(name: str, nodes: list, constants: dict, in_shape: list[int], out_shape: list[int]) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, in_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out_shape)],
        [numpy_helper.from_array(values, key) for key, values in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    checker.check_model(made, full_check=True)
    return made


def npz(arrays: dict[str, np.ndarray]) -> bytes:
    """Return an npz whose bytes depend on nothing but the arrays: np.savez writes the time of day."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for key, values in arrays.items():
            entry = io.BytesIO()
            np.lib.format.write_array(entry, values, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{key}.npy", (1980, 1, 1, 0, 0, 0)), entry.getvalue())
    return buffer.getvalue()


def main(folder: Path) -> None:
    """Write the four files and say their hashes."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    made = {"golden": golden(rng), "yardstick": yardstick(rng)}
    x = rng.uniform(0.25, 1.0, (1, CHANNELS, SMALL, SMALL)).astype(np.float32)
    for name, onnx_model in made.items():
        (outputs,) = ReferenceEvaluator(onnx_model).run(None, {"x": x})
        files = {
            f"{name}.onnx": onnx_model.SerializeToString(deterministic=True),
            f"{name}.npz": npz({"input_x": x, "output_y": np.asarray(outputs, np.float32)}),
        }
        for file, data in files.items():
            (folder / file).write_bytes(data)
            print(f"{file:16} {len(data):6} bytes  sha256:{hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
