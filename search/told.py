"""What a study is told of a trial: values and named constraints, from the tables alone. Pure; no Optuna.

Constraints are relative, so that one does not drown another where a sampler adds violations up; <= 0 holds.

    valid      -1 gave a point; 1 could not be built or run, or is the dense model; 0.05 stopped early as dominated
    accuracy   accuracy lost / what a search candidate may lose, less 1
    latency    latency / the user's limit, less 1            only where the user gave one
    speedup    the user's wish / speed-up, less 1            only where the user gave one; in the trial's own precision
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from domain.job import JobSpec, TargetSpec
from domain.measurement import CandidateTiming
from domain.trial import Trial, TrialState, TrialValues
from search.view import View

VALID = -1.0
INVALID = 1.0
DOMINATED = 0.05
# Of accuracy. Networks of three kinds that had lost 0.8 to 2.6 points after a short recovery had lost 0.2 to 1.2 after a long one.
MOST_RECOVERED = 0.015
LEAST_LOSS = 0.005  # of accuracy: two candidates that differ by less differ by chance

Kind = Literal["complete", "pruned", "fail"]


@dataclass(frozen=True)
class Told:
    """``complete`` has values (error, latency ratio); ``pruned`` teaches by its constraints; ``fail`` teaches nothing."""

    kind: Kind
    values: tuple[float, float] | None
    constraints: dict[str, float]


def allowed_drop(spec: JobSpec) -> float:
    """Return the accuracy a candidate may lose after its *short* recovery and still be worth a sampler's while.

    More than the user's ``max_drop``: the long recovery of the finals brings back part, and a front needs points beyond
    the limit to show where it lies. Three times the limit and no less than 3 points are starting values.
    """
    return max(0.03, 3.0 * spec.objective.max_drop)


def allowed_error(view: View, target: int) -> float:
    """Return the most error on the search split that a candidate may have and still be of use to a front."""
    return 1.0 - view.dense_accuracy(target) + allowed_drop(view.spec)


def negligible_error(view: View, target: int) -> float:
    """Return the error on the search split up to which a candidate differs from the dense model by chance alone."""
    least = min(LEAST_LOSS, view.spec.objective.max_drop / 2)
    return 1.0 - view.dense_accuracy(target) + least


def recoverable_error(view: View, target: int) -> float:
    """Return the error on the search split up to which a loss is left to the finals' long recovery, not searched for.

    Half of what may be lost, and no more than ``MOST_RECOVERED``.
    """
    return 1.0 - view.dense_accuracy(target) + min(MOST_RECOVERED, view.spec.objective.max_drop / 2)


def accuracy_constraint(accuracy: float, dense_accuracy: float, spec: JobSpec) -> float:
    return (dense_accuracy - accuracy) / allowed_drop(spec) - 1.0


def values_of(
    timing: CandidateTiming,
    accuracy: float,
    dense_accuracy: float,
    spec: JobSpec,
    target: TargetSpec,
    *,
    scale: float = 1.0,
) -> TrialValues:
    """Return what a measured trial is worth: error on the search split, latency ratio to dense, every constraint.

    ``scale`` is the dense latency in the trial's precision over that in the target's first, which the ratio is to.
    """
    constraints = {"valid": VALID, "accuracy": accuracy_constraint(accuracy, dense_accuracy, spec)}
    if target.latency_ms is not None:
        constraints["latency"] = timing.latency_ms / target.latency_ms - 1.0
    if target.speedup is not None:
        constraints["speedup"] = target.speedup / timing.speedup - 1.0
    return TrialValues(error=1.0 - accuracy, latency_ratio=scale / timing.speedup, constraints=constraints)


def told_of(trial: Trial, view: View) -> Told | None:
    """Return what the study learns of a trial; None while it runs.

    Raises:
        LookupError: If the snapshot lacks the trial's prepare build.
    """
    if not trial.state.is_terminal:
        return None
    source = view.original(trial)
    if source.candidate.zeros:
        return Told(
            "fail", None, {}
        )  # no parameter says that weights were set to zero: what it lost is not the parameters' fault
    if source.values is not None and source.state is TrialState.SUCCEEDED:
        values = source.values
        return Told("complete", (values.error, values.latency_ratio), dict(values.constraints))
    if source.state in {TrialState.INFEASIBLE, TrialState.DUPLICATE}:
        # A duplicate of nothing decodes to the dense model. Told as a point it would stand on the front, and draw the
        # sampler to where there is nothing to find.
        return Told("pruned", None, {"valid": INVALID})
    if source.state is TrialState.REJECTED:
        constraints = {"valid": DOMINATED}
        built = view.built(source)
        if built is not None:
            dense = view.dense_accuracy(source.target)
            constraints["accuracy"] = accuracy_constraint(built.accuracy.search, dense, view.spec)
        return Told("pruned", None, constraints)
    return Told("fail", None, {})


def constraint_names(target: TargetSpec) -> tuple[str, ...]:
    """Return the fixed key set of a target's study, in its fixed order."""
    names = ["valid", "accuracy"]
    if target.latency_ms is not None:
        names.append("latency")
    if target.speedup is not None:
        names.append("speedup")
    return tuple(names)
