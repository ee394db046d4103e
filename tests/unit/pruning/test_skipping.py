"""What a block is worth is what the model loses without it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from domain.candidate import Candidate
from domain.job import DataSpec, ModelSpec
from pruning.accuracy import predict
from pruning.blocks import drop_blocks
from pruning.cost import count_macs, count_params
from pruning.datasets import load_data
from pruning.dense import Dense, open_dense
from pruning.metrics.scores import accuracy as accuracy_of
from pruning.precision import Compute
from pruning.recovery import Recipe, reestimate_batch_norm, train
from pruning.rough import Rough
from pruning.skipping import score_blocks, weight_norm
from pruning.stopwatch import Stopwatch
from pruning.surgery import read_widths
from tests.unit.pruning.folder import FolderStore

FP32 = Compute(torch.device("cpu"))
TOLD: list[tuple[str, float]] = []


def _watch() -> Stopwatch:
    return Stopwatch(lambda stage, fraction: TOLD.append((stage, fraction)), nullcontext)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Dense:
    splits = load_data(DataSpec(name="digits"), FolderStore(Path(tmp_path_factory.mktemp("store"))))

    def fill(model: nn.Module, dense: Dense) -> None:
        data = dense.training_set(distill=False, hold=nullcontext)
        train(model, data, Recipe(epochs=3, learning_rate=0.05), FP32)

    return open_dense(ModelSpec(name="resnet14", params={"width": 8}), splits, "accuracy", 0, FP32, fill)


def test_a_block_is_scored_by_leaving_it_out_alone(dense: Dense) -> None:
    TOLD.clear()
    infos = {info.name: info for info in score_blocks(Rough(dense, 200, nullcontext), _watch())}
    assert list(infos) == ["stage1.0", "stage1.1", "stage2.1", "stage3.1"]
    assert [fraction for _, fraction in TOLD] == [0.25, 0.5, 0.75, 1.0]
    inputs, labels = dense.splits.val[0][:200], dense.labels("val", nullcontext)[:200]
    whole = predict(dense.model, inputs, FP32)
    for name, info in infos.items():
        without = drop_blocks(dense.model, (name,))
        assert info.macs == count_macs(dense.model, dense.example) - count_macs(without, dense.example)
        assert info.params == count_params(dense.model) - count_params(without)
        assert info.groups == (f"{name}.conv1",)
        changed = predict(without, inputs, FP32) - whole
        assert info.output_change == pytest.approx(float(changed.norm() / whole.norm()), rel=1e-4)
        reestimate_batch_norm(without, dense.calibration()[0], FP32, samples=100)
        lost = accuracy_of(whole, labels) - accuracy_of(predict(without, inputs, FP32), labels)
        assert info.sensitivity == pytest.approx(lost, abs=0.011)
    assert len({info.weight_norm for info in infos.values()}) == len(infos)
    assert max(info.output_change for info in infos.values()) > 0.1


def test_a_block_whose_last_norm_is_zero_changes_nothing(dense: Dense) -> None:
    last = dense.model.get_submodule("stage2.1.bn2")
    before = {name: tensor.clone() for name, tensor in last.state_dict().items()}
    nn.init.zeros_(last.weight)  # type: ignore[arg-type]
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    try:
        info = {info.name: info for info in score_blocks(Rough(dense, 100, nullcontext), _watch())}["stage2.1"]
    finally:
        last.load_state_dict(before)
    assert info.output_change == pytest.approx(0, abs=1e-6)


def test_the_norm_of_weights_is_their_typical_size() -> None:
    layers = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    nn.init.constant_(layers[0].weight, -0.5)  # type: ignore[arg-type]
    assert weight_norm(layers) == pytest.approx(0.5)
    assert weight_norm(nn.LayerNorm(3)) == 0


def test_a_candidate_may_drop_blocks_and_narrow_the_rest(dense: Dense) -> None:
    widths = {group.name: group.channels // 2 for group in dense.groups().groups}
    candidate = Candidate(sparsity={}, widths=widths, dropped=("stage3.1",))
    model = dense.pruned_as(candidate, nullcontext)
    assert read_widths(model, dense.groups()) == candidate.kept_widths
    parent = dense.narrowed(model)
    deeper = candidate.model_copy(update={"dropped": ("stage1.1", "stage3.1")})
    child = parent.pruned_as(deeper, nullcontext)
    assert read_widths(child, dense.groups()) == deeper.kept_widths
