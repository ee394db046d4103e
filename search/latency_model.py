"""A predictor of latency ratios, fitted on what a job measured; its numbers are called predicted everywhere.

Two parts. A formula: constant + layers + arithmetic + activations written (by convolutions for convolutions, by them for other
layers, by others) and read + weights + repacking, no coefficient negative, with channels rounded up to the step the device shows
(the one that fits best). And a correction: what nearby measured candidates missed the formula by, weighted by nearness (a Gaussian
process on the residuals), so that a search that closes in on a region is told well there.

Source: time goes with aligned in-width times aligned out-width plus a constant, our own measurement; Rasmussen and Williams,
Gaussian Processes for Machine Learning, chapter 2 (regression) and 5.4.2 (leave-one-out in closed form).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from search.network import Floats, Ints, Network

ALIGNMENTS = (1, 4, 8, 16, 32)
PRIOR_ALIGNMENT = 16
# What a miss counts of the probes and of the dense model, a trial's being one: they lie far from where a search goes.
CORNER = 0.5
# constant, layers, multiply-accumulates, activations written by convolutions for convolutions, for other layers, by other layers,
# activations read, weights, repacking: of a few networks on x86, a start before any measurement.
PRIOR = np.array([0.01, 0.05, 0.7, 0.1, 0.1, 0.1, 0.05, 0.05, 0.03])
SPREAD = PRIOR + 0.05  # how far from it a coefficient may well lie
SUBSETS = np.array(list(product((0.0, 1.0), repeat=len(PRIOR))))
PRIOR_WEIGHT = 0.01  # of one measurement: gone after a handful
MOST_POINTS = 120  # the newest are kept: the cost of a fit must not grow with a search of thousands
LENGTHS = (0.15, 0.3, 0.6, 1.2)  # in units of log width, root mean square over columns
NOISE = 0.008  # of one measurement, in log ratio
LEAST_TO_CORRECT = 5


@dataclass(frozen=True)
class _Correction:
    points: Floats
    weights: Floats
    length: float
    variance: float

    def of(self, points: Floats) -> Floats:
        """Return the log correction of points of shape ``(n, groups)``."""
        return np.asarray(_kernel(_squared(points, self.points), self.length) * self.variance @ self.weights)


@dataclass(frozen=True)
class LatencyModel:
    """What one target, in one precision, was seen to do.

    ``error_median`` and ``error_p90`` are relative, |predicted - measured| / measured, each point predicted without itself.
    """

    network: Network
    coefficients: Floats
    alignment: int
    scale: float
    points: int
    error_median: float
    error_p90: float
    correction: _Correction | None = None

    def formula(self, rows: Ints) -> Floats:
        """Return the ratio by the formula alone, for rows of shape ``(n, columns)``: monotone, and cheap."""
        (shares,) = self.network.shares(rows, aligns=(self.alignment,))
        return np.asarray((shares @ self.coefficients[1:] + self.coefficients[0]) * self.scale)

    def predict_rows(self, rows: Ints) -> Floats:
        """Return predicted latency ratios to the dense model of the target's first precision, shape ``(n,)``."""
        plain = self.formula(rows)
        if self.correction is None:
            return plain
        return np.asarray(plain * np.exp(self.correction.of(_points(self.network, rows))))

    def predict(self, row: Ints) -> float:
        """Return the predicted latency ratio of one candidate."""
        return float(self.predict_rows(row[None])[0])

    def speedup(self, row: Ints) -> float:
        """Return how many times as fast as the dense model in the same precision one candidate is predicted to be."""
        return self.scale / self.predict(row)


