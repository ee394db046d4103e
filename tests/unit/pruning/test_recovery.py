"""Recovery on a real little task: it helps, it is the same twice, and it stops when told."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from domain.candidate import ImportanceMix
from domain.errors import Invalid
from domain.job import DataSpec, ModelSpec
from domain.ports import BuildAbandoned
from pruning.accuracy import evaluate, predict
from pruning.datasets import load_data
from pruning.datasets.splits import CheckedSplits
from pruning.groups import find_groups
from pruning.importance import mixed_importance
from pruning.metrics import Task
from pruning.metrics.scores import accuracy as accuracy_of
from pruning.models import build_model
from pruning.precision import Compute, choose_compute, choose_device
from pruning.recovery import (
    Recipe,
    TrainingDiverged,
    TrainingSet,
    batch_of,
    dense_recipe,
    loss_of,
    rate_at,
    reestimate_batch_norm,
    shifted,
    steps_of,
    train,
)
from pruning.surgery import prune_to_widths
from tests.unit.pruning.folder import FolderStore

FP32 = Compute(torch.device("cpu"))


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> CheckedSplits:
    return load_data(DataSpec(name="digits"), FolderStore(tmp_path_factory.mktemp("none")))


@pytest.fixture(scope="module")
def trained(splits: CheckedSplits) -> nn.Module:
    torch.manual_seed(0)
    model = FP32.adopt(build_model(ModelSpec(name="convnet", params={"width": 8})))
    train(model, TrainingSet(*splits.train), Recipe(epochs=3, learning_rate=0.05), FP32)
    return model


def _halved(model: nn.Module, splits: CheckedSplits, sparsity: float = 0.5) -> nn.Module:
    example = splits.train[0][:2]
    groups = find_groups(model, example)
    widths = {group.name: round(group.channels * (1 - sparsity)) for group in groups.groups}
    return prune_to_widths(model, groups, widths, mixed_importance(model, groups, ImportanceMix(), None), example)


def _val(model: nn.Module, splits: CheckedSplits) -> float:
    inputs, labels = splits.val
    assert labels is not None
    return evaluate(model, inputs, labels, FP32)


def test_the_dense_model_learns(trained: nn.Module, splits: CheckedSplits) -> None:
    assert _val(trained, splits) > 0.95


def test_reestimating_batch_norm_does_not_lower_accuracy_after_a_light_cut(
    trained: nn.Module, splits: CheckedSplits
) -> None:
    pruned = _halved(trained, splits, 0.1)
    before = _val(pruned, splits)
    reestimate_batch_norm(pruned, splits.train[0], FP32)
    assert _val(pruned, splits) >= before


def test_reestimated_statistics_are_the_plain_average_over_batches() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    inputs = torch.randn(300, 3) * 2 + 5
    reestimate_batch_norm(model, inputs, FP32, samples=256)
    norm = model[0]
    assert isinstance(norm, nn.BatchNorm1d) and norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, inputs[:256].mean(0))
    assert norm.momentum == 0.1 and model.training


def test_recovery_brings_a_halved_model_back(trained: nn.Module, splits: CheckedSplits) -> None:
    pruned = _halved(trained, splits)
    reestimate_batch_norm(pruned, splits.train[0], FP32)
    before = _val(pruned, splits)
    teacher = predict(trained, splits.train[0], FP32)
    train(pruned, TrainingSet(*splits.train, teacher), Recipe(epochs=2, learning_rate=0.05), FP32)
    assert _val(pruned, splits) > max(before, 0.93)


def test_the_teacher_alone_is_enough(trained: nn.Module, splits: CheckedSplits) -> None:
    pruned = _halved(trained, splits)
    teacher = predict(trained, splits.train[0], FP32)
    train(pruned, TrainingSet(splits.train[0], None, teacher), Recipe(epochs=2, learning_rate=0.05), FP32)
    inputs = splits.val[0]
    assert accuracy_of(predict(pruned, inputs, FP32), predict(trained, inputs, FP32).argmax(1)) > 0.9


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not(
    trained: nn.Module, splits: CheckedSplits
) -> None:
    data = TrainingSet(splits.train[0][:256], splits.train[1][:256], None, max_shift=1)  # type: ignore[index]

    def result(seed: int, noise: int) -> Tensor:
        torch.manual_seed(noise)  # the process's own generator must not matter
        model = _halved(trained, splits)
        train(model, data, Recipe(epochs=1, learning_rate=0.05, seed=seed), FP32)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    assert torch.equal(result(1, 5), result(1, 6))
    assert not torch.equal(result(1, 5), result(2, 5))


def test_a_frozen_model_is_trained_all_the_same(trained: nn.Module, splits: CheckedSplits) -> None:
    model = _halved(trained, splits).requires_grad_(False)
    before = next(model.parameters()).clone()
    with torch.no_grad():
        train(model, TrainingSet(*splits.train), Recipe(epochs=0.1, learning_rate=0.05), FP32)
    assert not torch.equal(before, next(model.parameters()))


def test_bf16_trains_and_leaves_fp32_weights(trained: nn.Module, splits: CheckedSplits) -> None:
    model = _halved(trained, splits)
    compute = choose_compute(choose_device("cpu"), "bf16")
    train(model, TrainingSet(*splits.train), Recipe(epochs=1, learning_rate=0.05), compute)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert _val(model, splits) > 0.85


def test_fp16_without_cuda_is_refused_with_the_alternatives() -> None:
    with pytest.raises(Invalid, match="bf16") as caught:
        choose_compute(torch.device("cpu"), "fp16")
    assert caught.value.code == "precision_not_available"


def test_every_batch_is_held_and_told() -> None:
    held, told = 0, []

    @contextmanager
    def hold():  # type: ignore[no-untyped-def]
        nonlocal held
        held += 1
        yield

    data = TrainingSet(torch.randn(40, 4), torch.randint(0, 2, (40,)))
    recipe = Recipe(epochs=1.5, learning_rate=0.01, batch=10)
    train(nn.Linear(4, 2), data, recipe, FP32, progress=told.append, hold=hold)
    assert held == len(told) == steps_of(recipe, 40) == 6
    assert told[-1] == 1.0 and told == sorted(told)


def test_what_progress_raises_stops_the_training() -> None:
    def progress(fraction: float) -> None:
        if fraction >= 0.5:
            raise BuildAbandoned

    model = nn.Linear(4, 2)
    data = TrainingSet(torch.randn(40, 4), torch.randint(0, 2, (40,)))
    with pytest.raises(BuildAbandoned):
        train(model, data, Recipe(epochs=1, learning_rate=0.01, batch=10), FP32, progress=progress)


def test_a_loss_that_is_no_number_says_what_to_lower() -> None:
    data = TrainingSet(torch.full((20, 4), 1e30), torch.randint(0, 2, (20,)))
    with pytest.raises(TrainingDiverged, match="learning rate"):
        train(nn.Linear(4, 2), data, Recipe(epochs=5, learning_rate=1e9, batch=10), FP32)


def test_zero_epochs_change_nothing() -> None:
    model = nn.Linear(4, 2)
    before = model.weight.clone()
    data = TrainingSet(torch.randn(20, 4), torch.randint(0, 2, (20,)))
    train(model, data, Recipe(epochs=0, learning_rate=1.0), FP32)
    assert torch.equal(model.weight, before)


def test_the_rate_rises_to_its_peak_and_falls_towards_zero() -> None:
    rates = [rate_at(step, 100, 0.2) for step in range(100)]
    peak = rates.index(max(rates))
    assert 18 <= peak <= 21
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0 < rates[-1] < 0.01 and 0 < rates[0] < 0.1 and max(rates) > 0.98


def test_more_samples_are_taken_in_wider_batches() -> None:
    recipe = Recipe(epochs=1, learning_rate=0.1)
    assert [batch_of(recipe, samples) for samples in (3500, 60_000, 1_000_000)] == [32, 64, 128]


def test_shifts_move_images_and_lose_nothing_else() -> None:
    images = torch.zeros(50, 1, 9, 9)
    images[:, :, 4, 4] = 1
    moved = shifted(images, 2, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(50))
    rows, columns = moved.amax((1, 3)).argmax(1) - 4, moved.amax((1, 2)).argmax(1) - 4
    assert set(rows.tolist()) == set(columns.tolist()) == {-2, -1, 0, 1, 2}


def test_logits_that_are_no_numbers_are_wrong_answers() -> None:
    logits = torch.tensor([[float("nan"), 0.0], [1.0, 0.0]])
    assert accuracy_of(logits, torch.tensor([0, 0])) == 0.5


def test_a_transformer_learns_by_its_own_optimizer(splits: CheckedSplits) -> None:
    params = {"image": 8, "patch": 2, "dim": 16, "depth": 1, "heads": 2}
    model = build_model(ModelSpec(name="vit", params=params))
    recipe = dense_recipe(model, seed=3)
    assert recipe.epochs > dense_recipe(nn.Linear(2, 2), seed=3).epochs and recipe.seed == 3
    train(model, TrainingSet(*splits.train), Recipe(epochs=8, learning_rate=0.1), FP32)
    assert evaluate(model, *splits.val, FP32) > 0.85


def test_of_several_outputs_each_counts_as_much_whatever_its_unit() -> None:
    generator = torch.Generator().manual_seed(0)
    wanted, given = torch.randn(32, 6, generator=generator), torch.randn(32, 6, generator=generator)
    in_pixels = torch.tensor([100.0] * 4 + [1.0] * 2)
    recipe = Recipe(epochs=1, learning_rate=0.1)

    def loss(scale: torch.Tensor, outputs: tuple[int, ...]) -> float:
        data = TrainingSet(torch.zeros(32, 1), teacher=wanted * scale, task=Task.VALUES, outputs=outputs)
        return float(loss_of(given * scale, data, torch.arange(32), recipe))

    assert loss(in_pixels, (4, 2)) == pytest.approx(loss(torch.ones(6), (4, 2)), rel=1e-4)
    assert loss(in_pixels, ()) != pytest.approx(loss(torch.ones(6), ()), rel=1e-2)
