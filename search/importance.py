"""Which parts of a network decide accuracy and latency, over the trials of a target. Pure; numpy only.

A ridge regression on ranks: each measured trial is a row of how much was removed from every group, whether a block went, and its
precision. Ranks, because latency moves in steps and accuracy falls off a cliff. How much it explains is told from trials that
were left out, one at a time, so that forty parameters over thirty trials do not look like knowledge.

Source: standardised rank regression coefficients, Saltelli et al., Global Sensitivity Analysis, 2008, chapter 1.2; the
leave-one-out residuals of ridge regression are in closed form: Golub, Heath, Wahba, Technometrics 21 (1979).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from domain.overview import ImportanceOf, Influence, ParameterImportance
from search.view import View

LEAST_TRIALS = 8
RIDGE = (0.1, 1.0, 10.0, 100.0, 1000.0)

Floats = NDArray[np.float64]
Name = tuple[str, Literal["group", "block", "precision"]]


def parameter_importance(view: View, target: int) -> ParameterImportance:
    """Return what explains accuracy and latency of a target's measured trials, the most telling first."""
    trials = [trial for trial in view.shaped(target) if trial.values is not None]
    if len(trials) < LEAST_TRIALS:
        reason = f"{len(trials)} of {LEAST_TRIALS} measured trials needed"
        return ParameterImportance(target=target, trials=len(trials), reason=reason)
    dense = view.dense_of(target)
    precisions = view.spec.targets[target].precision
    names: list[Name] = [(group.name, "group") for group in dense.groups]
    names += [(block.name, "block") for block in dense.blocks]
    names += [(precision, "precision") for precision in precisions[1:]]
    rows = np.array(
        [
            [1.0 - trial.candidate.widths.get(g.name, g.channels) / g.channels for g in dense.groups]
            + [float(block.name in trial.candidate.dropped) for block in dense.blocks]
            + [float(trial.candidate.precision == precision) for precision in precisions[1:]]
            for trial in trials
        ]
    )
    moves = np.flatnonzero(rows.std(axis=0) > 0)
    if not len(moves):
        return ParameterImportance(target=target, trials=len(trials), reason="no parameter differs between the trials")
    names = [names[index] for index in moves]
    features = _standard(_ranks(rows[:, moves]))
    accuracy = np.array([-trial.values.error for trial in trials if trial.values is not None])
    latency = np.array([trial.values.latency_ratio for trial in trials if trial.values is not None])
    return ParameterImportance(
        target=target,
        trials=len(trials),
        of=(_explain("accuracy", names, features, accuracy), _explain("latency", names, features, latency)),
    )


def _explain(value: Literal["accuracy", "latency"], names: list[Name], features: Floats, told: Floats) -> ImportanceOf:
    ranks = _standard(_ranks(told[:, None]))[:, 0]
    fits = [_ridge(features, ranks, strength) for strength in RIDGE]
    coefficients, explained = max(fits, key=lambda fit: fit[1])
    squares = coefficients**2
    total = float(squares.sum()) or 1.0
    order = np.argsort(-squares, kind="stable")
    return ImportanceOf(
        value=value,
        explained=round(explained, 4),
        influences=tuple(
            Influence(
                name=names[index][0],
                kind=names[index][1],
                share=round(float(squares[index]) / total, 4),
                direction=round(float(np.clip(coefficients[index], -1.0, 1.0)), 4),
            )
            for index in order
        ),
    )


def _ridge(features: Floats, told: Floats, strength: float) -> tuple[Floats, float]:
    """Return the coefficients and the share of variance explained in trials left out one at a time."""
    left, singular, right = np.linalg.svd(features, full_matrices=False)
    shrink = singular / (singular**2 + strength)
    coefficients: Floats = right.T @ (shrink * (left.T @ told))
    leverage = (left**2) @ (singular * shrink) + 1.0 / len(told)  # the mean was fitted too
    errors = (told - features @ coefficients) / np.maximum(1.0 - leverage, 1e-6)
    return coefficients, 1.0 - float((errors**2).sum() / max((told**2).sum(), 1e-12))


def _ranks(columns: Floats) -> Floats:
    """Return mid-ranks a column: equal values share one."""
    ranks = np.empty_like(columns)
    for index in range(columns.shape[1]):
        _, place, count = np.unique(columns[:, index], return_inverse=True, return_counts=True)
        ranks[:, index] = (np.cumsum(count) - (count - 1) / 2.0)[place]
    return ranks


def _standard(columns: Floats) -> Floats:
    spread = columns.std(axis=0)
    standard: Floats = (columns - columns.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return standard
