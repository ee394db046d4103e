"""One model for all targets: which of those measured everywhere serves them best together. Pure.

A user with a fleet often deploys one file. Accuracy does not depend on the device, so the joint view is: error, and the latency
ratio on the target that gains least. Only architectures measured on every target stand here; the search shares the good ones of
each target with the others (``search.seeds.shared``), which costs a measurement and no build.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pydantic import JsonValue

from domain.pareto import nondominated
from domain.trial import Trial
from search.view import View


@dataclass(frozen=True)
class JointPoint:
    """One architecture on every target."""

    trial: Trial
    error: float
    speedups: tuple[float, ...]

    @property
    def least_speedup(self) -> float:
        return min(self.speedups)

    @property
    def mean_speedup(self) -> float:
        """Return the geometric mean over targets."""
        return math.exp(sum(math.log(one) for one in self.speedups) / len(self.speedups))


def joint_front(view: View) -> list[JointPoint]:
    """Return the non-dominated points by error and least speed-up, fastest first; with one target there is nothing to join."""
    targets = range(len(view.spec.targets))
    if len(targets) < 2:
        return []
    by_architecture: dict[str, dict[int, Trial]] = {}
    for target in targets:
        for trial in view.shaped(target):
            by_architecture.setdefault(trial.candidate.architecture, {})[target] = trial
    points = []
    for found in by_architecture.values():
        values = [found[target].values for target in targets if target in found]
        known = [value for value in values if value is not None]
        if len(known) == len(targets):
            speedups = tuple(1 / value.latency_ratio for value in known)
            points.append(JointPoint(found[0], max(value.error for value in known), speedups))
    return nondominated(points, latency=lambda point: 1 / point.least_speedup, error=lambda point: point.error)


def joint_report(view: View) -> list[JsonValue]:
    """Return the joint front for the job's report: accuracy on the search split and the measured speed-up on every target."""
    return [
        {
            "trial": point.trial.number,
            "accuracy_search": round(1 - point.error, 6),
            "speedups": [round(one, 4) for one in point.speedups],
            "least_speedup": round(point.least_speedup, 4),
            "mean_speedup": round(point.mean_speedup, 4),
        }
        for point in joint_front(view)
    ]
