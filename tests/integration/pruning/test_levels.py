"""Blocks and heads through the builder: listed by prepare, gone from a candidate's file, gone on from by its final."""

from __future__ import annotations

import io
from contextlib import nullcontext

import numpy as np
import onnx
import onnxruntime
import pytest

from domain.build import BuildRequest, BuildResult, CandidateRequest, FinalRequest, Inherited, PrepareRequest
from domain.candidate import Candidate, RecoveryPlan
from domain.job import DataSpec, ModelSpec
from domain.outcome import Failed
from pruning.builder import TorchBuilder
from pruning.sensitivity import LEAST_LOSS
from tests.unit.pruning.folder import FolderStore

DATA = DataSpec(name="digits")
RESNET = ModelSpec(name="resnet14", params={"width": 8})
VIT = ModelSpec(name="vit", params={"image": 8, "patch": 2, "dim": 24, "depth": 2, "heads": 3})


@pytest.fixture(scope="module")
def builder(store: FolderStore) -> TorchBuilder:
    return TorchBuilder(store, threads=1, torch_device="cpu")


def _build(builder: TorchBuilder, request: BuildRequest) -> BuildResult:
    outcome = builder.build(request, progress=lambda stage, fraction: None, hold=nullcontext)
    assert isinstance(outcome, BuildResult), outcome
    return outcome


def _passes_its_check(store: FolderStore, result: BuildResult) -> bytes:
    (artifact,) = result.artifacts
    file = store.read(artifact.artifact.digest)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    with np.load(io.BytesIO(store.read(artifact.check.digest)), allow_pickle=False) as check:
        given = session.run(None, {name.name: check[f"input_{name.name}"] for name in session.get_inputs()})[0]
        np.testing.assert_allclose(given, check[f"output_{session.get_outputs()[0].name}"], rtol=1e-3, atol=1e-4)
    return file


