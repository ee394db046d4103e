"""What a front is worth: pure arithmetic on measured points.

The area a front dominates, as a share of a box: speed-up from 1 to the largest that any method reached, accuracy from ten points
below the dense model to the dense model. A method is judged by what it would hand over: the points that none of its own beats in
speed-up and in accuracy *on val*; how good they are is then read on *test*.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from domain.pareto import hypervolume, nondominated

DEPTH = 0.10
NEAR = 0.01
EPSILON = 1e-9  # accuracies are counts over samples: this only forgives the last bit of a float


@dataclass(frozen=True)
class Point:
    """One file of one run, as the joint session found it."""

    found_s: float
    speedup: float
    low: float
    high: float
    val: float
    test: float


@dataclass(frozen=True)
class Run:
    """One method with one seed; only points that came within the budget. ``made_at`` is ISO 8601."""

    method: str
    seed: int
    points: tuple[Point, ...]
    late: int = 0
    took_s: float = 0.0
    made_at: str = ""


@dataclass(frozen=True)
class Box:
    """What areas are a share of. ``dense`` is the dense model's accuracy on test."""

    dense: float
    fastest: float

    @property
    def floor(self) -> float:
        return self.dense - DEPTH


def box_of(runs: Iterable[Run], dense: float) -> Box:
    """Return the box all runs of a task are judged in: up to the fastest delivered point that is not below its floor."""
    speedups = [p.speedup for run in runs for p in delivered(run.points) if p.test >= dense - DEPTH - EPSILON]
    return Box(dense, max([1.0, *speedups]))


def delivered(points: Sequence[Point]) -> list[Point]:
    """Return what a method would hand over, fastest first."""
    return nondominated(points, latency=lambda point: 1 / point.speedup, error=lambda point: 1 - point.val)


def area(points: Sequence[Point], box: Box) -> float:
    """Return the share of the box that delivered points dominate, between 0 and 1."""
    if box.fastest <= 1:
        return 0.0
    spots = [(-point.speedup, max(0.0, box.dense - point.test)) for point in delivered(points)]
    return hypervolume(spots, reference=(-1.0, DEPTH)) / ((box.fastest - 1) * DEPTH)


def curve(run: Run, box: Box) -> list[tuple[float, float]]:
    """Return (second, area) each time a point was found, from (0, 0) on."""
    steps = [(0.0, 0.0)]
    for second in sorted({point.found_s for point in run.points}):
        steps.append((second, area([point for point in run.points if point.found_s <= second], box)))
    return steps


def reached_s(run: Run, box: Box, level: float) -> float | None:
    """Return the second from which a run's area is at least ``level``; None if it never is."""
    return next((second for second, value in curve(run, box) if value >= level - EPSILON and second > 0), None)


def fastest_near(points: Sequence[Point], box: Box) -> Point | None:
    """Return the delivered point of the largest speed-up that loses at most one point of accuracy on test."""
    near = [point for point in delivered(points) if point.test >= box.dense - NEAR - EPSILON]
    return max(near, key=lambda point: point.speedup, default=None)


@dataclass(frozen=True)
class Summary:
    """A method over its seeds."""

    method: str
    seeds: int
    areas: tuple[float, ...]
    near: tuple[Point | None, ...]
    reached_s: tuple[float | None, ...]
    settled_s: tuple[float | None, ...]
    points: int
    late: int
    took_s: float

    @property
    def mean(self) -> float:
        return sum(self.areas) / len(self.areas)

    @property
    def least(self) -> float:
        return min(self.areas)


def summaries(runs: Sequence[Run], box: Box, ours: str) -> list[Summary]:
    """Return every method, best first by mean area.

    ``reached_s``: when it reached the best peer's mean final area. ``settled_s``: when it reached its own final area.

    Args:
        runs: All of one task and budget.
        box: Of the same runs.
        ours: Prefix of the methods that are not peers.
    """
    by_method: dict[str, list[Run]] = {}
    for run in runs:
        by_method.setdefault(run.method, []).append(run)
    means = {m: sum(area(run.points, box) for run in own) / len(own) for m, own in by_method.items()}
    best = best_peer(means, ours)
    level = means[best] if best else 0.0
    return [
        Summary(
            method=method,
            seeds=len(own),
            areas=tuple(area(run.points, box) for run in own),
            near=tuple(fastest_near(run.points, box) for run in own),
            reached_s=tuple(reached_s(run, box, level) for run in own),
            settled_s=tuple(reached_s(run, box, area(run.points, box)) for run in own),
            points=sum(len(run.points) for run in own),
            late=sum(run.late for run in own),
            took_s=max(run.took_s for run in own),
        )
        for method, own in sorted(by_method.items(), key=lambda item: -means[item[0]])
    ]


def best_peer(means: dict[str, float], ours: str) -> str | None:
    """Return the peer of the largest mean area."""
    peers = [method for method in means if not is_ours(method, ours)]
    return max(peers, key=lambda method: means[method], default=None)


def is_ours(method: str, ours: str) -> bool:
    return method == ours or method.startswith(f"{ours}:")
