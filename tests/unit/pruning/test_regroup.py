"""Groups found again on a narrower model: the same ones, ready to be scored and cut further."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from domain.candidate import ImportanceMix
from domain.errors import Invalid
from domain.job import ModelSpec
from pruning.groups import Groups, find_groups, regroup
from pruning.importance import gather_evidence, mixed_importance
from pruning.models import build_model
from pruning.surgery import channels_to_remove, prune_to_widths, read_widths
from tests.unit.pruning import nets


def _model(name: str) -> nn.Module:
    return build_model(ModelSpec(name=name, params={"width": 8})).eval()


MAKERS: list[Callable[[], nn.Module]] = [
    lambda: _model("resnet8"),
    lambda: _model("mobilenet"),
    nets.LayerScale,
    nets.Flat,
    nets.Joined,
    nets.JoinedNorm,
]


def _example() -> Tensor:
    return torch.randn(nets.IMAGES)


def _share(groups: Groups, share: float) -> dict[str, int]:
    return {group.name: max(1, int(group.channels * share)) for group in groups.groups}


@pytest.mark.parametrize("make", MAKERS)
def test_the_dense_model_regroups_to_the_groups_it_has(make: Callable[[], nn.Module]) -> None:
    dense, example = make().eval(), _example()
    groups = find_groups(dense, example)
    assert regroup(dense, groups, example) == groups


@pytest.mark.parametrize("make", MAKERS)
def test_two_cuts_in_a_row_give_what_one_cut_gives(make: Callable[[], nn.Module]) -> None:
    dense, example = make().eval(), _example()
    groups = find_groups(dense, example)
    scores = {group.name: torch.rand(group.channels) for group in groups.groups}
    wide, narrow = _share(groups, 0.75), _share(groups, 0.4)
    parent = prune_to_widths(dense, groups, wide, scores, example)
    again = regroup(parent, groups, example)
    assert {group.name: group.channels for group in again.groups} == wide
    left = {}
    for name, values in scores.items():
        gone = channels_to_remove(values, wide[name])
        left[name] = values[[channel for channel in range(len(values)) if channel not in gone]]
    twice = prune_to_widths(parent, again, narrow, left, example)
    once = prune_to_widths(dense, groups, narrow, scores, example)
    assert read_widths(twice, again) == narrow
    for (name, mine), theirs in zip(twice.state_dict().items(), once.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


def test_importance_is_scored_anew_on_the_narrower_model() -> None:
    dense, example = _model("resnet8"), _example()
    groups = find_groups(dense, example)
    scores = {group.name: torch.rand(group.channels) for group in groups.groups}
    parent = prune_to_widths(dense, groups, _share(groups, 0.5), scores, example)
    again = regroup(parent, groups, example)
    evidence = gather_evidence(parent, again, [(example, torch.tensor([0, 1]))])
    anew = mixed_importance(parent, again, ImportanceMix(l2=1, taylor=1, activation=1), evidence)
    assert {name: len(values) for name, values in anew.items()} == _share(groups, 0.5)


def test_params_and_macs_are_the_narrower_models() -> None:
    dense, example = _model("resnet8"), _example()
    groups = find_groups(dense, example)
    scores = {group.name: torch.rand(group.channels) for group in groups.groups}
    parent = prune_to_widths(dense, groups, _share(groups, 0.5), scores, example)
    before = {group.name: group.info for group in groups.groups}
    for group in regroup(parent, groups, example).groups:
        assert 0 < group.info.macs < before[group.name].macs
        assert 0 < group.info.params < before[group.name].params
        assert group.info.stage == before[group.name].stage


def test_a_group_that_hangs_together_otherwise_is_an_error() -> None:
    dense, example = _model("resnet8"), _example()
    groups = find_groups(dense, example)
    torn = replace(groups.groups[0], members=groups.groups[0].members[:-1])
    with pytest.raises(Invalid) as caught:
        regroup(dense, Groups((torn, *groups.groups[1:]), ()), example)
    assert caught.value.code == "groups_changed"
