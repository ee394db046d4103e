"""Blocks that can go as a whole: found by their skip, gone without a trace, not confused with what only looks like one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from domain.candidate import Candidate
from domain.errors import Invalid
from domain.job import ModelSpec
from pruning.blocks import drop_blocks, find_blocks
from pruning.cost import count_params
from pruning.exporters import make_exporter
from pruning.groups import Groups, find_groups, regroup
from pruning.members import is_depthwise
from pruning.models import build_model
from pruning.surgery import prune_to_widths, read_widths
from tests.unit.pruning import nets


def _resnet(name: str = "resnet20") -> nn.Module:
    return build_model(ModelSpec(name=name, params={"width": 4})).eval()


def _vit() -> nn.Module:
    return build_model(ModelSpec(name="vit", params={"image": 8, "patch": 2, "dim": 8, "depth": 2})).eval()


def _example() -> Tensor:
    return torch.randn(nets.IMAGES)


def _names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    example = _example()
    return {block.name: block.groups for block in find_blocks(model, find_groups(model, example), example)}


def test_residual_blocks_are_offered_and_those_with_a_projected_shortcut_are_not() -> None:
    assert _names(_resnet()) == {
        name: (f"{name}.conv1",)
        for name in ("stage1.0", "stage1.1", "stage1.2", "stage2.1", "stage2.2", "stage3.1", "stage3.2")
    }


def test_the_halves_of_a_transformer_layer_are_blocks_of_their_own() -> None:
    assert _names(_vit()) == {
        "blocks.0.attention": ("blocks.0.attention.query",),
        "blocks.0.mlp": ("blocks.0.mlp.up",),
        "blocks.1.attention": ("blocks.1.attention.query",),
        "blocks.1.mlp": ("blocks.1.mlp.up",),
    }


def _mobilenet() -> nn.Sequential:
    model = build_model(ModelSpec(name="mobilenet", params={"width": 4})).eval()
    assert isinstance(model.features, nn.Sequential)
    return model.features


def test_a_model_without_skips_and_depthwise_layers_has_no_blocks() -> None:
    assert _names(build_model(ModelSpec(name="convnet", params={"width": 4})).eval()) == {}


def test_depthwise_layers_that_keep_the_size_are_blocks_and_strided_ones_are_not() -> None:
    model = build_model(ModelSpec(name="mobilenet", params={"width": 4})).eval()
    depthwise = {f"features.{index}": m.stride[0] for index, m in enumerate(_mobilenet()) if is_depthwise(m)}
    assert sorted(depthwise.values()) == [1, 1, 1, 1, 2, 2]
    assert _names(model) == {name: () for name, stride in depthwise.items() if stride == 1}


def test_norm_and_activation_go_with_a_depthwise_layer_and_the_rest_stays() -> None:
    model, example = build_model(ModelSpec(name="mobilenet", params={"width": 4})).eval(), _example()
    without = drop_blocks(model, ("features.9",))
    by_hand = nn.Sequential(*(m for index, m in enumerate(model.features) if index not in {9, 10, 11}))
    torch.testing.assert_close(without(example), model.classifier(torch.flatten(model.pool(by_hand(example)), 1)))
    torch.testing.assert_close(drop_blocks(without, ("features.9",))(example), without(example))


def test_a_network_without_a_depthwise_layer_is_narrowed_further() -> None:
    model, example = build_model(ModelSpec(name="mobilenet", params={"width": 4})).eval(), _example()
    groups = find_groups(model, example)
    scores = {group.name: torch.rand(group.channels) for group in groups.groups}
    widths = {group.name: max(1, group.channels // 2) for group in groups.groups}
    half = prune_to_widths(model, groups, widths, scores, example, ("features.9",))
    again = regroup(half, groups, example)
    assert {group.name: group.channels for group in again.groups} == widths
    assert not any(member.name in {"features.9", "features.10"} for group in again.groups for member in group.members)
    quarter = {name: max(1, width // 2) for name, width in widths.items()}
    rest = {group.name: torch.rand(group.channels) for group in again.groups}
    narrower = prune_to_widths(half, again, quarter, rest, example, ("features.9", "features.33"))
    assert read_widths(narrower, again) == quarter
    exporter = make_exporter("onnx")
    answers = exporter.run(exporter.export(narrower, example[:1]), example, threads=1)
    torch.testing.assert_close(torch.as_tensor(answers), narrower(example).detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["bare", "norm"])
def test_a_depthwise_layer_outside_a_sequence_goes_alone(name: str) -> None:
    parts = [nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)]
    if name == "norm":
        parts.insert(1, nn.BatchNorm2d(8))
    assert _names(_Net(*parts).eval()) == {"parts.0": ()}


class _Net(nn.Module):
    """Some modules between a stem and a classifier, all eight channels wide."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.parts = nn.ModuleList(parts)
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        out = self.stem(inputs)
        for part in self.parts:
            out = part(out)
        return self.head(out.mean((2, 3)))


