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
from search.precision import baseline_scale
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


@dataclass(frozen=True)
class Aim:
    """A latency worth a candidate: its ratio to the dense model of the target's first precision, and the seed's name."""

    name: str
    precision: str
    ratio: float


def aims_of(view: View, target: int) -> tuple[Aim, ...]:
    """Return the aims of a target: the user's limits, else twice and three times as fast, in every precision."""
    spec = view.spec.targets[target]
    baseline = view.measurements.get(f"baseline:{target}")
    aims = []
    for precision in spec.precision:
        scale = baseline_scale(view, target, precision)
        if scale is None:
            continue
        ratios = [scale.ratio / spec.speedup] if spec.speedup is not None else []
        if spec.latency_ms is not None and baseline is not None and isinstance(baseline.outcome, Measured):
            ratios.append(min(scale.ratio, spec.latency_ms / baseline.outcome.baseline.latency_ms))
        for ratio in ratios or [scale.ratio / 2, scale.ratio / 3]:
            name = f"aimed-{scale.ratio / ratio:.3g}x"
            aims.append(Aim(name if precision == spec.precision[0] else f"{name}-{precision}", precision, ratio))
    return tuple(aims)


def aimed_seed(space: SearchSpace, view: View, target: int, chain: Sequence[Mapping[str, int]]) -> Seed | None:
    """Return, for the first aim not tried yet, the point of a chain of widths whose predicted latency is nearest to it.

    Only architectures that the target has not seen; None where there is no such aim, model or point. The prediction
    only chooses what to try: what counts is what is then measured.
    """
    trials = view.trials_of(target)
    tried = {(trial.seed_name or "").removesuffix("~") for trial in trials}
    seen = {trial.candidate.architecture for trial in trials}
    for aim in aims_of(view, target):
        model = fit_target(view, target, aim.precision)
        if aim.name in tried or model is None:
            continue
        nearest = sorted(chain, key=lambda widths: abs(model.predict(space.groups, widths) - aim.ratio))
        for widths in nearest[:5]:
            plain = aim.name.removesuffix(f"-{aim.precision}")
            seed = explicit_seed(space, plain, widths, aim.precision)
            if seed.candidate.architecture not in seen:
                return seed
    return None


@dataclass(frozen=True)
class TargetModels:
    """The predictors of a job's targets, by ``target`` or ``target:precision``; too few measured trials: none."""

    models: dict[str, LatencyModel]

    def report(self) -> dict[str, JsonValue]:
        """Return what the job's report says of them: error and number of trials."""
        return {
            name: {
                "trials": model.trials,
                "error_median": round(model.error_median, 4),
                "error_p90": round(model.error_p90, 4),
                "coefficients": list(model.coefficients),
            }
            for name, model in self.models.items()
        }


def fit_trials(view: View) -> TargetModels:
    """Fit every target and precision of a job on its measured trials."""
    fitted = {}
    for index, target in enumerate(view.spec.targets):
        for place, precision in enumerate(target.precision):
            model = fit_target(view, index, precision)
            if model is not None:
                fitted[str(index) if place == 0 else f"{index}:{precision}"] = model
    return TargetModels(fitted)


def fit_target(view: View, target: int, precision: str) -> LatencyModel | None:
    """Fit one target on its measured trials of a precision; None while they are too few."""
    pairs = [
        (trial.candidate.widths, trial.values.latency_ratio)
        for trial in view.succeeded(target)
        if trial.values is not None and trial.candidate.precision == precision
    ]
    return fit(view.dense_of(target).groups, pairs)
