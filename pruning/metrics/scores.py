"""Scores of outputs ``(N, values)`` against what was wanted: one number, more is better; outputs that are no numbers are wrong."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor

TOP = 5


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of rows of ``(N, classes)`` whose largest logit is at the label of ``(N,)``; NaN rows are wrong."""
    right = (logits.argmax(1) == labels) & torch.isfinite(logits).all(1)
    return int(right.sum()) / len(right)


def top_five(logits: Tensor, labels: Tensor) -> float:
    """Return the share of rows of ``(N, classes)`` with the label of ``(N,)`` among their five largest logits."""
    found = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
    right = (found == labels[:, None]).any(1) & torch.isfinite(logits).all(1)
    return int(right.sum()) / len(right)


def right_tags(logits: Tensor, tags: Tensor) -> float:
    """Return the share of entries of ``(N, tags)`` on the right side of zero."""
    right = ((logits > 0) == (tags > 0.5)) & torch.isfinite(logits)
    return int(right.sum()) / right.numel()


def f1_of_classes(logits: Tensor, labels: Tensor) -> float:
    """Return the mean over classes of F1, of the classes that are labels or were given; as scikit-learn's ``average="macro"``."""
    given = torch.where(torch.isfinite(logits).all(1), logits.argmax(1), -1)
    classes = torch.cat([given, labels]).unique()
    classes = classes[classes >= 0]
    return _mean_f1(given[:, None] == classes, labels[:, None] == classes)


def f1_of_tags(logits: Tensor, tags: Tensor) -> float:
    """Return the mean over tags of F1 at a logit of zero; of a single tag its own F1."""
    return _mean_f1((logits > 0) & torch.isfinite(logits), tags > 0.5)


def average_precision(logits: Tensor, tags: Tensor) -> float:
    """Return the mean over the columns of ``(N, tags)`` of the area under precision and recall; columns without a hit do not count.

    Samples of equal logits come in together, as in scikit-learn's ``average_precision_score``.
    """
    found = []
    for column, wanted in zip(logits.double().T, (tags > 0.5).T, strict=True):
        if bool(wanted.any()):
            found.append(_area(torch.where(torch.isfinite(column), column, -torch.inf), wanted))
    return sum(found) / len(found) if found else 0.0


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return F.one_hot(labels, classes).to(torch.float32)


def rmse_skill(outputs: Tensor, wanted: Tensor) -> float:
    """Return one less the root mean square error over the spread of ``wanted`` ``(N, values)``; their mean would score zero."""
    spread = spread_of(wanted)
    finite = torch.where(torch.isfinite(outputs), outputs, wanted.mean(0) + spread)
    error = float((finite - wanted).double().square().mean().sqrt())
    if spread == 0:
        return 1.0 if error == 0 else 0.0
    return 1.0 - error / spread


def spread_of(wanted: Tensor) -> float:
    """Return the standard deviation of values ``(N, values)`` about each column's own mean."""
    return float((wanted - wanted.mean(0)).double().square().mean().sqrt())


def variance_kept(outputs: Tensor, wanted: Tensor) -> float:
    """Return the share of the variance of ``wanted`` ``(N, values)`` that ``outputs`` keep, 0 to 1; NaN rows keep nothing.

    Every value is taken from its own mean over the samples; where there is one sample, from zero.
    """
    centre = wanted.mean(0) if len(wanted) > 1 else torch.zeros_like(wanted[0])
    given = torch.where(torch.isfinite(outputs), outputs, centre)
    whole = float((wanted - centre).double().square().sum())
    lost = float((given - wanted).double().square().sum())
    if whole == 0:
        return 1.0 if lost == 0 else 0.0
    return max(0.0, 1.0 - lost / whole)


def mean_spearman(outputs: Tensor, wanted: Tensor) -> float:
    """Return the mean over columns of ``(N, values)`` of Spearman's correlation; wanted columns without spread do not count."""
    columns = [index for index in range(wanted.shape[1]) if bool((wanted[:, index] != wanted[0, index]).any())]
    found = [spearman(outputs[:, index], wanted[:, index]) for index in columns]
    return sum(found) / len(found) if found else 0.0


def pair_spearman(embeddings: Tensor, ratings: Tensor) -> float:
    """Return Spearman's correlation of the cosines of row pairs ``(2i, 2i + 1)`` of ``(N, values)`` with their ratings ``(N,)``."""
    pairs = len(embeddings) // 2
    first, second = embeddings[: 2 * pairs : 2], embeddings[1 : 2 * pairs : 2]
    return spearman(F.cosine_similarity(first, second, dim=1), ratings[: 2 * pairs : 2])


def spearman(one: Tensor, other: Tensor) -> float:
    """Return Spearman's rank correlation of two vectors, -1 to 1; ties share their mean rank, and no spread is no correlation."""
    if not bool(torch.isfinite(one).all()):
        return 0.0
    ranks = [_ranks(values.double()) for values in (one, other)]
    centred = [rank - rank.mean() for rank in ranks]
    norm = float(centred[0].norm() * centred[1].norm())
    return float(centred[0] @ centred[1]) / norm if norm > 0 else 0.0


def _mean_f1(given: Tensor, wanted: Tensor) -> float:
    hits = (given & wanted).sum(0).double()
    named = given.sum(0) + wanted.sum(0)
    each = torch.where(named > 0, 2 * hits / named.clamp_min(1), torch.zeros_like(hits))
    return float(each.mean()) if each.numel() else 0.0


def _area(logits: Tensor, wanted: Tensor) -> float:
    order = torch.argsort(logits, descending=True, stable=True)
    hits = wanted[order].double().cumsum(0)
    named = torch.arange(1, len(hits) + 1, dtype=torch.float64)
    sorted_logits = logits[order]
    ends = torch.cat([sorted_logits[1:] != sorted_logits[:-1], torch.ones(1, dtype=torch.bool)])
    precision, recall = (hits / named)[ends], (hits / hits[-1])[ends]
    steps = torch.diff(recall, prepend=torch.zeros(1, dtype=torch.float64))
    return float((precision * steps).sum())


def _ranks(values: Tensor) -> Tensor:
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts - 1) / 2)[inverse]