class _Part(nn.Module):
    """A hidden convolution and what is done with it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.one, self.two = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.own = nn.Conv2d(8, 8, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        out = self.two(torch.relu(self.one(inputs)))
        if self.how == "plain":
            return out + self.own(inputs)  # adds up, but the input itself does not get through
        if self.how == "gate":
            return inputs * torch.sigmoid(out + self.own(inputs))
        if self.how == "doubled":
            return 2 * (inputs + out + self.own(inputs))
        if self.how == "in place":
            out += inputs
            return torch.nn.functional.silu(out + self.own(out))
        return torch.relu(inputs + out + self.own(inputs))


@pytest.mark.parametrize(
    ("how", "is_block"), [("plain", False), ("gate", False), ("doubled", False), ("in place", True), ("relu", True)]
)
def test_only_what_passes_its_input_on_by_addition_is_a_block(how: str, is_block: bool) -> None:
    assert _names(_Net(_Part(how))) == ({"parts.0": ("parts.0.one",)} if is_block else {})


def test_a_block_that_runs_twice_or_shares_a_weight_is_not_offered() -> None:
    twice = _Part("relu")
    assert find_blocks(_Net(twice, twice).eval(), Groups((), ()), _example()) == ()
    left, right = _Part("relu"), _Part("relu")
    right.own.weight = left.own.weight
    assert _names(_Net(left, right)) == {}


class _Nested(nn.Module):
    """A block with a block in it and a convolution of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = _Part("relu")
        self.own = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.own(self.inner(inputs))


def test_of_nested_blocks_the_outer_one_is_offered_if_it_is_more_than_its_parts() -> None:
    assert list(_names(_Net(_Nested()))) == ["parts.0"]
    assert list(_names(_Net(nn.Sequential(_Part("relu"), _Part("relu"))))) == ["parts.0.0", "parts.0.1"]


class _Encoder(nn.Module):
    """torch's own encoder, which hands every layer a mask."""

    def __init__(self, *, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=norm_first)
        self.up = nn.Linear(8, 8)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        mask = torch.zeros(8, 8)
        return self.head(self.encoder(self.up(inputs.flatten(0, 1)), mask=mask).mean(1))


@pytest.mark.parametrize("norm_first", [True, False])
def test_layers_that_get_more_than_their_input_are_blocks_too(norm_first: bool) -> None:
    """All but the first, whose attention torch's encoder looks into."""
    model, example = _Encoder(norm_first=norm_first).eval(), _example()
    names = list(_names(model))
    assert names == ["encoder.layers.1", "encoder.layers.2"]
    with torch.no_grad():
        assert drop_blocks(model, names)(example).shape == (2, 3)


def test_finding_blocks_leaves_the_model_as_it_was() -> None:
    model = _resnet().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _names(model)
    assert model.training and not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("make", [_resnet, _vit])
