"""Single weights set to zero: which, how many, and that they stay so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from domain.candidate import Candidate, parse_zeros
from domain.errors import Invalid
from pruning.precision import Compute
from pruning.recovery import Recipe, TrainingSet, train
from pruning.zeros import kept_weights, set_zeros, share_of_zeros


def test_a_row_loses_its_smallest_weights_and_as_many_as_any_other():
    weight = torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9).view(8, 1, 1, 1)
    mask = kept_weights(weight, "row:0.75")
    assert mask.shape == weight.shape
    assert mask.flatten(1).sum(1).tolist() == [54 - round(54 * 0.75)] * 8
    for row, kept in zip(weight.abs().flatten(1), mask.flatten(1), strict=True):
        assert row[kept].min() >= row[~kept].max()


def test_two_of_every_four_inputs_of_a_position_are_kept():
    weight = torch.randn(5, 10, 3, 3, generator=torch.Generator().manual_seed(1))
    mask = kept_weights(weight, "2:4")
    along_inputs = mask.movedim(1, -1)
    assert along_inputs[..., :8].reshape(-1, 4).sum(1).eq(2).all()
    assert along_inputs[..., 8:].all()  # the two left over stay
    magnitudes = weight.abs().movedim(1, -1)[..., :8].reshape(-1, 4)
    kept = along_inputs[..., :8].reshape(-1, 4)
    assert (magnitudes.masked_fill(~kept, 9).min(1).values >= magnitudes.masked_fill(kept, -1).max(1).values).all()


def test_equal_weights_give_the_exact_count():
    assert kept_weights(torch.ones(4, 16), "row:0.5").sum(1).tolist() == [8] * 4
    assert kept_weights(torch.zeros(4, 16), "1:4").sum(1).tolist() == [4] * 4


@pytest.mark.parametrize("text", ["4:2", "0:4", "row:1.5", "row:0.0", "half", "2:4:6", "row:.5"])
def test_what_is_no_pattern_is_refused_with_the_mend(text: str) -> None:
    with pytest.raises(Invalid, match="write row"):
        parse_zeros(text)


def test_small_rows_are_left_alone():
    net = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 3))
    set_zeros(net, "row:0.8")
    assert (net[0].weight != 0).all()
    assert (net[1].weight == 0).float().mean() == pytest.approx(0.8, abs=0.02)


def test_zeros_live_through_training_and_nothing_else_is_held():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    again = set_zeros(net, "2:4")
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    data = TrainingSet(torch.randn(128, 16), torch.randint(0, 4, (128,)))
    train(net, data, Recipe(epochs=2, learning_rate=0.1), Compute(torch.device("cpu")), after_step=again)
    for name, parameter in net.named_parameters():
        zero = before[name] == 0
        assert (parameter[zero] == 0).all()
        assert not torch.equal(parameter, before[name])
    assert 0.4 < share_of_zeros(net) < 0.5


def test_setting_the_same_zeros_again_changes_nothing():
    net = nn.Linear(64, 8)
    set_zeros(net, "row:0.8")
    first = net.weight.detach().clone()
    set_zeros(net, "row:0.8")
    assert torch.equal(net.weight, first)


def test_zeros_are_part_of_what_a_candidate_is():
    plain = Candidate(sparsity={"a": 0.0}, widths={"a": 8})
    sparse = plain.model_copy(update={"zeros": "2:4"})
    assert len({plain.identity, sparse.identity}) == len({plain.key, sparse.key}) == 2
    assert plain.architecture != sparse.architecture
    assert plain.is_dense([]) and not sparse.is_dense([])
