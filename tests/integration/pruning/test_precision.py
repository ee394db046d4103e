"""fp16 and int8 from the builder: valid files, their own accuracy, and checks that hold what they give."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import onnx
import pytest
import torch
from onnxruntime import InferenceSession
from torch import nn

from domain.build import BuildRequest, BuildResult, BuiltArtifact, CandidateRequest, FinalRequest, PrepareRequest
from domain.candidate import Candidate, RecoveryPlan
from domain.job import DataSpec, ModelSpec
from pruning.builder import TorchBuilder
from pruning.datasets import load_data
from pruning.exporters import ExportFailed, make_exporter
from pruning.exporters.precision import PRECISIONS, in_precision
from pruning.models import build_model
from tests.unit.pruning.folder import FolderStore

MODEL = ModelSpec(name="convnet", params={"width": 16})
DATA = DataSpec(name="digits")
EVERY = ("fp32", "fp16", "int8")


def _build(builder: TorchBuilder, request: BuildRequest) -> BuildResult:
    outcome = builder.build(request, progress=lambda stage, fraction: None, hold=nullcontext)
    assert isinstance(outcome, BuildResult), outcome
    return outcome


@pytest.fixture(scope="module")
def builder(store: FolderStore) -> TorchBuilder:
    return TorchBuilder(store, threads=1, torch_device="cpu")


@pytest.fixture(scope="module")
def prepared(builder: TorchBuilder) -> BuildResult:
    return _build(builder, PrepareRequest(model=MODEL, data=DATA, batch=2, precisions=EVERY))


def _candidate(prepared: BuildResult, precision: str, epochs: float) -> Candidate:
    return Candidate(
        sparsity={group.name: 0.5 for group in prepared.groups},
        widths={group.name: group.channels // 2 for group in prepared.groups},
        precision=precision,
        recovery=RecoveryPlan(epochs=epochs),
    )


def _accuracy(store: FolderStore, built: BuiltArtifact, split: str) -> float:
    """Count by hand, in a session of our own."""
    inputs, labels = getattr(load_data(DATA, store), split)
    session = InferenceSession(store.read(built.artifact.digest), providers=["CPUExecutionProvider"])
    right = 0
    for start in range(0, len(inputs), 2):
        pair = inputs[start : start + 2].numpy()
        filled = pair if len(pair) == 2 else np.concatenate([pair, pair])
        answers = session.run(None, {"input": filled})[0][: len(pair)].argmax(1)
        right += int((answers == labels[start : start + 2].numpy()).sum())
    return right / len(inputs)


def test_the_dense_model_comes_in_every_precision_with_the_accuracy_of_each_file(
    store: FolderStore, prepared: BuildResult
) -> None:
    assert tuple(built.precision for built in prepared.artifacts) == EVERY
    for built in prepared.artifacts:
        assert built.accuracy_search == pytest.approx(_accuracy(store, built, "val"), abs=1e-9)
        onnx.checker.check_model(onnx.load_from_string(store.read(built.artifact.digest)), full_check=True)
    fp32, fp16, int8 = prepared.artifacts
    assert prepared.accuracy.search == fp32.accuracy_search
    assert fp16.artifact.size_bytes < 0.6 * fp32.artifact.size_bytes
    assert int8.artifact.size_bytes < 0.45 * fp32.artifact.size_bytes
    assert int8.accuracy_search is not None and int8.accuracy_search > 0.95


def test_every_precision_takes_the_same_feeds_and_gives_what_its_check_holds(
    store: FolderStore, prepared: BuildResult
) -> None:
    outputs = {}
    for built in prepared.artifacts:
        session = InferenceSession(store.read(built.artifact.digest), providers=["CPUExecutionProvider"])
        assert [(value.name, value.type) for value in session.get_inputs()] == [("input", "tensor(float)")]
        with np.load(io.BytesIO(store.read(built.check.digest)), allow_pickle=False) as check:
            given = session.run(None, {"input": check["input_input"]})[0]
            np.testing.assert_allclose(given, check["output_output"], rtol=1e-3, atol=1e-3)
            outputs[built.precision] = check["output_output"]
    # The check is the file's own, not the float model's.
    assert np.abs(outputs["int8"] - outputs["fp32"]).max() > 1e-3


def test_an_int8_candidate_is_told_the_accuracy_of_its_file_on_val_and_a_final_on_test(
    store: FolderStore, builder: TorchBuilder, prepared: BuildResult
) -> None:
    candidate = _candidate(prepared, "int8", epochs=1.0)
    common = {"model": MODEL, "data": DATA, "batch": 2, "weights": prepared.weights}
    built = _build(builder, CandidateRequest(**common, candidate=candidate))
    (file,) = built.artifacts
    assert file.precision == "int8"
    assert built.accuracy.search == pytest.approx(_accuracy(store, file, "val"), abs=1e-9)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {
        node.op_type for node in onnx.load_from_string(store.read(file.artifact.digest)).graph.node
    }
    final = _build(builder, FinalRequest(**common, start=built.weights, candidate=candidate, epochs=0.5))
    (file,) = final.artifacts
    assert final.accuracy.test == file.accuracy_test == pytest.approx(_accuracy(store, file, "test"), abs=1e-9)


def test_the_dense_final_has_a_test_accuracy_a_precision_and_the_very_files_of_prepare(
    store: FolderStore, builder: TorchBuilder, prepared: BuildResult
) -> None:
    request = FinalRequest(
        model=MODEL, data=DATA, batch=2, weights=prepared.weights, candidate=None, epochs=0, precisions=EVERY
    )
    final = _build(builder, request)
    assert [built.artifact for built in final.artifacts] == [built.artifact for built in prepared.artifacts]
    for built in final.artifacts:
        assert built.accuracy_test == pytest.approx(_accuracy(store, built, "test"), abs=1e-9)


@pytest.mark.parametrize("name", ["resnet8", "mobilenet"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_skips_and_depthwise_layers_convert_too(name: str, precision: str) -> None:
    torch.manual_seed(0)
    model = build_model(ModelSpec(name=name, params={"width": 8})).eval()
    inputs, exporter = torch.randn(32, 1, 16, 16), make_exporter("onnx")
    file = exporter.export(model, inputs[:1])
    made = in_precision(file, precision, inputs)
    with torch.no_grad():
        wanted = model(inputs)
    worst = (exporter.run(made, inputs, threads=1) - wanted).abs().max() / wanted.abs().max()
    assert worst < {"fp32": 1e-5, "fp16": 5e-3, "int8": 0.15}[precision]


def test_what_the_converter_does_not_know_is_the_models_fault() -> None:
    file = make_exporter("onnx").export(nn.Flatten(), torch.randn(1, 4))
    with pytest.raises(ExportFailed) as caught:
        in_precision(file[: len(file) // 2], "int8", torch.randn(4, 4))
    assert "int8" in caught.value.message


def test_calibration_gives_way_between_batches() -> None:
    depth, entered = 0, 0

    @contextmanager
    def hold() -> Iterator[None]:
        nonlocal depth, entered
        depth, entered = depth + 1, entered + 1
        assert depth == 1
        yield
        depth -= 1

    model = build_model(ModelSpec(name="convnet", params={"width": 4})).eval()
    file = make_exporter("onnx").export(model, torch.randn(2, 1, 16, 16))
    in_precision(file, "int8", torch.randn(9, 1, 16, 16), hold=hold)
    assert (depth, entered) == (0, 1 + 5 + 1)
