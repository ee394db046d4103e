"""What narrowing a group costs in accuracy, as far as is known: its probes at first, then what trials came to.

Probes are taken before any recovery and one group at a time, so they rank groups and do not add up to anything. What a trial
lost after its recovery is laid at the door of the groups it narrowed: a group whose narrowing went with more loss than its
probes say gets a factor above one, one that cost nothing a factor below, and its range moves with the factor.

Source: ridge regression of losses on probed curves, drawn towards "the probes are right up to a common scale".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from domain.candidate import BlockInfo, GroupInfo
from search.network import Floats, Ints, Network

MAX_SPARSITY = 0.94
# A group that alone costs more accuracy than this, before any recovery, is not pruned further than where it does so.
# Loose on purpose: a ResNet-8 that stood at 0.41 to 0.67 after a uniform cut by half was back at 0.97 after one epoch.
TOLERANCE = 0.5
# However bad a group looks before recovery, this much of it may always be tried.
MIN_CEILING = 0.5
# Accuracy that halving a group of average work is taken to cost where probes say nothing; a quarter costs three times that, an
# eighth seven times: a bottleneck is worse than two mild cuts. In proportion to the work a group takes part in, so that without
# probes all groups are narrowed alike.
COST_OF_HALVING = 0.04
DROP_IN_HALVINGS = 4.0  # what leaving a block out is taken to cost, in halvings of a group of its work
LEAST_TRIALS = 5
MOST_TRIALS = 300  # the newest are kept: the cost of a fit must not grow with a search of thousands
LOSS_NOISE = 0.01  # of one accuracy on a few hundred samples
FACTOR_SPREAD = 0.5  # how far factors are expected to stray from one
FACTORS = (0.4, 2.5)


@dataclass(frozen=True)
class LossModel:
    """Accuracy lost by each group and each block alone.

    Args:
        network: Groups with their probes, and blocks.
        factors: A factor a group or block, one where nothing was learnt yet; empty: all one.
        scale: Loss after recovery over loss by the curves, of the trials seen; 1 where none were.
        trials: How many candidates it was fitted on.
    """

    network: Network
    factors: Mapping[str, float]
    scale: float = 1.0
    trials: int = 0

    @cached_property
    def _work(self) -> Floats:
        """Work that each column takes part in, 1 for the average group."""
        work = self.network.work_of_columns()
        return np.asarray(work / (float(work[: len(self.network.groups)].mean()) or 1.0))

    def lost(self, column: int, kept: int, *, trust: float = 0.5) -> float:
        """Return a number that ranks cuts: more is worse.

        Args:
            column: Of the network's rows.
            kept: Channels kept of a group; 1 or 0 for a block.
            trust: 1: by the probes alone; 0: by how much narrower the network gets alone.
        """
        groups, work = self.network.groups, float(self._work[column])
        if column < len(groups):
            group = groups[column]
            return self.factors.get(group.name, 1.0) * curve(group, kept, trust=trust, work=work)
        block = self.network.blocks[column - len(groups)]
        return self.factors.get(block.name, 1.0) * (0.0 if kept else block_curve(block, trust=trust, work=work))

    def ceiling(self, group: GroupInfo) -> float:
        """Return the highest sparsity worth trying on a group."""
        return ceiling(group, tolerance=self._tolerance(group.name))

    def may_drop(self, block: BlockInfo) -> bool:
        """Return whether leaving a block out is worth trying."""
        return block.sensitivity <= self._tolerance(block.name)

    def _tolerance(self, name: str) -> float:
        """Return what a cut may cost in its probe: more where trials lost less than probes say, never less.

        Where they lost more, its price rises. A ceiling that came down as well closed the fast end of the range to a search that
        had found its best networks there.
        """
        return TOLERANCE / min(1.0, self.factors.get(name, 1.0))

    def curves(self, rows: Ints, *, trust: float = 0.5) -> Floats:
        """Return what each column of rows costs by its curve, both ``(n, columns)``; what lies in a dropped block costs nothing."""
        costs = np.empty(rows.shape)
        for column in range(rows.shape[1]):
            kept, place = np.unique(rows[:, column], return_inverse=True)
            costs[:, column] = np.array([self.lost(column, int(one), trust=trust) for one in kept])[place]
        costs[:, : len(self.network.groups)][self.network.are_gone(rows)] = 0.0
        return costs

    def predict(self, row: Ints) -> float:
        """Return the accuracy that a candidate is expected to lose after recovery."""
        return self.scale * float(self.curves(row[None]).sum())


def fit(network: Network, built: Sequence[tuple[Ints, float]]) -> LossModel:
    """Fit (row, accuracy lost after recovery) pairs; below ``LEAST_TRIALS`` of them every factor is one."""
    unknown = LossModel(network, {}, trials=len(built))
    if len(built) < LEAST_TRIALS:
        return unknown
    known = built[-MOST_TRIALS:]
    curves = unknown.curves(np.array([row for row, _ in known]))
    losses = np.maximum(0.0, np.array([loss for _, loss in known]))
    totals = curves.sum(axis=1)
    scale = float(totals @ losses / max(float(totals @ totals), 1e-12))
    if scale <= 0:
        return unknown
    x = scale * curves
    ridge = (LOSS_NOISE / FACTOR_SPREAD) ** 2 * np.eye(x.shape[1])
    shift = np.linalg.solve(x.T @ x + ridge, x.T @ (losses - x.sum(axis=1)))
    factors = np.clip(1.0 + shift, *FACTORS)
    names = (*network.names, *(block.name for block in network.blocks))
    named = {name: float(round(factor, 4)) for name, factor in zip(names, factors, strict=True)}
    return LossModel(network, named, scale, len(built))


def curve(group: GroupInfo, width: int, *, trust: float = 0.5, work: float = 1.0) -> float:
    """Return what a group's cut costs by its probes and by how much narrower it gets, weighed by ``trust``."""
    if width >= group.channels:
        return 0.0
    by_width = COST_OF_HALVING * work * (group.channels / width - 1)
    if not group.sensitivity:
        return by_width
    return 2 * (trust * probed(group, 1 - width / group.channels) + (1 - trust) * by_width)


