"""Starting points of a search beside its chain, and what a starting point is."""

from __future__ import annotations

from dataclasses import dataclass

from domain.candidate import Candidate
from domain.measurement import Measured
from search import zeros
from search.finals import plain_front, search_front
from search.models import Models
from search.space import SearchSpace
from search.view import View

SHARED = "from-"
INSIDE = 0.98  # of a limit: aimed at the limit itself, half of the candidates would miss it


@dataclass(frozen=True)
class Seed:
    """A starting point: the parameters told to the sampler and the candidate really built.

    The name ends in ``~`` where the space cannot express the candidate and the parameters are the nearest it has.
    """

    name: str
    params: dict[str, float]
    candidate: Candidate


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
            name = named(space, f"aimed-{scale / ratio:.3g}x", precision)
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
    return seed_of(space, models, named(space, f"uniform-{sparsity:g}", precision), candidate)


def seed_of(space: SearchSpace, models: Models, name: str, candidate: Candidate) -> Seed:
    """Return a seed of an explicit candidate, with parameters projected onto the space."""
    params = space.project(space.row_of(candidate), models, candidate.precision)
    is_exact = space.decode(params, models).identity == candidate.identity
    return Seed(name if is_exact else f"{name}~", params, candidate)


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


def named(space: SearchSpace, name: str, precision: str) -> str:
    return name if precision == space.precisions[0] else f"{name}-{precision}"