def test_a_dropped_block_is_gone_from_the_file_the_child_and_the_final(
    store: FolderStore, builder: TorchBuilder
) -> None:
    prepared = _build(builder, PrepareRequest(model=RESNET, data=DATA))
    blocks = {block.name: block for block in prepared.blocks}
    assert list(blocks) == ["stage1.0", "stage1.1", "stage2.1", "stage3.1"]
    assert all(-1 <= block.sensitivity <= 1 and block.macs > 0 for block in blocks.values())
    assert prepared.stages_s["sensitivity"] > 0
    candidate = Candidate(
        sparsity={},
        widths={group.name: group.channels // 2 for group in prepared.groups},
        dropped=("stage2.1",),
        recovery=RecoveryPlan(epochs=2, learning_rate=0.05),
    )
    request = CandidateRequest(model=RESNET, data=DATA, weights=prepared.weights, candidate=candidate)
    built = _build(builder, request)
    assert built.widths == candidate.kept_widths
    assert built.accuracy.search > 0.8
    assert b"stage2.1.conv" not in _passes_its_check(store, built)
    whole = _build(builder, request.model_copy(update={"candidate": candidate.model_copy(update={"dropped": ()})}))
    assert built.macs < whole.macs and built.params < whole.params
    assert built.artifacts[0].artifact.size_bytes < whole.artifacts[0].artifact.size_bytes

    deeper = candidate.model_copy(update={"dropped": ("stage2.1", "stage3.1")})
    start = Inherited(candidate=candidate, weights=built.weights)
    child = _build(builder, request.model_copy(update={"candidate": deeper, "start": start}))
    assert child.widths == deeper.kept_widths and child.params < built.params
    _passes_its_check(store, child)

    final = _build(
        builder,
        FinalRequest(
            model=RESNET, data=DATA, weights=prepared.weights, start=child.weights, candidate=deeper, epochs=1
        ),
    )
    assert final.widths == child.widths
    assert final.accuracy.test is not None and final.accuracy.test > 0.8


def test_a_transformer_loses_heads_features_and_halves_of_layers(store: FolderStore, builder: TorchBuilder) -> None:
    prepared = _build(builder, PrepareRequest(model=VIT, data=DATA))
    assert prepared.is_slow_to_recover
    assert prepared.accuracy.search > 0.8
    heads = [group for group in prepared.groups if group.granularity == 1]
    assert [group.channels for group in heads] == [3, 3]
    for group in prepared.groups:  # by half only where three quarters cost
        assert set(group.sensitivity) == ({"0.75", "0.5"} if group.sensitivity["0.75"] > LEAST_LOSS else {"0.75"})
    assert len(prepared.blocks) == 4
    widths = {group.name: 2 if group in heads else group.channels // 2 for group in prepared.groups}
    candidate = Candidate(
        sparsity={},
        widths=widths,
        dropped=("blocks.1.attention",),
        recovery=RecoveryPlan(epochs=2, learning_rate=0.05),
    )
    built = _build(builder, CandidateRequest(model=VIT, data=DATA, weights=prepared.weights, candidate=candidate))
    assert built.widths == candidate.kept_widths
    untrained = candidate.model_copy(update={"recovery": RecoveryPlan(epochs=0)})
    before = _build(builder, CandidateRequest(model=VIT, data=DATA, weights=prepared.weights, candidate=untrained))
    assert built.accuracy.search > max(0.5, before.accuracy.search)
    assert b"blocks.1.attention" not in _passes_its_check(store, built)


@pytest.mark.parametrize(("zeros", "share"), [("2:4", 0.5), ("row:0.8", 0.8)])
def test_weights_set_to_zero_stay_zero_in_the_file_and_through_the_final(
    store: FolderStore, builder: TorchBuilder, zeros: str, share: float
) -> None:
    prepared = _build(builder, PrepareRequest(model=RESNET, data=DATA))
    plan = RecoveryPlan(epochs=2, learning_rate=0.05)
    candidate = Candidate(
        sparsity={}, widths={group.name: group.channels for group in prepared.groups}, zeros=zeros, recovery=plan
    )
    built = _build(builder, CandidateRequest(model=RESNET, data=DATA, weights=prepared.weights, candidate=candidate))
    assert built.macs == prepared.macs and built.params == prepared.params, "zeros are no smaller network"
    assert built.accuracy.search > 0.8
    assert _zeros_of(_passes_its_check(store, built)) == pytest.approx(share, abs=0.03)
    (file,), (dense,) = built.artifacts, prepared.artifacts
    assert file.compressed_bytes is not None and dense.compressed_bytes is not None
    assert file.compressed_bytes < (1 - 0.6 * share) * dense.compressed_bytes
    final = _build(
        builder,
        FinalRequest(
            model=RESNET, data=DATA, weights=prepared.weights, start=built.weights, candidate=candidate, epochs=1
        ),
    )
    assert _zeros_of(_passes_its_check(store, final)) == pytest.approx(share, abs=0.03)
    assert final.accuracy.test is not None and final.accuracy.test > 0.8


def _zeros_of(file: bytes) -> float:
    """Return the share of zeros in a file's filters but the first layer's, whose rows are too short."""
    tensors = [onnx.numpy_helper.to_array(one) for one in onnx.load_from_string(file).graph.initializer]
    filters = [tensor for tensor in tensors if tensor.ndim == 4 and tensor[0].size >= 16]
    assert filters
    return sum(int((tensor == 0).sum()) for tensor in filters) / sum(tensor.size for tensor in filters)


def test_an_unknown_block_is_the_candidates_fault(builder: TorchBuilder) -> None:
    prepared = _build(builder, PrepareRequest(model=RESNET, data=DATA))
    candidate = Candidate(sparsity={}, widths={}, dropped=("stage7.1",))
    request = CandidateRequest(model=RESNET, data=DATA, weights=prepared.weights, candidate=candidate)
    outcome = builder.build(request, progress=lambda stage, fraction: None, hold=nullcontext)
    assert isinstance(outcome, Failed)
    assert outcome.code == "unknown_block"
