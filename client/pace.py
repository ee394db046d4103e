"""How fast a job goes and how long it will still take, from what its progress says. Pure.

The server's ``elapsed_s`` is the clock: it leaves out pauses and waits for a device, so a job that waits does not look slow.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from api.schemas.jobs import JobView
from domain.job import Stage

WINDOW = 12  # finished trials that the rate is taken over: early ones, small and quick, say little of later ones
LEAST_TRIALS = 2


@dataclass(frozen=True)
class Pace:
    """Trials a minute, and the time left: never more than the budget's rest. None: not known yet."""

    trials_per_min: float | None
    left_s: float | None
    is_budget: bool = False  # True: what is left is the budget, which the job may not need


class PaceMeter:
    """Watches a job's progress; one a job."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque(maxlen=WINDOW + 1)  # (elapsed_s, trials finished), a step each

    def see(self, view: JobView) -> Pace:
        """Take a look into account and return the pace as of now."""
        progress = view.progress
        if view.state.is_terminal:
            return Pace(None, None)
        if not self._seen or progress.trials_finished > self._seen[-1][1]:
            self._seen.append((progress.elapsed_s, progress.trials_finished))
        rest_s = max(0.0, progress.wall_budget_s - progress.elapsed_s)
        rate = self._trials_per_s(progress.elapsed_s)
        if view.stage is not Stage.SEARCHING or rate is None:
            # Preparing, finals and measuring again have no rate of their own: the budget is the only bound.
            return Pace(rate and 60 * rate, rest_s, is_budget=True)
        trials_s = max(0, progress.trials_budget - progress.trials_finished) / rate
        return Pace(60 * rate, min(trials_s, rest_s), is_budget=trials_s >= rest_s)

    def _trials_per_s(self, now_s: float) -> float | None:
        first_s, first = self._seen[0]
        last_s, last = self._seen[-1]
        if last - first < LEAST_TRIALS or last_s <= first_s:
            return None
        # A trial that takes long shows before it is over: the rate falls as time passes without one.
        span_s = max(last_s - first_s, (now_s - first_s) * (last - first) / (last - first + 1))
        return (last - first) / span_s
