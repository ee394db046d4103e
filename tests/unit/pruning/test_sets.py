"""Sets of channels: what a grouped convolution or a group norm works on goes whole, and what is left gives what it gave."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from domain.candidate import ImportanceMix
from pruning.exporters import make_exporter
from pruning.groups import Groups, find_groups, regroup
from pruning.importance import gather_evidence, mixed_importance
from pruning.members import Kind
from pruning.narrow import deaf
from pruning.network import describe_layers
from pruning.surgery import channels_to_remove, prune_to_widths, read_widths
from search.widths import widths_of


def _norm(channels: int, groups: int | None) -> nn.Module:
    norm = nn.BatchNorm2d(channels) if groups is None else nn.GroupNorm(groups, channels)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    if isinstance(norm, nn.BatchNorm2d):
        norm.running_mean = torch.randn(channels)
    return norm


class _Bottleneck(nn.Module):
    """As in RegNet: narrow, by groups with a gate, and wide again on a skip. Source: arXiv:2003.13678."""

    def __init__(self, width: int, groups: int, norm: int | None) -> None:
        super().__init__()
        self.reduce, self.norm1 = nn.Conv2d(12, width, 1), _norm(width, norm)
        self.grouped, self.norm2 = nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=False), _norm(width, norm)
        self.squeeze, self.excite = nn.Conv2d(width, 5, 1), nn.Conv2d(5, width, 1)
        self.expand = nn.Conv2d(width, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.reduce(x)))
        y = torch.relu(self.norm2(self.grouped(y)))
        y = y * torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return torch.relu(x + self.expand(y))


class _Regnet(nn.Module):
    def __init__(self, norm: int | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1)
        self.blocks = nn.Sequential(_Bottleneck(24, 4, norm), _Bottleneck(16, 2, norm))
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))


class _Multiplied(nn.Module):
    """A grouped convolution that makes more than it reads, then a depthwise one; its sets are read behind a concatenation."""

    def __init__(self, norm: int | None = None) -> None:
        super().__init__()
        self.stem, self.beside = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(1, 5, 3, padding=1)
        self.grouped = nn.Conv2d(8, 24, 3, padding=1, groups=4)
        self.depthwise, self.norm = nn.Conv2d(24, 24, 3, padding=1, groups=24), _norm(24, norm)
        self.up = nn.ConvTranspose2d(29, 6, 2, stride=2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(torch.relu(self.grouped(torch.relu(self.stem(x))))))
        return self.head(torch.relu(self.up(torch.cat([self.beside(x), y], 1))).mean((2, 3)))


class _Normed(nn.Module):
    """Group norms on a residual stream, with a scale of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.norm, self.conv = _norm(16, 4), nn.Conv2d(16, 16, 3, padding=1)
        self.gamma = nn.Parameter(torch.randn(16, 1, 1))
        self.last, self.head = _norm(16, 4), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.gamma * self.conv(torch.relu(self.norm(x)))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


NETS: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "regnet": (_Regnet, {"blocks.0.reduce": 4, "blocks.1.reduce": 2}),
    "regnet with group norms": (lambda: _Regnet(norm=2), {"blocks.1.reduce": 2}),
    "more made than read": (_Multiplied, {"stem": 4}),
    "more made than read, normed": (lambda: _Multiplied(norm=4), {"stem": 4}),
    "group norms": (_Normed, {"stem": 4}),
}


@pytest.mark.parametrize(("make", "sets"), NETS.values(), ids=NETS.keys())
def test_without_some_sets_the_others_give_what_they_gave(make: Callable[[], nn.Module], sets: dict[str, int]) -> None:
    torch.manual_seed(0)
    model, example = make().eval(), torch.randn(5, 1, 8, 8)
    groups = find_groups(model, example)
    assert {group.name: group.channels for group in groups.groups if group.kind is Kind.SETS} == sets
    evidence = gather_evidence(model, groups, [(example, torch.tensor([0, 1, 2, 0, 1]))])
    scores = mixed_importance(model, groups, ImportanceMix(l2=1, taylor=1, activation=1), evidence)
    assert all(bool((scores[group.name] > 0).all()) for group in groups.groups)
    widths = {group.name: max(1, round(0.6 * group.channels)) for group in groups.groups}
    pruned = prune_to_widths(model, groups, widths, scores, example)
    assert read_widths(pruned, groups) == widths
    with torch.no_grad():
        wanted = _deaf(model, groups, widths, scores)(example)
        torch.testing.assert_close(pruned(example), wanted, rtol=1e-3, atol=1e-4)
        exporter = make_exporter("onnx")
        exporter.check(exporter.export(pruned, example), example, pruned(example))


def _deaf(model: nn.Module, groups: Groups, widths: dict[str, int], scores: dict[str, Tensor]) -> nn.Module:
    """Return the whole model in which nobody reads what was removed."""
    for group in groups.groups:
        model = deaf(model, group.members, channels_to_remove(scores[group.name], widths[group.name]))
    return model


