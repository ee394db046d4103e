"""Metrics against scikit-learn's, the tasks they stand for, and labels that do not fit them."""

from __future__ import annotations

import math
from importlib.metadata import EntryPoint

import pytest
import torch
from sklearn import metrics as reference
from torch import Tensor

from domain.errors import Invalid
from domain.scores import value_of
from pruning.datasets.labels import fit_labels
from pruning.datasets.splits import CheckedSplits
from pruning.metrics import Metric, Task, find_metric, needs_labels, scores
from pruning.plugins import Registry


def _logits(classes: int = 7, samples: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (samples,), generator=generator)
    logits = torch.randn(samples, classes, generator=generator).round(decimals=1)  # ties
    logits[torch.arange(samples), labels] += 1.0
    return logits, labels


def _metric(name: str, *, width: int = 7, dims: int = 1, logits: bool = True) -> Metric:
    return find_metric(name, gives_logits=logits, width=width, label_dims=dims)


def test_scores_of_classes_are_scikit_learns() -> None:
    logits, labels = _logits()
    given, wanted, answers = logits.numpy(), labels.numpy(), logits.argmax(1).numpy()
    expected = {
        "accuracy": reference.accuracy_score(wanted, answers),
        "top5": reference.top_k_accuracy_score(wanted, given, k=5),
        "f1": reference.f1_score(wanted, answers, average="macro"),
        "map": reference.average_precision_score(
            scores.one_hot(labels, 7).numpy(), logits.softmax(1).numpy(), average="macro"
        ),
    }
    for name, value in expected.items():
        assert _metric(name).score((logits,), labels) == pytest.approx(value, abs=1e-6 if name != "top5" else 0.02), (
            name
        )


def test_scores_of_tags_are_scikit_learns() -> None:
    logits, _ = _logits()
    tags = (torch.rand(200, 7, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    found = {name: _metric(name, dims=2).score((logits,), tags) for name in ("f1", "map")}
    assert found["f1"] == pytest.approx(reference.f1_score(tags.numpy(), (logits > 0).numpy(), average="macro"))
    assert found["map"] == pytest.approx(
        reference.average_precision_score(tags.numpy(), logits.numpy(), average="macro")
    )


def test_rmse_is_told_as_a_share_of_the_labels_spread_and_comes_back_in_their_unit() -> None:
    wanted = torch.randn(300, 2, generator=torch.Generator().manual_seed(2)) * 50 + 1000
    given = wanted + 10 * torch.randn(300, 2, generator=torch.Generator().manual_seed(3))
    score = _metric("rmse", width=2, dims=2).score((given,), wanted)
    spread = scores.spread_of(wanted)
    expected = reference.mean_squared_error(wanted.numpy(), given.numpy()) ** 0.5
    assert value_of("rmse", score, spread) == pytest.approx(expected, rel=1e-4)
    assert 0.7 < score < 0.9  # the better the higher, as every metric
    assert scores.rmse_skill(wanted.mean(0).expand_as(wanted), wanted) == pytest.approx(0.0, abs=1e-6)
    assert value_of("rmse", score, None) is None and value_of("f1", 0.5, None) == 0.5


def test_spearman_is_the_mean_over_outputs() -> None:
    wanted = torch.arange(50.0)[:, None].repeat(1, 2)
    given = torch.stack([wanted[:, 0] ** 3, -wanted[:, 0]], 1)
    assert _metric("spearman", width=2, dims=2).score((given,), wanted) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("name", ["accuracy", "top5", "f1", "map", "rmse", "spearman", "agreement", "fidelity"])
def test_outputs_that_are_no_numbers_are_worth_nothing(name: str) -> None:
    logits, labels = _logits()
    wanted = logits if name in {"rmse", "spearman", "fidelity"} else labels
    metric = _metric(name, dims=wanted.ndim if name in {"rmse", "spearman"} else 1)
    worth = metric.score((torch.full_like(logits, math.nan),), wanted)
    assert math.isfinite(worth) and worth < 0.2 and worth < metric.score((logits,), wanted)


@pytest.mark.parametrize(
    ("name", "width", "dims", "task"),
    [
        ("accuracy", 10, 1, Task.CLASSES), ("accuracy", 1, 1, Task.TAGS), ("f1", 10, 1, Task.CLASSES), ("f1", 4, 2, Task.TAGS),
        ("map", 4, 2, Task.TAGS), ("rmse", 3, 2, Task.VALUES), ("agreement", 10, None, Task.CLASSES), ("agreement", 1, None,
        Task.VALUES),
    ],
)  # fmt: skip
def test_a_metric_says_how_the_model_is_trained(name: str, width: int, dims: int | None, task: Task) -> None:
    assert find_metric(name, gives_logits=True, width=width, label_dims=dims).task is task


@pytest.mark.parametrize(
    ("name", "width", "dims", "logits", "code"),
    [
        ("top5", 5, 1, True, "metric_unfit"), ("accuracy", 4, 2, True, "metric_unfit"), ("f1", 40, 1, False, "model_output"),
        ("wisdom", 4, 1, True, "unknown_metric"),
    ],
)  # fmt: skip
def test_a_metric_that_does_not_fit_is_refused(name: str, width: int, dims: int, logits: bool, code: str) -> None:
    with pytest.raises(Invalid) as caught:
        _metric(name, width=width, dims=dims, logits=logits)
    assert caught.value.code == code and caught.value.fields


def _splits(labels: Tensor) -> CheckedSplits:
    pair = torch.zeros(len(labels), 2), labels
    return CheckedSplits(pair, pair, pair)


def test_labels_take_the_shape_of_the_task() -> None:
    whole = torch.tensor([0, 1, 1])
    one = fit_labels(_splits(whole), _metric("accuracy", width=1), 1)
    assert one.val[1] is not None and one.val[1].tolist() == [[0.0], [1.0], [1.0]]
    ages = fit_labels(_splits(whole * 30), _metric("rmse", width=1), 1)
    assert ages.val[1] is not None and ages.val[1].dtype == torch.float32
    for labels, metric, width in (
        (torch.tensor([0, 1, 2]), _metric("accuracy", width=1), 1),
        (torch.rand(3, 2), _metric("rmse", width=3, dims=2), 3),
        (torch.rand(3, 2), _metric("f1", width=2, dims=2), 2),
    ):
        with pytest.raises(Invalid) as caught:
            fit_labels(_splits(labels), metric, width)
        assert caught.value.code == "data_shape" and caught.value.fields[0].field == "data.train_labels"


class Boxes:
    """A metric of several outputs, as a plug-in brings it."""

    def __call__(self, outputs: tuple[Tensor, ...], labels: Tensor) -> float:
        assert [output.ndim for output in outputs] == [3, 2]
        return float(labels.mean())


boxes = Boxes()


def test_a_plug_in_scores_every_output_in_its_own_shape_and_the_dense_model_teaches() -> None:
    entry = EntryPoint("boxes", "tests.unit.pruning.test_metrics:boxes", "pruneloop.metrics")
    registry: Registry[object] = Registry("pruneloop.metrics", "metric", "objective.metric", {}, [entry])
    metric = find_metric("boxes", gives_logits=False, width=12, label_dims=3, registry=registry)
    assert metric.needs_labels and not metric.learns_labels and metric.task is Task.VALUES
    outputs = torch.zeros(5, 2, 4), torch.zeros(5, 4)
    assert metric.score(outputs, torch.full((5, 3, 5), 0.25)) == 0.25
    assert needs_labels("boxes", registry)
