"""Pareto fronts of (latency, error) and their hypervolume: both to be made small. Pure Python, a few hundred points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def nondominated(items: Sequence[T], *, latency: Callable[[T], float], error: Callable[[T], float]) -> list[T]:
    """Return the items no other item beats in both, fastest first; of exact equals the first stays.

    Args:
        items: Anything that has a latency and an error.
        latency: Latency (or its ratio to the dense model) of an item.
        error: Error of an item, e.g. 1 - accuracy.
    """
    front: list[T] = []
    best_error = float("inf")
    for item in sorted(items, key=lambda item: (latency(item), error(item))):
        if error(item) < best_error:
            front.append(item)
            best_error = error(item)
    return front


def hypervolume(points: Sequence[tuple[float, float]], *, reference: tuple[float, float]) -> float:
    """Return the area that (x, y) points, both to be made small, dominate up to a reference point.

    Points outside the reference box add nothing. No points: 0.
    """
    area = 0.0
    ceiling = reference[1]
    for x, y in nondominated(points, latency=lambda p: p[0], error=lambda p: p[1]):
        if x >= reference[0] or y >= ceiling:
            continue
        area += (reference[0] - x) * (ceiling - y)
        ceiling = y
    return area
