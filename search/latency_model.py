"""A small predictor of latency ratio, fitted on what a job measured; its numbers are called predicted everywhere.

latency ratio = constant + a * (approximate share of MACs) + b * (share of channels), none of them negative: the part that
no pruning removes, the part that goes with arithmetic, and the part that goes with moving activations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from pydantic import JsonValue

from domain.candidate import GroupInfo
from domain.measurement import Measured
from search.seeds import Seed, explicit_seed
from search.space import SearchSpace, macs_fraction
from search.view import View

MIN_TRIALS = 6


@dataclass(frozen=True)
class LatencyModel:
    """Coefficients of one target and the leave-one-out error of the trials they were fitted on.

    ``error_median`` and ``error_p90`` are relative: |predicted - measured| / measured, each trial predicted by a fit
    without it.
    """

    coefficients: tuple[float, float, float]
    trials: int
    error_median: float
    error_p90: float

    def predict(self, groups: Sequence[GroupInfo], widths: Mapping[str, int]) -> float:
        """Return the predicted latency ratio to the dense model of widths."""
        return float(np.dot(self.coefficients, features(groups, widths)))


def features(groups: Sequence[GroupInfo], widths: Mapping[str, int]) -> tuple[float, float, float]:
    channels = sum(group.channels for group in groups)
    return (1.0, macs_fraction(groups, widths), sum(widths[group.name] for group in groups) / channels)


def fit(groups: Sequence[GroupInfo], measured: Sequence[tuple[Mapping[str, int], float]]) -> LatencyModel | None:
    """Fit measured (widths, latency ratio) pairs; None below ``MIN_TRIALS`` of them."""
    if len(measured) < MIN_TRIALS:
        return None
    x = np.array([features(groups, widths) for widths, _ in measured])
    y = np.array([ratio for _, ratio in measured])
    errors = []
    for index in range(len(y)):
        rest = np.arange(len(y)) != index
        predicted = float(x[index] @ _nonnegative(x[rest], y[rest]))
        errors.append(abs(predicted - y[index]) / y[index])
    constant, macs, channels = (float(value) for value in _nonnegative(x, y))
    return LatencyModel((constant, macs, channels), len(y), float(np.median(errors)), float(np.quantile(errors, 0.9)))


def _nonnegative(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Least squares of relative errors with no coefficient below zero: with three columns, every subset is tried."""
    weights = 1.0 / y
    best, best_cost = np.zeros(x.shape[1]), np.inf
    for size in range(1, x.shape[1] + 1):
        for columns in combinations(range(x.shape[1]), size):
            chosen = list(columns)
            solution = np.linalg.lstsq(x[:, chosen] * weights[:, None], np.ones(len(y)), rcond=None)[0]
            if (solution < 0).any():
                continue
            full = np.zeros(x.shape[1])
            full[chosen] = solution
            cost = float(np.sum(((x @ full - y) * weights) ** 2))
            if cost < best_cost:
                best, best_cost = full, cost
    return best


def wanted_ratios(view: View, target: int) -> tuple[float, ...]:
    """Return the latency ratios worth a candidate aimed at them: the user's limits, else twice and three times as fast."""
    spec = view.spec.targets[target]
    ratios = []
    if spec.speedup is not None:
        ratios.append(1.0 / spec.speedup)
    baseline = view.measurements.get(f"baseline:{target}")
    if spec.latency_ms is not None and baseline is not None and isinstance(baseline.outcome, Measured):
        ratios.append(min(1.0, spec.latency_ms / baseline.outcome.baseline.latency_ms))
    return tuple(ratios) or (1 / 2, 1 / 3)


def aimed_seed(
    space: SearchSpace, view: View, target: int, chain: Sequence[Mapping[str, int]], *, index: int
) -> Seed | None:
    """Return the point of a chain of widths whose predicted latency ratio is nearest to the ``index``-th wanted one.

    Only architectures that the target has not seen; None where there is no such ratio, model or point. The prediction
    only chooses what to try: what counts is what is then measured.
    """
    ratios = wanted_ratios(view, target)
    model = fit_target(view, target)
    if model is None or index >= len(ratios):
        return None
    seen = {trial.candidate.architecture for trial in view.trials_of(target)}
    nearest = sorted(chain, key=lambda widths: abs(model.predict(space.groups, widths) - ratios[index]))
    for widths in nearest[:5]:
        seed = explicit_seed(space, f"aimed-{1 / ratios[index]:.3g}x", widths)
        if seed.candidate.architecture not in seen:
            return seed
    return None


@dataclass(frozen=True)
class TargetModels:
    """The predictors of a job's targets; a target with too few measured trials has none."""

    models: dict[int, LatencyModel]

    def report(self) -> dict[str, JsonValue]:
        """Return what the job's report says of them: error and number of trials a target."""
        return {
            str(target): {
                "trials": model.trials,
                "error_median": round(model.error_median, 4),
                "error_p90": round(model.error_p90, 4),
                "coefficients": list(model.coefficients),
            }
            for target, model in self.models.items()
        }


def fit_trials(view: View) -> TargetModels:
    """Fit every target of a job on its measured trials."""
    fitted = {target: fit_target(view, target) for target in range(len(view.spec.targets))}
    return TargetModels({target: model for target, model in fitted.items() if model is not None})


def fit_target(view: View, target: int) -> LatencyModel | None:
    """Fit one target on its measured trials; None while they are too few."""
    pairs = [(t.candidate.widths, t.values.latency_ratio) for t in view.succeeded(target) if t.values is not None]
    return fit(view.dense_of(target).groups, pairs)
