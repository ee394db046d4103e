"""Groups are found as they are, or refused with a reason; nothing found is an error."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from domain.errors import Invalid
from domain.job import ModelSpec
from pruning.groups import Groups, Role, find_groups
from pruning.models import build_model
from tests.unit.pruning import nets


def _resnet(name: str = "resnet8") -> nn.Module:
    return build_model(ModelSpec(name=name, params={"width": 4}))


def _example() -> torch.Tensor:
    return torch.randn(nets.IMAGES)


def _names(groups: Groups) -> list[str]:
    return [group.name for group in groups.groups]


def _reasons(groups: Groups) -> dict[str, str]:
    return {layer.name: layer.reason for layer in groups.unprunable}


def test_a_resnet_has_one_outer_group_a_stage_and_one_inner_group_a_block() -> None:
    groups = find_groups(_resnet("resnet14"), _example())
    outer = [group.info for group in groups.groups if group.info.is_residual]
    inner = [group.info for group in groups.groups if not group.info.is_residual]
    assert [info.stage for info in outer] == [0, 1, 2]
    assert [info.stage for info in inner] == [0, 0, 1, 1, 2, 2]
    assert [info.channels for info in outer] == [4, 8, 16]
    assert {info.topology for info in inner} == {"inner:batchnorm2d+conv3x3>conv3x3"}
    assert {"stem", "stage1.0.conv2", "stage1.1.conv2"} <= set(outer[0].members)


def test_the_classifier_is_never_offered() -> None:
    for name in ("resnet8", "convnet", "mobilenet"):
        groups = find_groups(_resnet(name), _example())
        assert "classifier" not in _names(groups)
        assert "outputs" in _reasons(groups)["classifier"]


def test_macs_of_a_group_are_those_of_the_layers_that_make_its_channels() -> None:
    inner = next(group.info for group in find_groups(_resnet(), _example()).groups if group.name == "stage1.0.conv1")
    assert inner.macs == 4 * 4 * 9 * 64
    assert inner.params == 4 * 4 * 9 + 2 * 4 + 4 * 4 * 9


def test_a_frozen_model_has_the_same_groups_even_under_no_grad() -> None:
    model = _resnet()
    free = find_groups(model, _example())
    model.requires_grad_(False)
    with torch.no_grad():
        frozen = find_groups(model, _example())
    assert frozen == free
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_model_is_left_as_it_was() -> None:
    model = _resnet().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    find_groups(model, _example())
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_depthwise_layers_are_carried_by_the_group_that_feeds_them() -> None:
    group = find_groups(_resnet("mobilenet"), _example()).groups[0]
    assert [member.name for member in group.of_role(Role.CARRIES)] == ["features.3"]


def test_a_flatten_maps_one_channel_to_many_inputs() -> None:
    group = find_groups(nets.Flat(), _example()).groups[0]
    (reader,) = group.of_role(Role.CONSUMES)
    assert len(reader.index) == 6 * 64
    assert reader.root[:64] == (0,) * 64


def test_a_layer_scale_is_part_of_its_group() -> None:
    group = find_groups(nets.LayerScale(), _example()).groups[0]
    assert [member.name for member in group.of_role(Role.SCALES)] == ["gamma"]


def test_a_fused_attention_is_refused_and_the_layers_round_it_are_not() -> None:
    groups = find_groups(nets.Attention(), torch.randn(2, 1, 8, 8))
    assert _names(groups) == ["embed", "up"]
    assert "fused query-key-value" in _reasons(groups)["qkv"]


def test_layers_that_share_a_weight_stay_whole() -> None:
    groups = find_groups(nets.Tied(), _example())
    assert not {"stem", "one", "two"} & set(_names(groups))
    assert _names(groups) == ["wide"]


def test_a_model_with_nothing_to_remove_is_an_error_that_says_so() -> None:
    with pytest.raises(Invalid) as caught:
        find_groups(nets.Opaque(), _example())
    assert caught.value.code == "nothing_to_prune"
    assert "head" in caught.value.message


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile and torch.jit warn of torch's own parts
@pytest.mark.parametrize("how", ["compiled", "traced"])
def test_compiled_and_traced_models_are_refused(how: str) -> None:
    model = _resnet().eval()
    closed: nn.Module = torch.compile(model) if how == "compiled" else torch.jit.trace(model, _example())
    with pytest.raises(Invalid, match=how) as caught:
        find_groups(closed, _example())
    assert caught.value.code == "model_not_eager"


def test_finding_groups_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    find_groups(_resnet(), _example())
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == ""
