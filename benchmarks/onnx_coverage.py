"""How much of ONNX ``pruning.from_onnx`` converts: every node test that ships with the onnx package, run and compared.

python -m benchmarks.onnx_coverage

Passed: the outputs are the expected ones, within the tolerances of the suite. With constants: the same, after the inputs but the
first became initialisers, as in real files (shapes, axes, weights); the suite feeds them. Refused: the converter said by name what
it does not convert. Failed: anything else, which is a bug.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests

from pruning.from_onnx import BadOnnx, Converted, UnsupportedOnnx, convert

# Two units in the last place: sums of half-precision values in another order differ by so much, and the suite allows less.
LAST_BITS = {"torch.bfloat16": 2 * 2**-7, "torch.float16": 2 * 2**-10}


class Ending(StrEnum):
    PASSED = "passed"
    WITH_CONSTANTS = "passed with constants"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True)
class Verdict:
    """How one test ended; ``about`` is the reason of a refusal or failure."""

    name: str
    ending: Ending
    about: str = ""
    operators: tuple[str, ...] = ()


def node_tests() -> list[TestCase]:
    """Return the node tests of the installed onnx package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, while the package computes the expected outputs
        return [case for case in load_model_tests(kind="node") if case.model is not None]


def judge(case: TestCase) -> Verdict:
    """Convert and run one test."""
    assert case.model is not None and case.data_sets is not None
    operators = tuple(sorted({node.op_type for node in case.model.graph.node}))
    model, is_bound = case.model, False
    try:
        try:
            converted = convert(model.SerializeToString())
        except UnsupportedOnnx as error:
            if not any(refusal.needs_constant for refusal in error.refusals):
                raise
            model, is_bound = _bound(case), True
            converted = convert(model.SerializeToString())
    except (UnsupportedOnnx, BadOnnx) as error:
        return Verdict(case.name, Ending.REFUSED, error.message, operators)
    try:
        for feeds, wanted in case.data_sets:
            _compare(
                converted, dict(zip((value.name for value in model.graph.input), feeds, strict=False)), wanted, case
            )
    except Exception as error:  # whatever goes wrong is what this script is to find
        return Verdict(case.name, Ending.FAILED, f"{type(error).__name__}: {str(error).strip()[:300]}", operators)
    return Verdict(case.name, Ending.WITH_CONSTANTS if is_bound else Ending.PASSED, "", operators)


def _bound(case: TestCase) -> onnx.ModelProto:
    """Return the model with every input but the first as an initialiser."""
    assert case.model is not None and case.data_sets is not None
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    feeds, _ = case.data_sets[0]
    for value, array in list(zip(model.graph.input, feeds, strict=False))[1:]:
        if isinstance(array, np.ndarray | np.generic):
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), value.name))
    return model


def _compare(converted: Converted, feeds: dict[str, np.ndarray], wanted: list[np.ndarray], case: TestCase) -> None:
    inputs = [_tensor(_plain(feeds[info.name])) for info in converted.inputs]
    with torch.no_grad():
        given = converted.module(*inputs)
    outputs = (given,) if len(converted.outputs) == 1 else given
    for tensor, expected in zip(outputs, wanted, strict=True):
        array = _array(tensor)
        wide = np.asarray(_plain(expected))
        if wide.dtype.name == "bfloat16":
            wide = wide.astype(np.float32)
        assert array.shape == wide.shape, f"shape {array.shape}, expected {wide.shape}"
        assert array.dtype == wide.dtype, f"dtype {array.dtype}, expected {wide.dtype}"
        rtol = max(case.rtol, LAST_BITS.get(str(tensor.dtype), 0.0))
        np.testing.assert_allclose(array, wide, rtol=rtol, atol=case.atol)


def _plain(value: np.ndarray | onnx.TensorProto) -> np.ndarray:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _tensor(array: np.ndarray) -> torch.Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def _array(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()


def main() -> None:
    verdicts = [judge(case) for case in node_tests()]
    counts = Counter(verdict.ending for verdict in verdicts)
    for ending in Ending:
        print(f"{ending.value:24} {counts[ending]}")
    refused = Counter(name for verdict in verdicts if verdict.ending is Ending.REFUSED for name in verdict.operators)
    passed = {
        name
        for verdict in verdicts
        if verdict.ending in {Ending.PASSED, Ending.WITH_CONSTANTS}
        for name in verdict.operators
    }
    print(
        "\nrefused, never passed:",
        ", ".join(f"{name} {count}" for name, count in sorted(refused.items()) if name not in passed),
    )
    print(
        "\nrefused in some forms:",
        ", ".join(f"{name} {count}" for name, count in sorted(refused.items()) if name in passed),
    )
    for verdict in verdicts:
        if verdict.ending is Ending.FAILED:
            print(f"FAILED {verdict.name}: {verdict.about}")


if __name__ == "__main__":
    main()