def test_a_dropped_block_is_as_if_what_it_adds_were_nothing(make: object) -> None:
    dense, example = make(), _example()  # type: ignore[operator]
    names = list(_names(dense))[1:3]
    dropped = drop_blocks(dense, names)
    assert not [name for name in dropped.state_dict() if name.startswith(tuple(f"{name}." for name in names))]
    for name in names:
        last = dense.get_submodule(f"{name}.{'bn2' if make is _resnet else 'proj' if 'attention' in name else 'down'}")
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
    with torch.no_grad():
        torch.testing.assert_close(dropped(example), dense(example))


def test_blocks_and_widths_go_together_and_the_file_holds_neither() -> None:
    dense, example = _resnet(), _example()
    groups = find_groups(dense, example)
    scores = {group.name: torch.rand(group.channels) for group in groups.groups}
    widths = {group.name: max(2, group.channels // 2) for group in groups.groups}
    names = ("stage1.1", "stage3.2")
    pruned = prune_to_widths(dense, groups, widths, scores, example, dropped=names)
    gone = {"stage1.1.conv1", "stage3.2.conv1"}
    assert read_widths(pruned, groups) == {name: width for name, width in widths.items() if name not in gone}
    # The block first or the channels first: the same network.
    other = drop_blocks(prune_to_widths(dense, groups, widths, scores, example), names)
    assert count_params(pruned) == count_params(other)
    with torch.no_grad():
        torch.testing.assert_close(pruned(example), other(example))
    whole, file = make_exporter("onnx").export(dense, example), make_exporter("onnx").export(pruned, example)
    assert file.count(b"stage3.1") > 0 or len(file) < 0.5 * len(whole)
    assert b"stage3.2.conv1" not in file and b"stage1.1" not in file


def test_a_narrower_model_with_a_block_gone_can_be_cut_further() -> None:
    dense, example = _resnet(), _example()
    groups = find_groups(dense, example)
    scores = {group.name: torch.rand(group.channels) for group in groups.groups}
    widths = {group.name: group.channels - 1 for group in groups.groups}
    parent = prune_to_widths(dense, groups, widths, scores, example, dropped=("stage2.1",))
    again = regroup(parent, groups, example)
    assert "stage2.1.conv1" not in {group.name for group in again.groups}
    assert len(again.groups) == len(groups.groups) - 1
    further = {name: width - 1 for name, width in widths.items()}
    anew = {group.name: torch.rand(group.channels) for group in again.groups}
    child = prune_to_widths(parent, again, further, anew, example, dropped=("stage2.1", "stage2.2"))
    gone = {"stage2.1.conv1", "stage2.2.conv1"}
    assert read_widths(child, again) == {name: width for name, width in further.items() if name not in gone}


def test_an_unknown_block_is_refused_by_name() -> None:
    with pytest.raises(Invalid) as caught:
        drop_blocks(_resnet(), ("stage9.1",))
    assert caught.value.code == "unknown_block"
    assert caught.value.fields[0].field == "candidate.dropped"


def test_candidates_that_build_the_same_network_have_the_same_hash() -> None:
    one = Candidate(sparsity={}, widths={"stem": 8, "stage1.1.conv1": 8}, dropped=("stage2.1", "stage1.1"))
    other = Candidate(
        sparsity={}, widths={"stem": 8, "stage1.1.conv1": 2}, dropped=("stage1.1", "stage2.1", "stage1.1")
    )
    assert one.architecture == other.architecture and one.key == other.key
    assert other.dropped == ("stage1.1", "stage2.1")
    assert other.kept_widths == {"stem": 8}
    near = Candidate(sparsity={}, widths={"stem": 8, "stage1.10.conv1": 8}, dropped=("stage1.1",))
    assert near.kept_widths == near.widths
    assert not one.is_dense([])
    whole = one.model_copy(update={"dropped": ()})
    assert whole.architecture != one.architecture and whole.key != one.key
