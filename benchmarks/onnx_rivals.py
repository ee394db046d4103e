"""What onnx2torch and onnx2pytorch make of ONNX's node tests and of real files, beside ``pruning.from_onnx``.

They need torchvision, which nothing else here does, so this runs in an environment of its own, and needs nothing of Pruneloop
but this file and ``onnx_coverage.py`` beside it:

    python -m venv rivals && rivals/bin/pip install torch==2.13.0 torchvision==0.28.0 onnx onnxruntime numpy
    rivals/bin/pip install --no-deps onnx2torch==1.5.15 onnx2pytorch==0.6.0
    rivals/bin/python -m benchmarks.onnx_rivals [FILE.onnx ...]

A node test passes where the outputs are the expected ones, with the inputs as they are or with all but the first as constants, as
``onnx_coverage`` counts ours. A file passes where it gives what ONNX Runtime gives for inputs drawn at random.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

Convert = Callable[[onnx.ModelProto], torch.nn.Module]
OPERATORS = ("nms", "qnms")  # see pruning/zoo/missing.py: a torchvision for CUDA beside a torch for the CPU


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument(
        "--files-only", action="store_true", help="Leave the node tests out: onnx2pytorch takes very long."
    )
    parser.add_argument("--height", type=int, default=48)
    parser.add_argument("--width", type=int, default=192)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    sys.setrecursionlimit(5000)
    for name, convert in _rivals().items():
        counts: Counter[str] = Counter()
        for case in [] if args.files_only else load_model_tests(kind="node"):
            if case.model is None or case.data_sets is None:
                continue
            if _passes(convert, case.model, case):
                counts["passed"] += 1
            elif len(case.data_sets[0][0]) > 1 and _passes(convert, _bound(case), case):
                counts["passed with constants"] += 1
            else:
                counts["not"] += 1
        print(json.dumps({"library": name, **counts}), flush=True)
        for file in args.files:
            print(json.dumps({"library": name, "file": file.name, "verdict": _file(convert, file, args)}), flush=True)


def _rivals() -> dict[str, Convert]:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in OPERATORS:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _rivals.__dict__["kept"] = library
    import onnx2pytorch
    import onnx2torch

    return {
        "onnx2torch": lambda model: onnx2torch.convert(model),
        "onnx2pytorch": lambda model: onnx2pytorch.ConvertModel(model, experimental=True),
    }


def _passes(convert: Convert, model: onnx.ModelProto, case: object) -> bool:
    try:
        module = convert(copy.deepcopy(model)).eval()
        known = {tensor.name for tensor in model.graph.initializer}
        for feeds, wanted in case.data_sets:  # type: ignore[attr-defined]
            pairs = zip(model.graph.input, feeds, strict=False)
            inputs = [torch.from_numpy(np.array(array)) for value, array in pairs if value.name not in known]
            with torch.no_grad():
                given = module(*inputs)
            outputs = given if isinstance(given, (tuple, list)) else (given,)
            if len(outputs) < len(wanted):
                return False
            for tensor, expected in zip(outputs, wanted, strict=False):
                array = np.asarray(expected)
                if tuple(tensor.shape) != array.shape:
                    return False
                np.testing.assert_allclose(tensor.detach().numpy(), array, rtol=case.rtol, atol=case.atol)  # type: ignore[attr-defined]
    except BaseException as error:  # other people's code, which raises what it likes
        if isinstance(error, KeyboardInterrupt):
            raise
        return False
    return True


def _bound(case: object) -> onnx.ModelProto:
    model = copy.deepcopy(case.model)  # type: ignore[attr-defined]
    feeds, _ = case.data_sets[0]  # type: ignore[attr-defined]
    for value, array in list(zip(model.graph.input, feeds, strict=False))[1:]:
        if isinstance(array, np.ndarray | np.generic):
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), value.name))
    return model


def _file(convert: Convert, path: Path, args: argparse.Namespace) -> str:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    shapes = [[2, *node.shape[1:]] for node in session.get_inputs()]
    spare = {2: args.height, 3: args.width}
    sizes = [
        [size if isinstance(size, int) else spare.get(axis, 8) for axis, size in enumerate(shape)] for shape in shapes
    ]
    rng = np.random.default_rng(0)
    feeds = {
        node.name: rng.standard_normal(shape).astype(np.float32)
        if node.type == "tensor(float)"
        else rng.integers(0, 20, shape).astype(np.int32 if "int32" in node.type else np.int64)
        for node, shape in zip(session.get_inputs(), sizes, strict=True)
    }
    wanted = session.run(None, feeds)
    try:
        module = convert(onnx.load(path)).eval()
        with torch.no_grad():
            given = module(*(torch.from_numpy(array) for array in feeds.values()))
        outputs = given if isinstance(given, (tuple, list)) else (given,)
        for tensor, array in zip(outputs, wanted, strict=False):
            np.testing.assert_allclose(tensor.numpy(), array, rtol=1e-3, atol=1e-3)
    except BaseException as error:  # as above
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    trained = sum(parameter.numel() for parameter in module.parameters())
    return f"passes, {trained} numbers are parameters"


if __name__ == "__main__":
    main()
