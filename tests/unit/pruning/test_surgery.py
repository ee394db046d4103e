"""What comes out of surgery is exactly as wide as asked, runs, and computes what the kept channels computed."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from domain.errors import Invalid
from domain.job import ModelSpec
from pruning.groups import Groups, Role, find_groups
from pruning.models import build_model
from pruning.surgery import SurgeryFailed, channels_to_remove, prune_to_widths, read_widths
from tests.unit.pruning import nets


def _model(name: str) -> nn.Module:
    model = build_model(ModelSpec(name=name, params={"width": 8}))
    for module in model.modules():  # statistics unlike those of fresh layers, so that a wrong slice shows
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def _example() -> Tensor:
    return torch.randn(nets.IMAGES)


def _random_scores(groups: Groups) -> dict[str, Tensor]:
    return {group.name: torch.rand(group.channels) for group in groups.groups}


def _silence(model: nn.Module, groups: Groups, name: str, removed: list[int]) -> None:
    """Make the layers that read a group deaf to some channels: what a cut must be equal to."""
    group = next(group for group in groups.groups if group.name == name)
    for member in group.of_role(Role.CONSUMES):
        deaf = [index for index, root in zip(member.index, member.root, strict=True) if root in removed]
        weight = model.get_submodule(member.name).weight
        assert isinstance(weight, Tensor)
        weight.data[:, deaf] = 0


MAKERS: list[Callable[[], nn.Module]] = [
    lambda: _model("resnet8"),
    lambda: _model("convnet"),
    lambda: _model("mobilenet"),
    nets.LayerScale,
    nets.Flat,
    nets.Joined,
    nets.JoinedNorm,
]


@pytest.mark.parametrize("make", MAKERS)
def test_the_cut_model_computes_what_the_dense_one_does_with_those_channels_unread(
    make: Callable[[], nn.Module],
) -> None:
    dense, example = make().eval(), _example()
    groups = find_groups(dense, example)
    widths = {group.name: max(1, group.channels // 2) for group in groups.groups}
    scores = _random_scores(groups)
    pruned = prune_to_widths(dense, groups, widths, scores, example)
    assert read_widths(pruned, groups) == widths
    for group in groups.groups:
        _silence(dense, groups, group.name, channels_to_remove(scores[group.name], widths[group.name]))
    with torch.no_grad():
        torch.testing.assert_close(pruned(example), dense(example), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [8, 12, 20, 64])
@pytest.mark.parametrize("kept", [1, 3, 7, 8])
def test_exactly_the_planned_number_of_channels_goes_even_when_all_scores_are_equal(channels: int, kept: int) -> None:
    removed = channels_to_remove(torch.zeros(channels), kept)
    assert len(removed) == channels - kept
    assert removed == list(range(channels - kept))


def test_the_lowest_scores_go_first() -> None:
    assert channels_to_remove(torch.tensor([3.0, 1.0, 2.0, 0.5]), 2) == [1, 3]


def test_the_order_of_groups_does_not_matter() -> None:
    dense, example = _model("resnet8"), _example()
    groups = find_groups(dense, example)
    widths = {group.name: group.channels // 2 for group in groups.groups}
    scores = _random_scores(groups)
    shuffled = list(groups.groups)
    random.Random(1).shuffle(shuffled)
    one = prune_to_widths(dense, groups, widths, scores, example)
    other = prune_to_widths(dense, Groups(tuple(shuffled), ()), widths, scores, example)
    for (name, mine), theirs in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


def test_the_dense_model_is_not_touched_and_frozen_stays_frozen() -> None:
    dense, example = _model("resnet8"), _example()
    dense.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    with torch.no_grad():
        groups = find_groups(dense, example)
        pruned = prune_to_widths(dense, groups, {"stem": 3}, _random_scores(groups), example)
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())
    assert not any(parameter.requires_grad for parameter in pruned.parameters())
    assert read_widths(pruned, groups)["stem"] == 3


def test_batch_norm_buffers_are_as_long_as_their_weights() -> None:
    dense, example = _model("mobilenet"), _example()
    groups = find_groups(dense, example)
    widths = {group.name: 3 for group in groups.groups}
    pruned = prune_to_widths(dense, groups, widths, _random_scores(groups), example)
    norms = [module for module in pruned.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    for norm in norms:
        assert norm.running_mean is not None and norm.running_var is not None
        assert len(norm.weight) == len(norm.running_mean) == len(norm.running_var) == norm.num_features == 3


def test_dense_widths_give_an_equal_copy() -> None:
    dense, example = _model("convnet"), _example()
    groups = find_groups(dense, example)
    same = prune_to_widths(dense, groups, {group.name: group.channels for group in groups.groups}, {}, example)
    assert same is not dense
    assert torch.equal(same(example), dense(example))


@pytest.mark.parametrize(
    ("widths", "code"), [({"nobody": 2}, "unknown_group"), ({"stem": 0}, "bad_width"), ({"stem": 9}, "bad_width")]
)
def test_widths_that_make_no_sense_are_refused_by_name(widths: dict[str, int], code: str) -> None:
    dense, example = _model("resnet8"), _example()
    groups = find_groups(dense, example)
    with pytest.raises(Invalid) as caught:
        prune_to_widths(dense, groups, widths, _random_scores(groups), example)
    assert caught.value.code == code
    assert caught.value.fields[0].field == f"candidate.widths.{next(iter(widths))}"


def test_a_model_that_changed_behind_the_groups_is_caught() -> None:
    """Groups of a wider model: the cut gives other widths than planned, and that is an error, not a success."""
    wide, example = build_model(ModelSpec(name="convnet", params={"width": 9})), _example()
    groups = find_groups(wide, example)
    with pytest.raises(SurgeryFailed) as caught:
        prune_to_widths(_model("convnet"), groups, {"features.0": 5}, _random_scores(groups), example)
    assert caught.value.code == "group_skipped"
