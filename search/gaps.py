"""Where a front has most room: between two of its neighbours, and the candidate half-way that may fill it. Pure.

The room between a slower and a faster point is the box that a candidate between them could add to what the front dominates:
how far apart they are in log latency, times the accuracy between them. Half-way is cut from the slower one, so that it inherits.
The dense model is a neighbour, too.

Source: the largest empty box of a bicriteria front, as in adaptive weighted-sum methods: Kim and de Weck, Structural and
Multidisciplinary Optimization 29 (2005).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from domain.trial import Trial
from search.finals import search_front
from search.models import Models
from search.precision import baseline_scale, first_of
from search.seeds import Seed, seed_of
from search.space import SearchSpace
from search.told import LEAST_LOSS, allowed_error, recoverable_error
from search.view import View

GAP = "gap-"
NEAR = math.log(1.15)  # neighbours closer than that in latency leave no step to take between them
BEYOND = 1.15  # times the fastest that is allowed: another network of that speed may lose less
SHARES = (0.5, 2 / 3, 1 / 3)  # of the way to the faster one: where half-way lies what is known, a little beside it
LEAST_ROOM = 0.001  # the least loss of note, over a fifth of latency


@dataclass(frozen=True)
class Gap:
    """Two neighbours on a front and the room between them, in log latency times accuracy. ``slow`` None: the dense model.

    ``ratio`` is the latency half-way, ``apart`` how far they are from each other in log latency.
    """

    slow: Trial | None
    fast: Trial
    ratio: float
    apart: float
    room: float

    def ratio_at(self, share: float) -> float:
        """Return the latency a share of the way to the faster one."""
        return self.ratio * math.exp(self.apart * (0.5 - share))

    @property
    def name(self) -> str:
        return f"{GAP}{'dense' if self.slow is None else self.slow.number}-{self.fast.number}"


def gaps(view: View, target: int) -> list[Gap]:
    """Return the gaps worth a try, widest first; error beyond what the job may ever use makes no gap wider.

    Nor does what is left to the finals' long recovery: eight of a ViT's thirty trials lay between the dense model and 2x, where
    finals lost 0.3 points at the most, and took a third of the search's time. The dense model of the target's first precision is
    the slowest neighbour of all. ``ratio`` is the latency half-way.
    """
    dense_error = 1.0 - view.dense_accuracy(target)
    least = recoverable_error(view, target)
    limit = allowed_error(view, target)
    points: list[tuple[float, float, str, Trial | None]] = [
        (trial.values.latency_ratio, trial.values.error, trial.candidate.precision, trial)
        for trial in search_front(view, target)
        if trial.values is not None and not trial.candidate.zeros
    ]
    found = []
    dense = (1.0, dense_error, first_of(view, target), None)
    for (fast_ratio, fast_error, precision, fast), (ratio, error, other, slow) in pairwise([*points, dense]):
        apart = math.log(ratio / fast_ratio)
        lost = min(fast_error, limit) - max(error, least)
        room = apart * lost
        is_wide = apart >= NEAR and lost >= LEAST_LOSS and room >= LEAST_ROOM
        if fast is not None and precision == other and is_wide:
            found.append(Gap(slow, fast, math.sqrt(ratio * fast_ratio), apart, room))
    return sorted(found, key=lambda gap: -gap.room)


def speedups_of_use(view: View, target: int) -> tuple[float, float]:
    """Return the speed-ups, within a precision, between which there is something to find.

    From the fastest network whose loss is left to a final's recovery, for a slower one is of no use, to a little beyond the
    fastest that lost no more than any user allows, once one is known that lost more. In several precisions whatever is of use
    in one of them.
    """
    least, most = recoverable_error(view, target), allowed_error(view, target)
    lows, highs = [], []
    for precision in view.spec.targets[target].precision:
        scale = baseline_scale(view, target, precision)
        known = [
            (scale.ratio / trial.values.latency_ratio, trial.values.error)
            for trial in search_front(view, target)
            if scale is not None and trial.values is not None and trial.candidate.precision == precision
            if not trial.candidate.zeros  # what zeros bought, no widths may give
        ]
        lows.append(max([1.0, *(speed for speed, error in known if error <= least)]))
        allowed = max([1.0, *(speed for speed, error in known if error <= most)])
        is_end_known = any(speed > allowed for speed, _ in known)
        highs.append(BEYOND * allowed if is_end_known else math.inf)
    return min(lows), max(highs)


def between(space: SearchSpace, view: View, target: int, models: Models) -> Seed | None:
    """Return a candidate for the widest gap that none was made for yet; None where there is none, or nothing lies in it."""
    tried = {trial.seed_stem for trial in view.trials_of(target)}
    seen = view.identities_of(target)
    for gap in gaps(view, target):
        if gap.name in tried:
            continue
        precision = gap.fast.candidate.precision
        begin = space.network.dense if gap.slow is None else space.row_of(gap.slow.candidate)
        for share in SHARES:
            speedup = models.latency[precision].scale / gap.ratio_at(share)
            params = space.in_precision({**space.neutral, "speedup": speedup}, precision)
            candidate = space.decode(params, models, start=begin, is_close=True)
            if candidate.identity not in seen and not candidate.is_dense(list(space.groups)):
                return seed_of(space, models, gap.name, candidate)
    return None
