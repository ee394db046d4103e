"""Starting candidates: what any engineer would try first, so that the sampler begins from sense and not from noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from domain.candidate import Candidate, GroupInfo
from search.space import MAX_SPARSITY, SearchSpace, macs_fraction, probes, widths_of

UNIFORM = (0.5, 0.25, 0.75, 0.625, 0.375)
MACS_BUDGETS = (0.3, 0.5, 0.15, 0.07, 0.7)


@dataclass(frozen=True)
class Seed:
    """A starting point: the parameters told to the sampler and the candidate really built.

    The name ends in ``~`` where the space cannot express the candidate and the parameters are the nearest it has.
    """

    name: str
    params: dict[str, float]
    candidate: Candidate


def starting_seeds(space: SearchSpace, *, limit: int) -> tuple[Seed, ...]:
    """Return at most ``limit`` seeds of distinct architectures, none dense, the most telling first.

    Uniform sparsities and points of the greedy chain alternate, so that a short budget tries both kinds; each is asked in
    every precision of the space before the next, so that precisions are compared on equal widths.
    """
    chain = tuple(greedy_chain(space.groups))
    seeds: list[Seed] = []
    for uniform, budget in zip(UNIFORM, MACS_BUDGETS, strict=True):
        for precision in space.precisions:
            params = space.in_precision(space.uniform(uniform), precision)
            seeds.append(Seed(_named(space, f"uniform-{uniform:g}", precision), params, space.decode(params)))
        widths = next((widths for widths in chain if macs_fraction(space.groups, widths) <= budget), None)
        for precision in space.precisions if widths is not None else ():
            seeds.append(explicit_seed(space, f"greedy-macs-{budget:g}", widths or {}, precision))
    seen: set[str] = set()
    kept: list[Seed] = []
    for seed in seeds:
        if seed.candidate.architecture not in seen and not seed.candidate.is_dense(list(space.groups)):
            seen.add(seed.candidate.architecture)
            kept.append(seed)
    return tuple(kept[:limit])


def explicit_seed(space: SearchSpace, name: str, widths: Mapping[str, int], precision: str | None = None) -> Seed:
    """Return a seed of given widths, with the parameters projected onto the space; by default in its first precision."""
    precision = precision or space.precisions[0]
    name = _named(space, name, precision)
    params = space.in_precision(space.project(widths), precision)
    decoded = space.decode(params)
    if decoded.widths == dict(widths):
        return Seed(name, params, decoded)
    return Seed(f"{name}~", params, space.with_widths(widths).model_copy(update={"precision": precision}))


def _named(space: SearchSpace, name: str, precision: str) -> str:
    return name if precision == space.precisions[0] else f"{name}-{precision}"


def greedy_chain(groups: Sequence[GroupInfo]) -> Iterator[dict[str, int]]:
    """Yield ever narrower widths, each one step of one group below the last: least accuracy lost per MAC saved.

    Accuracy lost is read off each group's sensitivity probes and taken to add up, which is wrong in size and good
    enough in order. Groups without probes lose in proportion to the square of their sparsity.

    Source: the greedy width search of NetAdapt, arXiv:1804.03230, on probed instead of retrained losses.
    """
    widths = {group.name: group.channels for group in groups}
    # Work as in ``macs_fraction``, kept a stage, so that the price of one step costs one multiplication.
    weight = {stage: sum(g.macs for g in groups if g.stage == stage) for stage in {g.stage for g in groups}}
    outputs = {stage: float(macs) for stage, macs in weight.items()}
    steps = {group.name: _step_down(group, group.channels) for group in groups}
    while True:
        best: tuple[float, GroupInfo, _Step] | None = None
        for group in groups:
            step = steps[group.name]
            if step is None or weight[group.stage] == 0:
                continue
            kept = outputs[group.stage]
            saved = (kept * kept - (kept - step.macs) ** 2) / weight[group.stage]
            if saved <= 0:
                continue
            price = max(step.lost, 1e-6) / saved
            if best is None or price < best[0]:
                best = (price, group, step)
        if best is None:
            return
        _, group, step = best
        widths[group.name] = step.width
        outputs[group.stage] -= step.macs
        steps[group.name] = _step_down(group, step.width)
        yield dict(widths)


@dataclass(frozen=True)
class _Step:
    """The next narrower width of a group: accuracy it costs and MACs of its own it saves."""

    width: int
    lost: float
    macs: float


def _step_down(group: GroupInfo, width: int) -> _Step | None:
    narrower = max((one for one in widths_of(group.channels) if one < width), default=0)
    if narrower == 0 or narrower < group.channels * (1 - MAX_SPARSITY):
        return None
    lost = loss_at(group, 1 - narrower / group.channels) - loss_at(group, 1 - width / group.channels)
    return _Step(narrower, lost, group.macs * (width - narrower) / group.channels)


def loss_at(group: GroupInfo, sparsity: float) -> float:
    """Return the accuracy a group loses alone at a sparsity, linear between its probes and on beyond the last."""
    measured = probes(group)
    if not measured:
        return 0.1 * sparsity * sparsity
    points = [(0.0, 0.0), *measured]
    for (left, lost_left), (right, lost_right) in pairwise(points):
        if sparsity <= right or right == points[-1][0]:
            slope = max(0.0, lost_right - lost_left) / (right - left) if right > left else 0.0
            return lost_left + slope * (sparsity - left)
    return points[-1][1]
