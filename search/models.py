"""The predictors of one target, fitted on a snapshot: latency in each precision, and accuracy lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import JsonValue

from domain.measurement import Measured
from domain.trial import Trial
from search import finals, latency_model, loss_model, why
from search.latency_model import LatencyModel
from search.loss_model import LossModel
from search.network import Ints, Network
from search.options import Parts
from search.precision import baseline_scale, first_of
from search.probes import probed
from search.view import View


@dataclass(frozen=True)
class Models:
    """What a target is known to do; ``latency`` has a model a precision."""

    network: Network
    latency: Mapping[str, LatencyModel]
    loss: LossModel


def network_of(view: View, target: int) -> Network:
    """Return the network of a target's dense model, with its blocks where the job prunes them."""
    dense = view.dense_of(target)
    levels = view.spec.levels
    blocks = dense.blocks if "block" in levels else ()
    return Network(dense.groups, dense.layers, blocks, has_channels="channel" in levels)


def fit_models(view: View, target: int, network: Network | None = None, *, parts: Parts = Parts()) -> Models:
    """Fit all predictors of a target on its measured and built trials; before any, they say what is usual."""
    network = network or network_of(view, target)
    measured = view.shaped(target) if parts.latency_model else []
    latency: dict[str, LatencyModel] = {
        precision: _fit_latency(
            view,
            target,
            precision,
            network,
            measured,
            probed(view, target, network, precision) if parts.latency_model else [],
        )
        for precision in view.spec.targets[target].precision
    }
    return Models(network, latency, loss_model.fit(network, _losses(view, target, network) if parts.ranges else []))


def predict_ratio(models: Models, trial: Trial) -> float:
    """Return a candidate's predicted latency over the dense model's measured one in the target's first precision."""
    return models.latency[trial.candidate.precision].predict(_row(models.network, trial))


def second_half_errors(view: View, target: int, precision: str) -> list[float]:
    """Return |predicted - measured| / measured of a search's later half, each predicted from what was measured before it.

    This is what a user can hold against the predictor: no trial helps to predict itself, and none that came later does.
    """
    network = network_of(view, target)
    measured = [t for t in view.shaped(target) if t.candidate.precision == precision and t.values is not None]
    errors = []
    for index in range(max(1, len(measured) // 2), len(measured)):
        model = _fit_latency(
            view, target, precision, network, measured[:index], probed(view, target, network, precision)
        )
        values = measured[index].values
        assert values is not None
        predicted = model.predict(_row(network, measured[index]))
        errors.append(abs(predicted - values.latency_ratio) / values.latency_ratio)
    return errors


def predictor_report(view: View) -> dict[str, JsonValue]:
    """Return what the job's report says of its latency models, by ``target`` or ``target:precision``."""
    report: dict[str, JsonValue] = {}
    for index, target in enumerate(view.spec.targets):
        models = fit_models(view, index)
        for place, precision in enumerate(target.precision):
            model = models.latency[precision]
            errors = second_half_errors(view, index, precision)
            if not errors:
                continue
            report[str(index) if place == 0 else f"{index}:{precision}"] = {
                "trials": sum(trial.candidate.precision == precision for trial in view.shaped(index)),
                "alignment": model.alignment,
                "coefficients": [round(float(value), 5) for value in model.coefficients],
                "error_median": round(float(np.median(errors)), 4),
                "error_p90": round(float(np.quantile(errors, 0.9)), 4),
            }
    return report


def why_report(view: View) -> dict[str, JsonValue]:
    """Return, a target, what the removed channels bought in each finalist (``search.why``), and the time no pruning removes."""
    report: dict[str, JsonValue] = {}
    for target in range(len(view.spec.targets)):
        baseline = view.measurements.get(f"baseline:{target}")
        finalists = finals.finalists(view, target)
        if baseline is None or not isinstance(baseline.outcome, Measured) or not finalists:
            continue
        models = fit_models(view, target)
        dense_ms = baseline.outcome.baseline.latency_ms
        first = models.latency[first_of(view, target)]
        report[str(target)] = {
            "fixed_ms": round(why.fixed_ms(first, dense_ms=dense_ms), 4),
            "trials": {
                str(trial.number): why.account(
                    models.latency[trial.candidate.precision], _row(models.network, trial), dense_ms=dense_ms
                )
                for trial in finalists
            },
        }
    return report


def _fit_latency(
    view: View,
    target: int,
    precision: str,
    network: Network,
    trials: Sequence[Trial],
    probes: Sequence[tuple[Ints, float]],
) -> LatencyModel:
    pairs = [
        (_row(network, trial), trial.values.latency_ratio)
        for trial in trials
        if trial.values is not None and trial.candidate.precision == precision
    ]
    scale = baseline_scale(view, target, precision)
    return latency_model.fit(network, pairs, probes=probes, scale=scale.ratio if scale is not None else 1.0)


def _losses(view: View, target: int, network: Network) -> list[tuple[Ints, float]]:
    """Return row and accuracy lost of everything built for a job in the target's first precision, oldest first."""
    first = view.spec.targets[target].precision[0]
    dense = view.dense_accuracy(target)
    found: list[tuple[Ints, float]] = []
    for trial in reversed(view.snapshot.trials):
        built = view.built(trial)
        # A duplicate has no build of its own; what two targets share counts twice, which does no harm.
        if built is not None and trial.candidate.precision == first and not trial.candidate.zeros:
            found.append((_row(network, trial), dense - built.accuracy.search))
        if len(found) == loss_model.MOST_TRIALS:
            break
    return found[::-1]


def _row(network: Network, trial: Trial) -> Ints:
    row = network.known_rows.get(trial.id)
    if row is None:
        row = network.known_rows[trial.id] = network.row(trial.candidate.widths, trial.candidate.dropped)
    return row
