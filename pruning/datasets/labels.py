"""Labels in the shape and type that a metric's task wants; what does not fit is said with its split."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pruning.datasets.problems import problem
from pruning.datasets.splits import CheckedSplits, Pair
from pruning.metrics import Metric, Task


def fit_labels(splits: CheckedSplits, metric: Metric, width: int) -> CheckedSplits:
    """Return splits whose labels a model of ``width`` output values is scored and trained by.

    Classes: int64 ``(N,)``, inside the model's. Tags: float32 of zeros and ones, ``(N, width)``. Values: float32 ``(N, width)``.
    Where nothing is learnt from labels they stay as they are: what they mean only the metric knows.

    Raises:
        Invalid: ``data_shape`` or ``labels_out_of_range``; both name the split.
    """
    if metric.task is Task.CLASSES:
        check_labels(splits, width)
        return splits
    if not metric.learns_labels:
        return splits

    def fitted(name: str, pair: Pair) -> Pair:
        inputs, labels = pair
        if labels is None:
            return pair
        values = labels.to(torch.float32).reshape(len(labels), -1)
        if values.shape[1] != width:
            raise _unfit(name, f"has {values.shape[1]} value(s) a sample, and the model gives {width}")
        if metric.task is Task.TAGS and not bool(((values == 0) | (values == 1)).all()):
            raise _unfit(name, "must hold zeros and ones, one for every tag")
        return inputs, values

    return replace(
        splits,
        train=fitted("train", splits.train),
        val=fitted("val", splits.val),
        test=fitted("test", splits.test),
    )


def check_labels(splits: CheckedSplits, classes: int) -> None:
    """Check that labels are classes of the model.

    Raises:
        Invalid: ``data_shape`` where they are not one whole number a sample, ``labels_out_of_range``; both name the split.
    """
    for name, (_, labels) in splits.named():
        if labels is not None:
            _check_classes(name, labels, classes)


def _check_classes(name: str, labels: Tensor, classes: int) -> None:
    field = f"data.{name}_labels"
    if labels.is_floating_point() or labels.ndim != 1:
        message = (
            f"{name}_labels must hold whole class numbers, one a sample. Numbers to come close to are scored by the metrics"
            f" `rmse` or"
            " `spearman`, several tags a sample by `f1` or `map`."
        )
        raise problem(field, "data_shape", message)
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        worst = int(labels.max()) if int(labels.max()) >= classes else int(labels.min())
        message = (
            f"Label {worst} in {name}_labels is outside the model's classes 0..{classes - 1}; give the model as many"
            " classes as the data has (`model.params.classes`) or mend the labels."
        )
        raise problem(field, "labels_out_of_range", message)


def _unfit(name: str, why: str) -> Exception:
    return problem(f"data.{name}_labels", "data_shape", f"{name}_labels {why}.")
