"""Criteria compared with values worked out by hand on a net of two layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from domain.candidate import ImportanceMix
from domain.errors import Invalid
from domain.job import ModelSpec
from pruning.groups import Groups, find_groups
from pruning.importance import gather_evidence, l2_importance, mean_normalised, mixed_importance
from pruning.models import build_model
from tests.unit.pruning import nets


class _Two(nn.Module):
    """Linear, optional batch norm, ReLU, linear."""

    def __init__(self, *, has_norm: bool) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4) if has_norm else nn.Identity()
        self.second = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(torch.relu(self.norm(self.first(inputs))))


def _two(*, has_norm: bool) -> tuple[_Two, Groups, Tensor, Tensor]:
    model = _Two(has_norm=has_norm).eval()
    if has_norm:
        nn.init.uniform_(model.norm.weight, 0.5, 1.5)  # type: ignore[arg-type]
        nn.init.normal_(model.norm.bias)  # type: ignore[arg-type]
    inputs = torch.randn(16, 3)
    return model, find_groups(model, inputs), inputs, torch.randint(0, 2, (16,))


def test_l2_is_the_mean_over_layers_of_the_norm_of_each_channels_weights() -> None:
    model, groups, _, _ = _two(has_norm=False)
    expected = (model.first.weight.norm(dim=1) + model.second.weight.norm(dim=0)) / 2
    torch.testing.assert_close(l2_importance(model, groups.groups[0]), expected.detach())


def test_taylor_without_norms_is_the_absolute_sum_of_weight_times_gradient() -> None:
    model, groups, inputs, labels = _two(has_norm=False)
    evidence = gather_evidence(model, groups, [(inputs[:8], labels[:8]), (inputs[8:], labels[8:])])
    expected = torch.zeros(4)
    for part in (slice(0, 8), slice(8, 16)):
        model.zero_grad()
        F.cross_entropy(model(inputs[part]), labels[part]).backward()
        weight, bias = model.first.weight, model.first.bias
        assert weight.grad is not None and bias.grad is not None
        expected += ((weight * weight.grad).sum(1) + bias * bias.grad).abs().detach() / 2
    torch.testing.assert_close(evidence.taylor["first"], expected)


def test_taylor_with_norms_is_gamma_and_beta_times_their_gradients() -> None:
    model, groups, inputs, labels = _two(has_norm=True)
    evidence = gather_evidence(model, groups, [(inputs, labels)])
    F.cross_entropy(model(inputs), labels).backward()
    gamma, beta = model.norm.weight, model.norm.bias
    assert isinstance(gamma, Tensor) and isinstance(beta, Tensor)
    assert gamma.grad is not None and beta.grad is not None
    expected = (gamma * gamma.grad + beta * beta.grad).abs().detach()
    torch.testing.assert_close(evidence.taylor["first"], expected)


def test_activation_is_what_the_readers_get_on_average() -> None:
    model, groups, inputs, labels = _two(has_norm=True)
    evidence = gather_evidence(model, groups, [(inputs, labels)])
    with torch.no_grad():
        expected = torch.relu(model.norm(model.first(inputs))).mean(0)
    torch.testing.assert_close(evidence.activation["first"], expected)


def test_activation_behind_a_flatten_is_averaged_over_positions() -> None:
    model, inputs = nets.Flat().eval(), torch.randn(4, 1, 8, 8)
    groups = find_groups(model, inputs)
    evidence = gather_evidence(model, groups, [(inputs, torch.tensor([0, 1, 2, 0]))])
    with torch.no_grad():
        expected = torch.relu(model.bn(model.conv(inputs))).mean((0, 2, 3))
    torch.testing.assert_close(evidence.activation["conv"], expected)


def test_gathering_leaves_mode_gradients_and_flags_alone() -> None:
    model, groups, inputs, labels = _two(has_norm=True)
    model.train().requires_grad_(False)
    gather_evidence(model, groups, [(inputs, labels)])
    assert model.training
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", ["resnet8", "mobilenet", "convnet"])
def test_every_score_is_float32_one_per_channel_with_mean_one(name: str) -> None:
    model, example = build_model(ModelSpec(name=name, params={"width": 4})), torch.randn(nets.IMAGES)
    groups = find_groups(model, example)
    evidence = gather_evidence(model, groups, [(torch.randn(8, 1, 8, 8), torch.randint(0, 10, (8,)))])
    for mix in (ImportanceMix(), ImportanceMix(l2=0, taylor=1), ImportanceMix(l2=1, taylor=2, activation=3)):
        scores = mixed_importance(model, groups, mix, evidence)
        for group in groups.groups:
            assert scores[group.name].shape == (group.channels,)
            assert scores[group.name].dtype == torch.float32
            assert float(scores[group.name].mean()) == pytest.approx(1.0, abs=1e-4)


def test_weights_of_the_mix_are_relative() -> None:
    model, groups, inputs, labels = _two(has_norm=True)
    evidence = gather_evidence(model, groups, [(inputs, labels)])
    small = mixed_importance(model, groups, ImportanceMix(l2=0.1, taylor=0.3), evidence)
    large = mixed_importance(model, groups, ImportanceMix(l2=1, taylor=3), evidence)
    torch.testing.assert_close(small["first"], large["first"])


def test_an_empty_mix_is_refused() -> None:
    model, groups, _, _ = _two(has_norm=False)
    with pytest.raises(Invalid) as caught:
        mixed_importance(model, groups, ImportanceMix(l2=0), None)
    assert caught.value.code == "empty_importance_mix"


def test_all_zero_scores_stay_zero() -> None:
    assert mean_normalised(torch.zeros(3)).tolist() == [0, 0, 0]
