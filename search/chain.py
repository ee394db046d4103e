"""The chain a search begins with: ever faster networks, each cut from the one before after that was recovered.

Their widths are those the knapsack finds best as the predictors know the target at that moment. It gives a whole front early, the
predictors something to learn from, and every later candidate a recovered network to inherit from. In a target of several precisions
each link is then tried in the others.

Source: progressive shrinking by latency budgets as in NetAdapt, arXiv:1804.03230.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from domain.trial import Trial, TrialState
from search.knapsack import fastest_of
from search.latency_model import LatencyModel
from search.models import Models
from search.seeds import Seed, named, seed_of
from search.space import SearchSpace
from search.told import allowed_drop
from search.view import View

CHAIN = "chain-"
# What the first link leaves. What takes long to recover is passed by at once: a wide network is slow to train, and pointless once a
# faster one loses as little. Layer norms are brought back slowly, and lose from a bold cut what a few epochs do not return.
FIRST = 1 / 7
MILD = 0.64
# What a link leaves of the latency of the one before: little while hardly anything is lost, more the nearer the chain comes to what
# may be lost. Two accuracies on 500 samples differ by a point, a third of what may usually be lost, for nothing.
STEPS = ((1 / 3, 0.42), (0.5, MILD), (1.0, 0.76), (float("inf"), 0.86))
# How far to go, in logarithms, towards what is too far: the fastest network, or a link that lost too much.
HALF_WAY = 0.5
MOST_OF_THE_WAY = 0.75
LITTLE_TOO_MUCH = 1.5  # times what may be lost: from a link that lost no more the way back is short
LEAST_LIMIT = 0.01  # of accuracy: how much a user who allows no loss is taken to allow here
LEAST_STEP = 0.97  # what counts as faster at all
BOLD = 0.6  # a step that leaves less may have lost more than it need
WALL = 0.9  # nearer to a link that went too far there is no room for another
NARROWEST_TRIES = 4  # ever bolder steps where a link decodes to widths known before


def chain_of(view: View, target: int) -> list[Trial]:
    """Return the links of a target's chain, in its first precision and in order."""
    first = view.spec.targets[target].precision[0]
    return [
        trial
        for trial in view.trials_of(target)
        if (trial.seed_name or "").startswith(CHAIN) and trial.candidate.precision == first
    ]


def is_chain_pending(view: View, target: int) -> bool:
    """Return whether the chain's last link is still being built: the next one will be cut from it."""
    links = chain_of(view, target)
    return bool(links) and links[-1].state is TrialState.BUILDING


def next_link(space: SearchSpace, view: View, target: int, models: Models, *, limit: int) -> Seed | None:
    """Return the next link of a target's chain; None where it has come to its end.

    From a link that went too far the way leads back: the next one is cut from the link before it, part of the way. The chain ends
    where no room is left before one that lost far more than a front has use for, where nothing is left to narrow, or after
    ``limit`` links.
    """
    links = chain_of(view, target)
    if len(links) >= limit:
        return None
    latency = models.latency[space.precisions[0]]
    at = _standing(space, view, target, links, latency)
    begin = space.network.dense if at.link is None else space.row_of(at.link.candidate)
    seen = view.identities_of(target)
    params = space.in_precision(space.neutral, space.precisions[0])
    step = at.towards_wall or _towards_fastest(view, target, at, fastest_of(latency, models.loss))
    if step > WALL:
        return None
    # Where nothing new lies before a bold link, it is passed.
    beyond = max((wall for wall, _ in at.bold if wall < at.ratio), default=at.ratio * step)
    for wanted in (at.ratio * step, *(beyond * step**further for further in range(1, NARROWEST_TRIES))):
        if wanted <= at.spent:
            return None
        candidate = space.decode({**params, "speedup": latency.scale / wanted}, models, start=begin, is_close=True)
        if candidate.identity in seen or candidate.is_dense(list(space.groups)):
            continue
        if latency.predict(space.row_of(candidate)) > LEAST_STEP * at.ratio:
            return None
        return seed_of(space, models, f"{CHAIN}{len(links) + 1}", candidate)
    return None


def in_other_precisions(space: SearchSpace, view: View, target: int, models: Models) -> Seed | None:
    """Return a link of the chain in a precision it was not tried in yet; None where all were."""
    seen = view.identities_of(target)
    for link in chain_of(view, target):
        for precision in space.precisions[1:]:
            candidate = link.candidate.model_copy(update={"precision": precision})
            if candidate.identity not in seen:
                return seed_of(space, models, named(space, link.seed_stem, precision), candidate)
    return None


@dataclass(frozen=True)
class _Standing:
    """Where a chain stands: the link to go on from (None: the dense model), and predicted latency ratios.

    ``ratio`` of that link; ``spent`` of the slowest one that lost too much, 0 where none did; ``bold`` of those that went too far
    at once, each with what it lost, in units of what may be.
    """

    link: Trial | None
    ratio: float
    spent: float
    bold: tuple[tuple[float, float], ...]

    @property
    def towards_wall(self) -> float:
        """The step towards the next link that went too far; 0 where there is none."""
        walls = [
            (wall, MOST_OF_THE_WAY if lost <= LITTLE_TOO_MUCH else HALF_WAY)
            for wall, lost in self.bold
            if wall < WALL**2 * self.ratio
        ]
        walls += [(self.spent, HALF_WAY)] if self.spent else []
        return max((math.pow(min(1.0, wall / self.ratio), share) for wall, share in walls), default=0.0)


def _standing(space: SearchSpace, view: View, target: int, links: Sequence[Trial], latency: LatencyModel) -> _Standing:
    last: Trial | None = None
    at, spent = latency.predict(space.network.dense), 0.0
    bold: list[tuple[float, float]] = []
    for link in links:
        ratio, lost = latency.predict(space.row_of(link.candidate)), _lost(view, target, link)
        is_too_much = lost > allowed_drop(view.spec)
        if is_too_much and link is not links[0]:
            spent = max(spent, ratio)
        elif is_too_much or (lost > _limit(view) and ratio < BOLD * at):
            # The first, cut at once, does not prove that there is no way past it.
            bold.append((ratio, lost / _limit(view)))
        else:
            last, at = link, ratio
    return _Standing(last, at, spent, tuple(bold))


def _towards_fastest(view: View, target: int, at: _Standing, fastest: float) -> float:
    """Return how much of a link's latency the next one shall leave where nothing went too far yet, by what was lost so far.

    Nobody expects the fastest network to stand: a step that ends there costs a link and teaches nothing.
    """
    way = fastest / at.ratio
    if at.link is None:
        return (
            MILD if view.dense_of(target).is_slow_to_recover else max(FIRST, min(MILD, math.pow(way, MOST_OF_THE_WAY)))
        )
    share = _lost(view, target, at.link) / _limit(view)
    return max(next(step for most, step in STEPS if share <= most), min(MILD, math.pow(way, HALF_WAY)))


def _lost(view: View, target: int, link: Trial) -> float:
    """Return the accuracy a link lost: nothing as long as it is built, all where it could not be or fell to NaN."""
    built = view.built(link)
    if built is None:
        return math.inf if link.state.is_terminal else 0.0
    lost = view.dense_accuracy(target) - built.accuracy.search
    return lost if math.isfinite(lost) else math.inf


def _limit(view: View) -> float:
    return max(view.spec.objective.max_drop, LEAST_LIMIT)
