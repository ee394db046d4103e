"""Widths for a latency: the most accuracy kept within a budget, one narrowing after the other, the cheapest first.

The price of a narrowing is the accuracy it costs over the predicted latency it saves, both from where the network stands: what
a group saves depends on how narrow its neighbours are. Steps that save nothing on the target are skipped over.

Source: the greedy width search of NetAdapt, arXiv:1804.03230, on a fitted latency model instead of per-layer tables, and on
probed losses corrected by trials instead of retrained ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from domain.candidate import GroupInfo
from search.latency_model import ALIGNMENTS, LatencyModel
from search.loss_model import LossModel
from search.network import Floats, Ints
from search.widths import widths_of

LOOK_AHEAD = 3  # widths: the first may save nothing where the target packs channels
MOST_OPTIONS = 14  # widths a group: a wide group is searched in coarser steps
GROUPS_A_MOVE = 16  # one narrowing a step for each so many groups: a large network in as many steps as a small one


Cut = tuple[int, int, float]  # column, what is kept, accuracy it costs


@dataclass(frozen=True)
class Options:
    """What each column may be cut to, widest first (a block: there or gone), and what each cut costs in accuracy."""

    kept: tuple[Ints, ...]
    losses: tuple[Floats, ...]


def options_of(loss: LossModel, *, trust: float, multipliers: Mapping[str, float]) -> Options:
    """Return every cut there is, down to the ceilings, with losses over multipliers: above one, prune it more."""
    kept = _kept(loss)
    names = (*loss.network.names, *(block.name for block in loss.network.blocks))
    losses = [
        np.array([loss.lost(column, one, trust=trust) / multipliers.get(name, 1.0) for one in allowed])
        for column, (name, allowed) in enumerate(zip(names, kept, strict=True))
    ]
    return Options(tuple(np.array(allowed, dtype=np.int64) for allowed in kept), tuple(losses))


def narrowest_of(loss: LossModel) -> Ints:
    """Return the row of everything cut as far as it may be, and every block dropped that may be."""
    return np.array([kept[-1] for kept in _kept(loss)])


def fastest_of(latency: LatencyModel, loss: LossModel) -> float:
    """Return the least latency ratio that networks near the narrowest are predicted to have.

    Four channels that fill no pack may take longer than sixteen that do: the narrowest MobileNet was predicted to be 8.4 times as
    fast where another was measured at 10.9. So each column is given what is fastest while the others are narrowest.
    """
    row = narrowest_of(loss)
    tried = [
        (column, width)
        for column, allowed in enumerate(_kept(loss))
        for width in sorted({_narrowest(allowed, step) for step in ALIGNMENTS})
    ]
    rows = np.repeat(row[None], len(tried), axis=0)
    for index, (column, width) in enumerate(tried):
        rows[index, column] = width
    ratios = latency.predict_rows(rows)
    for index in np.argsort(-ratios, kind="stable"):  # so that of a column the fastest comes last
        column, width = tried[int(index)]
        row[column] = width
    return float(min(ratios.min(), latency.predict(row)))


def _narrowest(allowed: Sequence[int], step: int) -> int:
    """Return the narrowest width that is a multiple of a step; the narrowest of all where none is, or where it is nothing."""
    return min((width for width in allowed if width % step == 0), default=allowed[-1])


def _kept(loss: LossModel) -> list[list[int]]:
    """Return what each column may be cut to, widest first."""
    kept = [
        allowed_widths(group, loss.ceiling(group)) if loss.network.has_channels else [group.channels]
        for group in loss.network.groups
    ]
    return [*kept, *([1, 0] if loss.may_drop(block) else [1] for block in loss.network.blocks)]


def allowed_widths(group: GroupInfo, ceiling: float) -> list[int]:
    """Return a group's widths, widest first: all of its channels, then the steps down to its ceiling, thinned."""
    least = group.channels * (1.0 - ceiling) - 1e-9
    known = [width for width in widths_of(group) if width >= least]
    if not known or known[-1] != group.channels:
        known.append(group.channels)
    while (
        len(known) > MOST_OPTIONS
    ):  # drop the step that matters least: the one closest to its wider neighbour, in ratio
        ratios = [known[index + 1] / known[index] for index in range(1, len(known) - 1)]
        known.pop(1 + int(np.argmin(ratios)))
    return known[::-1]


def narrow(
    latency: LatencyModel, options: Options, start: Ints, *, to_ratio: float, least_ratio: float = 0.0
) -> list[Ints]:
    """Return the rows passed on the way from ``start`` to a latency ratio by the model's formula; none if it is there.

    Args:
        latency: Of the target and precision.
        options: What each group may be cut to.
        start: The row to begin with.
        to_ratio: Where to stop; the path ends earlier where no narrowing saves anything any more.
        least_ratio: A single narrowing that leaves less than this is taken only where no other saves anything: dropping the last
            of a few blocks would go twice as far as was asked.
    """
    row = start.copy()
    path: list[Ints] = []
    at = float(latency.formula(row[None])[0])
    moves = 1 + len(row) // GROUPS_A_MOVE
    known: dict[tuple[int, int], list[Cut]] = {}  # most columns stand still from one step to the next
    while at > to_ratio:
        cuts = [
            cut
            for column, kept in enumerate(row.tolist())
            for cut in known.get((column, kept)) or known.setdefault((column, kept), _cuts(options, column, kept))
        ]
        if not cuts:
            break
        tried = np.repeat(row[None], len(cuts), axis=0)
        for index, (column, kept, _) in enumerate(cuts):
            tried[index, column] = kept
        saved = at - latency.formula(tried)
        prices = np.where(saved > 1e-9, np.array([lost for _, _, lost in cuts]) / np.maximum(saved, 1e-9), np.inf)
        in_reach = np.where(at - saved < least_ratio, np.inf, prices)
        prices = in_reach if np.isfinite(in_reach).any() else prices
        taken: set[int] = set()
        for index in np.argsort(prices, kind="stable"):
            column, kept, _ = cuts[int(index)]
            if not np.isfinite(prices[index]) or len(taken) >= moves:
                break
            if column not in taken:
                taken.add(column)
                row[column] = kept
        if not taken:
            break
        at = float(latency.formula(row[None])[0])
        path.append(row.copy())
    return path


def reaching(latency: LatencyModel, path: Sequence[Ints], ratio: float) -> Ints | None:
    """Return the first row of a path whose predicted latency, correction and all, is at most a ratio; else the last."""
    if not path:
        return None
    predicted = latency.predict_rows(np.array(path))
    fitting = np.flatnonzero(predicted <= ratio)
    return path[int(fitting[0])] if len(fitting) else path[-1]


def _cuts(options: Options, column: int, now: int) -> list[Cut]:
    """Return every cut to look at of a column that keeps ``now``."""
    kept, losses = options.kept[column], options.losses[column]
    lost = float(np.interp(now, kept[::-1], losses[::-1]))
    below = np.flatnonzero(kept < now)[:LOOK_AHEAD]
    return [(column, int(kept[index]), max(float(losses[index]) - lost, 1e-7)) for index in below]