def fit(
    network: Network,
    measured: Sequence[tuple[Ints, float]],
    *,
    probes: Sequence[tuple[Ints, float]] = (),
    scale: float = 1.0,
) -> LatencyModel:
    """Fit measured (row, latency ratio) pairs.

    Args:
        network: The network's layers.
        measured: Of trials, newest last; the dense model need not be among them.
        probes: Of the latency probes.
        scale: Latency ratio of the dense model in this precision: where every curve begins.
    """
    measured = measured[-MOST_POINTS:]
    pairs = [*probes, *measured, (network.dense, scale)]
    rows = np.array([row for row, _ in pairs])
    ratios = np.array([ratio for _, ratio in pairs]) / scale
    weights = np.full(len(pairs), CORNER)
    weights[len(probes) : -1] = 1.0
    best: tuple[float, int, Floats, Floats] | None = None
    alignments = ALIGNMENTS if len(ratios) > LEAST_TO_CORRECT else (PRIOR_ALIGNMENT,)
    for alignment, shares in zip(alignments, network.shares(rows, aligns=alignments), strict=True):
        features = np.hstack([np.ones((len(rows), 1)), shares])
        coefficients = _nonnegative(features, ratios, weights)
        residuals = np.log(ratios) - np.log(np.maximum(features @ coefficients, 1e-6))
        cost = float(np.sum((weights * residuals) ** 2))
        if best is None or cost < best[0]:
            best = (cost, alignment, coefficients, residuals)
    assert best is not None
    _, alignment, coefficients, residuals = best
    correction, left_out = _correct(_points(network, rows), residuals)
    errors = np.abs(np.expm1(left_out[len(probes) : -1]))
    known = len(errors) > 0
    return LatencyModel(
        network=network,
        coefficients=coefficients,
        alignment=alignment,
        scale=scale,
        points=len(pairs) - 1,
        error_median=float(np.median(errors)) if known else float("nan"),
        error_p90=float(np.quantile(errors, 0.9)) if known else float("nan"),
        correction=correction,
    )


def _nonnegative(features: Floats, ratios: Floats, weights: Floats) -> Floats:
    """Least squares of relative errors, drawn towards the prior, with no coefficient below zero: every subset is tried."""
    strength = np.sqrt(PRIOR_WEIGHT)
    x = np.vstack([features * (weights / ratios)[:, None], strength * np.diag(1.0 / SPREAD)])
    y = np.concatenate([weights, strength * PRIOR / SPREAD])
    gram, moment = x.T @ x, x.T @ y  # the prior's rows keep it well conditioned
    within = SUBSETS[:, :, None] * SUBSETS[:, None, :]
    solutions = np.linalg.solve(within * gram + np.eye(len(PRIOR)) * (1 - within), (SUBSETS * moment)[..., None])[
        ..., 0
    ]
    explained = np.where((solutions >= 0).all(axis=1), solutions @ moment, -np.inf)
    return np.asarray(solutions[int(np.argmax(explained))])


def _points(network: Network, rows: Ints) -> Floats:
    """Return where candidates lie: log width of each group, and whether a block is gone, the root of their number as the unit.

    All count alike: weighted by the work they take part in, the same runs were missed by a fifth more at p90. A width within a
    block that is gone is none: two such networks are the same, however narrow the block was when it went.
    """
    groups = len(network.groups)
    widths = np.where(network.are_gone(rows), 0.0, np.log(rows[:, :groups] / network.dense[:groups]))
    far = np.hstack([widths, rows[:, groups:] - 1.0])
    return np.asarray(far / np.sqrt(max(1, far.shape[1])))


def _squared(left: Floats, right: Floats) -> Floats:
    """Return squared distances, shape ``(n, m)``: by products of matrices, a tenth of the time of differences."""
    squared = (left**2).sum(axis=-1)[:, None] + (right**2).sum(axis=-1) - 2 * (left @ right.T)
    return np.asarray(np.maximum(squared, 0.0))


def _kernel(squared: Floats, length: float) -> Floats:
    return np.asarray(np.exp(-squared / (2 * length**2)))


def _correct(points: Floats, residuals: Floats) -> tuple[_Correction | None, Floats]:
    """Return the correction and what each point would be missed by, had it been left out."""
    variance = float(np.mean(residuals**2))
    if len(residuals) < LEAST_TO_CORRECT or variance < NOISE**2:
        return None, residuals
    best: tuple[float, _Correction, Floats] | None = None
    squared = _squared(points, points)
    for length in LENGTHS:
        covariance = variance * _kernel(squared, length) + NOISE**2 * np.eye(len(points))
        inverse = np.linalg.inv(covariance)
        weights = inverse @ residuals
        left_out = weights / np.diag(inverse)
        cost = float(np.mean(left_out**2))
        if best is None or cost < best[0]:
            best = (cost, _Correction(points, weights, length, variance), left_out)
    assert best is not None
    if best[0] >= variance:
        return None, residuals
    return best[1], best[2]