def block_curve(block: BlockInfo, *, trust: float = 0.5, work: float = 1.0) -> float:
    """Return what leaving a block out costs by its probe and by its work, weighed by ``trust``."""
    return 2 * (trust * max(0.0, block.sensitivity) + (1 - trust) * COST_OF_HALVING * work * DROP_IN_HALVINGS)


def probes(group: GroupInfo) -> list[tuple[float, float]]:
    """Return a group's (sparsity, accuracy lost) pairs, mildest first; a gain counts as nothing lost."""
    return sorted((float(sparsity), max(0.0, loss)) for sparsity, loss in group.sensitivity.items())


def probed(group: GroupInfo, sparsity: float) -> float:
    """Return the accuracy a group loses alone at a sparsity, linear between its probes and on beyond the last."""
    points = [(0.0, 0.0), *probes(group)]
    for (left, lost_left), (right, lost_right) in pairwise(points):
        if sparsity <= right or right == points[-1][0]:
            slope = max(0.0, lost_right - lost_left) / (right - left) if right > left else 0.0
            return lost_left + slope * (sparsity - left)
    return points[-1][1]


def ceiling(group: GroupInfo, *, tolerance: float = TOLERANCE) -> float:
    """Return the sparsity at which a group's probes lose ``tolerance``, linear between probes.

    ``MAX_SPARSITY`` where none loses so much, and never less than ``MIN_CEILING``.
    """
    previous_sparsity, previous_loss = 0.0, 0.0
    for sparsity, loss in probes(group):
        if loss > tolerance:
            share = (tolerance - previous_loss) / (loss - previous_loss) if loss > previous_loss else 0.0
            crossing = previous_sparsity + min(1.0, max(0.0, share)) * (sparsity - previous_sparsity)
            return min(MAX_SPARSITY, max(MIN_CEILING, crossing))
        previous_sparsity, previous_loss = sparsity, loss
    return MAX_SPARSITY
