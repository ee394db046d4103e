"""Where a search begins, so that its sampler starts from sense and not from noise.

First the *chain*: ever faster networks, each cut from the one before after that was recovered, with the widths the knapsack finds
best as the predictors know the target at that moment. It gives a whole front early, the predictors something to learn from, and
every later candidate a recovered network to inherit from. In a target of several precisions each link is then tried in the others.

Source: progressive shrinking by latency budgets as in NetAdapt, arXiv:1804.03230.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from domain.candidate import Candidate
from domain.measurement import Measured
from domain.trial import Trial, TrialState
from search import zeros
from search.finals import plain_front, search_front
from search.models import Models
from search.space import SearchSpace
from search.told import allowed_drop
from search.view import View

CHAIN = "chain-"
SHARED = "from-"
# What a link leaves of the latency of the one before: little while nothing is lost, for wide networks take long to recover and
# a faster one that lost nothing makes them pointless; more the nearer the chain comes to what may be lost.
STEPS = ((1 / 6, 0.42), (0.5, 0.64), (1.0, 0.76), (float("inf"), 0.86))
LEAST_LIMIT = 0.01  # of accuracy: how much a user who allows no loss is taken to allow here
LEAST_STEP = 0.97  # what counts as faster at all
BOLD = 0.6  # a step that leaves less may have lost more than it need
WALL = 0.9  # nearer to a link that went too far there is no room for another
INSIDE = 0.98  # of a limit: aimed at the limit itself, half of the candidates would miss it
NARROWEST_TRIES = 4  # ever bolder steps where a link decodes to widths known before


@dataclass(frozen=True)
class Seed:
    """A starting point: the parameters told to the sampler and the candidate really built.

    The name ends in ``~`` where the space cannot express the candidate and the parameters are the nearest it has.
    """

    name: str
    params: dict[str, float]
    candidate: Candidate


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

    From a link that went too far the way leads back: the next one is cut from the link before it, half-way. The chain ends where no
    room is left before one that lost far more than a front has use for, where nothing is left to narrow, or after ``limit`` links.
    """
    links = chain_of(view, target)
    if len(links) >= limit:
        return None
    latency = models.latency[space.precisions[0]]

    def ratio_of(link: Trial) -> float:
        return latency.predict(space.row_of(link.candidate))

    last: Trial | None = None  # the link to go on from
    at = latency.predict(space.network.dense)
    spent, bold = 0.0, []
    for link in links:
        ratio, lost = ratio_of(link), _lost(view, target, link)
        if lost > allowed_drop(view.spec):
            spent = max(spent, ratio)
        elif lost > _limit(view) and ratio < BOLD * at:
            bold.append(ratio)
        else:
            last, at = link, ratio
    step = _step(view, target, last)
    near = [math.sqrt(wall / at) for wall in bold if wall < WALL**2 * at]
    if spent:
        near.append(math.sqrt(min(1.0, spent / at)))
    step = max([step, *near])
    if step > WALL:
        return None
    begin = space.network.dense if last is None else space.row_of(last.candidate)
    seen = view.identities_of(target)
    params = space.in_precision(space.neutral, space.precisions[0])
    for boldness in range(1, NARROWEST_TRIES + 1):
        wanted = {**params, "speedup": latency.scale / (at * step**boldness)}
        candidate = space.decode(wanted, models, start=begin, is_close=True)
        if candidate.identity in seen or candidate.is_dense(list(space.groups)):
            continue
        if latency.predict(space.row_of(candidate)) > LEAST_STEP * at:
            return None
        return seed_of(space, models, f"{CHAIN}{len(links) + 1}", candidate)
    return None