def test_sets_can_be_cut_again_down_to_one() -> None:
    model, example = _Regnet().eval(), torch.randn(2, 1, 8, 8)
    groups = find_groups(model, example)
    random = {group.name: torch.rand(group.channels) for group in groups.groups}
    half = prune_to_widths(model, groups, {"blocks.0.reduce": 2, "stem": 7}, random, example)
    again = regroup(half, groups, example)
    assert {group.name: group.channels for group in again.groups}["blocks.0.reduce"] == 2
    one = prune_to_widths(half, again, {"blocks.0.reduce": 1}, {"blocks.0.reduce": torch.rand(2)}, example)
    grouped = one.get_submodule("blocks.0.grouped")
    assert (grouped.groups, grouped.in_channels, grouped.out_channels) == (1, 6, 6)
    last = regroup(one, groups, example)
    assert {group.name: group.channels for group in last.groups}["blocks.0.reduce"] == 1
    scores = {group.name: torch.rand(group.channels) for group in last.groups}
    assert prune_to_widths(one, last, {"stem": 3}, scores, example)(example).shape == (2, 3)


def test_a_dropped_block_takes_its_sets_along() -> None:
    model, example = _Regnet().eval(), torch.randn(2, 1, 8, 8)
    groups = find_groups(model, example)
    scores = {group.name: torch.rand(group.channels) for group in groups.groups}
    cut = prune_to_widths(model, groups, {"blocks.1.reduce": 1}, scores, example, dropped=("blocks.0",))
    assert read_widths(cut, groups)["blocks.1.reduce"] == 1
    assert [group.name for group in regroup(cut, groups, example).groups if group.kind is Kind.SETS] == [
        "blocks.1.reduce"
    ]


def test_the_search_counts_in_sets_and_sees_what_they_cost() -> None:
    model, example = _Regnet().eval(), torch.randn(2, 1, 8, 8)
    groups = find_groups(model, example)
    info = {group.name: group.info for group in groups.groups}["blocks.0.reduce"]
    assert info.topology.startswith("sets:inner:") and widths_of(info) == [1, 2, 3, 4]
    assert info.macs == 64 * (12 * 24 + 24 * 6 * 9) + 5 * 24  # the grouped convolution and the gate, too
    layers = {layer.name: layer for layer in describe_layers(model, groups, example)}
    assert (
        layers["blocks.0.grouped"].out_groups == {"blocks.0.reduce": 6} and layers["blocks.0.grouped"].in_groups == {}
    )
    assert layers["blocks.0.expand"].in_groups == {"blocks.0.reduce": 6}
    assert not any(name.endswith(".scores") for name in layers)  # which is of attentions


def test_sets_of_single_channels_go_some_at_a_time() -> None:
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.Conv2d(16, 32, 3, groups=16), nn.Conv2d(32, 3, 1), nn.Flatten())
    model.append(nn.Linear(3 * 16, 2))
    groups = find_groups(model.eval(), torch.randn(2, 1, 8, 8))
    info = {group.name: group.info for group in groups.groups}["0"]
    assert info.channels == 16 and widths_of(info) == [4, 8, 12, 16]


class _Two(nn.Module):
    """Two grouped convolutions one after another, a group norm, or what is put between."""

    def __init__(self, between: nn.Module, *, joined: bool = False) -> None:
        super().__init__()
        self.stem, self.beside = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(1, 6, 3, padding=1)
        self.joined = joined
        self.grouped = nn.Conv2d(18 if joined else 12, 36, 3, padding=1, groups=2)
        self.between, self.last = between, nn.Conv2d(36, 7, 1)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.stem(x), self.beside(x)], 1) if self.joined else self.stem(x)
        return self.head(self.last(self.between(self.grouped(y))).mean((2, 3)))


REFUSED: dict[str, tuple[nn.Module, str, str]] = {
    "other groups": (_Two(nn.Conv2d(36, 36, 1, groups=3)), "grouped", "its groups are others"),
    "a norm over other sets": (_Two(nn.GroupNorm(9, 36)), "grouped", "its groups are others"),
    "sets across a concatenation": (_Two(nn.Identity(), joined=True), "stem", "in part only"),
    "one norm over everything": (
        nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(1, 8), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 2, 6), nn.Flatten()),
        "0",
        "takes its mean over all channels",
    ),
}


@pytest.mark.parametrize(("model", "layer", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_sets_that_do_not_fit_are_refused_by_name(model: nn.Module, layer: str, words: str) -> None:
    groups = find_groups(model.eval(), torch.randn(2, 1, 8, 8))
    reasons = {one.name: one.reason for one in groups.unprunable}
    assert words in reasons[layer], reasons
    assert not any(group.kind is Kind.SETS for group in groups.groups) and groups.groups


def test_a_grouped_convolution_of_the_models_own_inputs_is_named() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.Flatten(), nn.Linear(6 * 36, 3)
    )
    groups = find_groups(model.eval(), torch.randn(2, 4, 8, 8))
    assert "no layer here makes" in {one.name: one.reason for one in groups.unprunable}["0"]
    assert [group.name for group in groups.groups] == ["2"]
