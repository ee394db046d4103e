"""Metrics of the accuracy side: what a model's outputs are worth, one number, more is better.

``accuracy``       share of samples whose highest logit is the label.
``agreement``      without labels: the same share against the dense model's own answers; of outputs that are no logits of one label
                   a sample (a mask, boxes, several outputs), the share of their variance that is kept.
``fidelity``       without labels: the share of variance kept, of logits and embeddings too.
``pair_spearman``  of embeddings: rows 2i and 2i + 1 are a pair, whose similarity people rated; Spearman's rank correlation between
                   the cosines and the ratings (both rows carry the rating).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor

from domain.errors import FieldProblem, Invalid

METRICS = ("accuracy", "agreement", "fidelity", "pair_spearman")
NEED_LABELS = frozenset({"accuracy", "pair_spearman"})


def is_of_classes(metric: str, *, gives_logits: bool) -> bool:
    """Whether outputs are logits of classes, to be trained by cross-entropy, and not values to come close to."""
    return metric == "accuracy" or (metric == "agreement" and gives_logits)


def require_metric(metric: str) -> None:
    """Raise Invalid ``unknown_metric`` where there is none of the name."""
    if metric not in METRICS:
        message = f"Unknown metric {metric!r}; choose one of {', '.join(METRICS)}."
        raise Invalid(message, code="unknown_metric", fields=[FieldProblem("objective.metric", message)])


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


def _ranks(values: Tensor) -> Tensor:
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts - 1) / 2)[inverse]