def aimed(space: SearchSpace, view: View, target: int, models: Models) -> Seed | None:
    """Return a candidate aimed just inside a limit the user gave, in a precision where none was; None: all were, or no limit."""
    spec = view.spec.targets[target]
    baseline = view.measurements.get(f"baseline:{target}")
    tried = {trial.seed_stem for trial in view.trials_of(target)}
    for precision in space.precisions:
        scale = models.latency[precision].scale
        ratios = [scale / spec.speedup] if spec.speedup is not None else []
        if spec.latency_ms is not None and baseline is not None and isinstance(baseline.outcome, Measured):
            ratios.append(min(scale, spec.latency_ms / baseline.outcome.baseline.latency_ms))
        for ratio in ratios:
            name = _named(space, f"aimed-{scale / ratio:.3g}x", precision)
            if name not in tried:
                params = space.in_precision({**space.neutral, "speedup": scale / ratio / INSIDE}, precision)
                return seed_of(space, models, name, space.decode(params, models))
    return None


def shared(space: SearchSpace, view: View, target: int, models: Models) -> Seed | None:
    """Return a candidate of another target's front that this one has not seen: it is built already and costs a measurement."""
    precisions = set(space.precisions)
    seen = view.identities_of(target)
    for other in range(len(view.spec.targets)):
        for trial in search_front(view, other) if other != target else ():
            candidate = trial.candidate
            if candidate.identity not in seen and candidate.precision in precisions:
                return seed_of(space, models, f"{SHARED}{trial.number}", candidate)
    return None


def uniform_seed(space: SearchSpace, models: Models, sparsity: float, precision: str) -> Seed:
    """Return the seed of one sparsity for all groups."""
    params = space.in_precision(space.neutral, precision)
    candidate = space.candidate(space.uniform(sparsity), params)
    return seed_of(space, models, _named(space, f"uniform-{sparsity:g}", precision), candidate)


def seed_of(space: SearchSpace, models: Models, name: str, candidate: Candidate) -> Seed:
    """Return a seed of an explicit candidate, with parameters projected onto the space."""
    params = space.project(space.row_of(candidate), models, candidate.precision)
    is_exact = space.decode(params, models).identity == candidate.identity
    return Seed(name if is_exact else f"{name}~", params, candidate)


def in_other_precisions(space: SearchSpace, view: View, target: int, models: Models) -> Seed | None:
    """Return a link of the chain in a precision it was not tried in yet; None where all were."""
    seen = view.identities_of(target)
    for link in chain_of(view, target):
        for precision in space.precisions[1:]:
            candidate = link.candidate.model_copy(update={"precision": precision})
            if candidate.identity not in seen:
                return seed_of(space, models, _named(space, link.seed_stem, precision), candidate)
    return None


def with_zeros(space: SearchSpace, view: View, target: int, models: Models) -> Seed | None:
    """Return a probe of the weight level, or a point of the front with zeros where they pay; None: nothing to try now."""
    if "weight" not in view.spec.levels:
        return None
    dense = space.candidate(space.network.dense, space.in_precision(space.neutral, space.precisions[0]))
    found = zeros.next_candidate(view, target, dense, plain_front(view, target))
    if found is None:
        return None
    name, candidate = found
    return Seed(f"{name}~", space.project(space.row_of(candidate), models, candidate.precision), candidate)


def _named(space: SearchSpace, name: str, precision: str) -> str:
    return name if precision == space.precisions[0] else f"{name}-{precision}"


def _step(view: View, target: int, link: Trial | None) -> float:
    """Return how much of a link's latency the next one shall leave, by what was lost so far."""
    share = (_lost(view, target, link) if link is not None else 0.0) / _limit(view)
    return next(step for most, step in STEPS if share <= most)


def _lost(view: View, target: int, link: Trial) -> float:
    """Return the accuracy a link lost: nothing as long as it is built, all where it could not be."""
    built = view.built(link)
    if built is None:
        return math.inf if link.state.is_terminal else 0.0
    return view.dense_accuracy(target) - built.accuracy.search


def _limit(view: View) -> float:
    return max(view.spec.objective.max_drop, LEAST_LIMIT)
