"""Depthwise layers, inverted residuals and squeeze-and-excite, with trained weights: cutting is not reading."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from domain.candidate import ImportanceMix
from domain.job import DataSpec, ModelSpec
from pruning.accuracy import evaluate
from pruning.blocks import find_blocks
from pruning.datasets import load_data
from pruning.datasets.splits import CheckedSplits
from pruning.groups import Role, find_groups, regroup
from pruning.importance import gather_evidence, mixed_importance
from pruning.models import build_model
from pruning.precision import Compute
from pruning.recovery import Recipe, TrainingSet, train
from pruning.surgery import channels_to_remove, prune_to_widths, read_widths
from tests.unit.pruning.folder import FolderStore
from tests.unit.pruning.mobile import Mobile

FP32 = Compute(torch.device("cpu"))


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> CheckedSplits:
    return load_data(DataSpec(name="digits"), FolderStore(Path(tmp_path_factory.mktemp("store"))))


@pytest.fixture(scope="module", params=["mobilenet", "inverted residuals", "resnet8"])
def trained(request: pytest.FixtureRequest, splits: CheckedSplits) -> nn.Module:
    """A model that learnt something: its channels differ in what they are worth."""
    torch.manual_seed(0)
    name = request.param
    model = Mobile() if name == "inverted residuals" else build_model(ModelSpec(name=name, params={"width": 8}))
    train(model, TrainingSet(*splits.train), Recipe(epochs=4, learning_rate=0.05), FP32)
    assert evaluate(model, *splits.val, FP32) > 0.8
    return model


@pytest.mark.parametrize("share", [0.75, 0.4])
def test_a_cut_model_is_the_trained_one_in_which_nobody_reads_those_channels(
    trained: nn.Module, splits: CheckedSplits, share: float
) -> None:
    inputs, labels = splits.train[0][:64], splits.train[1]
    assert labels is not None
    groups = find_groups(trained, inputs[:2])
    evidence = gather_evidence(trained, groups, [(inputs, labels[:64])])
    scores = mixed_importance(trained, groups, ImportanceMix(l2=1, taylor=1, activation=1), evidence)
    widths = {group.name: max(2, int(group.channels * share)) for group in groups.groups}
    pruned = prune_to_widths(trained, groups, widths, scores, inputs[:2])
    assert read_widths(pruned, groups) == widths
    masked = deepcopy(trained).eval()
    for group in groups.groups:
        removed = set(channels_to_remove(scores[group.name], widths[group.name]))
        for member in group.of_role(Role.CONSUMES):
            deaf = [index for index, root in zip(member.index, member.root, strict=True) if root in removed]
            weight = masked.get_submodule(member.name).weight
            assert isinstance(weight, Tensor)
            weight.data[:, deaf] = 0
    with torch.no_grad():
        torch.testing.assert_close(pruned(splits.val[0]), masked(splits.val[0]), rtol=1e-3, atol=1e-4)


def test_an_excited_hidden_layer_is_one_inner_group_with_its_excitation() -> None:
    example = torch.randn(2, 1, 8, 8)
    groups = {group.name: group for group in find_groups(Mobile(), example).groups}
    hidden = groups["blocks.0.widen"]
    assert {member.name: member.role for member in hidden.members if "norm" not in member.name} == {
        "blocks.0.widen": Role.PRODUCES,
        "blocks.0.depthwise": Role.CARRIES,
        "blocks.0.excite.reduce": Role.CONSUMES,
        "blocks.0.excite.expand": Role.PRODUCES,
        "blocks.0.narrow": Role.CONSUMES,
    }
    assert not hidden.info.is_residual
    assert groups["blocks.0.excite.reduce"].channels == 6
    assert [name for name, group in groups.items() if group.info.is_residual] == ["stem", "blocks.1.narrow"]


def test_inverted_residuals_with_a_skip_are_blocks() -> None:
    model, example = Mobile().eval(), torch.randn(2, 1, 8, 8)
    blocks = {block.name: set(block.groups) for block in find_blocks(model, find_groups(model, example), example)}
    assert blocks == {name: {f"{name}.widen", f"{name}.excite.reduce"} for name in ("blocks.0", "blocks.2", "blocks.3")}


def test_a_narrower_one_is_cut_further() -> None:
    model, example = Mobile().eval(), torch.randn(2, 1, 8, 8)
    groups = find_groups(model, example)
    widths = {group.name: group.channels - 1 for group in groups.groups}
    parent = prune_to_widths(model, groups, widths, {g.name: torch.rand(g.channels) for g in groups.groups}, example)
    again = regroup(parent, groups, example)
    half = {group.name: group.channels // 2 for group in again.groups}
    child = prune_to_widths(parent, again, half, {g.name: torch.rand(g.channels) for g in again.groups}, example)
    assert read_widths(child, again) == half
