"""When the search has had enough: budget, wall clock, or a front that has stopped growing. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from domain.pareto import hypervolume
from domain.trial import Trial, TrialState
from search.told import allowed_error
from search.view import View, trailing_duplicates

MIN_PLATEAU = 20
MIN_GAIN = 0.005
# So many asks in a row that decode to a known architecture, the last of them drawn at random: there is nothing new left.
EXHAUSTED_AFTER = 25


def plateau_length(parameters: int) -> int:
    """Return over how many trials the front must not have grown: a sampler needs about two a parameter to move."""
    return max(MIN_PLATEAU, 2 * parameters)


def growth(view: View, target: int) -> list[float]:
    """Return the hypervolume after each counted trial, in the order they finished."""
    points = _finished_points(view, target)
    return [_area(view, target, points[: count + 1]) for count in range(len(points))]


def growth_in_time(view: View, target: int) -> list[tuple[datetime, float]]:
    """Return when the hypervolume grew and what it came to; the first entry is the first counted trial's."""
    grown: list[tuple[datetime, float]] = []
    front: list[tuple[float, float]] = []
    for trial in _counted(view, target):
        if trial.state is TrialState.SUCCEEDED and trial.values is not None:
            new = trial.values.latency_ratio, trial.values.error
            if grown and any(old[0] <= new[0] and old[1] <= new[1] for old in front):
                continue
            front = [old for old in front if not (new[0] <= old[0] and new[1] <= old[1])] + [new]
        elif grown:
            continue
        area = _area(view, target, front)
        if not grown or area > grown[-1][1]:
            grown.append((trial.finished_at or trial.created_at, area))
    return grown


def is_searched_out(view: View, target: int, *, parameters: int) -> bool:
    """Return whether more trials of a target would likely bring nothing: a plateau, or no new architecture to find."""
    if trailing_duplicates(view.trials_of(target)) >= EXHAUSTED_AFTER:
        return True
    points = _finished_points(view, target)
    over = plateau_length(parameters)
    if len(points) <= over:
        return False
    return has_plateaued(_area(view, target, points[:-over]), _area(view, target, points))


def has_plateaued(before: float, now: float, *, min_gain: float = MIN_GAIN) -> bool:
    """Return whether an area grew by less than a share ``min_gain``. A front with no area has not begun."""
    return now > 0 and now - before < min_gain * now


def _area(view: View, target: int, points: Sequence[tuple[float, float] | None]) -> float:
    """Return the area of (latency ratio, error) up to the dense model's latency and the error a candidate may reach.

    What lies beyond is of no use to anybody and counts nothing.
    """
    reference = (1.0, allowed_error(view, target))
    return hypervolume([point for point in points if point is not None], reference=reference)


def _finished_points(view: View, target: int) -> list[tuple[float, float] | None]:
    """Return what each counted trial came to, in the order they finished; None where it gave no point."""
    return [
        (trial.values.latency_ratio, trial.values.error)
        if trial.state is TrialState.SUCCEEDED and trial.values is not None
        else None
        for trial in _counted(view, target)
    ]


def _counted(view: View, target: int) -> list[Trial]:
    """Return the trials that count against the budget and are over, in the order they finished."""
    finished = [
        trial
        for trial in view.trials_of(target)
        if trial.state.is_terminal and trial.build_id is not None and trial.state is not TrialState.CANCELLED
    ]
    return sorted(finished, key=lambda trial: (trial.finished_at or trial.created_at, trial.number))
