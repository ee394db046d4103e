"""What a model's outputs are worth, by name. A job's ``accuracy`` is the metric's score: more is better, 1 is perfect.

``rmse`` is the one metric whose own value is better when it is smaller. Its score is one less the error over the standard
deviation of the labels (their *spread*), so that the search, and ``objective.max_drop``, need not know in what unit the labels are.
"""

from __future__ import annotations

METRICS = ("accuracy", "agreement", "f1", "fidelity", "map", "pair_spearman", "rmse", "spearman", "top5")
LOWER_IS_BETTER = frozenset({"rmse"})
PLUGIN_GROUP = "pruneloop.metrics"


def value_of(metric: str, score: float | None, spread: float | None) -> float | None:
    """Return a metric's own value for a score; None where there is no score, or where its unit is not known."""
    if score is None or metric not in LOWER_IS_BETTER:
        return score
    return None if spread is None else (1.0 - score) * spread
