"""Latency on paper: a constant and multiply-accumulates, with the channels of every layer rounded up to a step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from pruning.cost import layer_costs
from pruning.dense import Dense
from pruning.groups import Role


class RoundedMacs:
    """Multiply-accumulates of any widths of a model, without building it.

    Args:
        dense: The model, with its groups.
        step: Channels are rounded up to a multiple of this.
    """

    def __init__(self, dense: Dense, step: int = 8) -> None:
        self._step = step
        self._layers = []
        groups = dense.groups().groups
        self.channels = {group.name: group.channels for group in groups}
        for name, cost in layer_costs(dense.model, dense.example).items():
            shape = dense.model.get_submodule(name).weight.shape
            sides: list[tuple[int, dict[str, float]]] = []
            for side, roles in enumerate(((Role.PRODUCES, Role.CARRIES), (Role.CONSUMES,))):
                owners = {
                    group.name: len(member.index) / group.channels
                    for group in groups
                    for member in group.of_role(*roles)
                    if member.name == name
                }
                sides.append((shape[side], owners))
            self._layers.append((cost.macs, sides))

    def __call__(self, widths: Mapping[str, int]) -> float:
        total = 0.0
        for macs, sides in self._layers:
            share = 1.0
            for full, owners in sides:
                lost = sum((self.channels[g] - widths.get(g, self.channels[g])) * each for g, each in owners.items())
                share *= math.ceil((full - lost) / self._step) * self._step / full if owners else 1.0
            total += macs * share
        return total


def fit(macs: Sequence[float], ratios: Sequence[float]) -> tuple[float, float]:
    """Return (constant, ratio a multiply-accumulate) that fit measured latency ratios best in relative terms, none below 0."""
    x, y = np.asarray(macs), np.asarray(ratios)
    columns = np.stack((1 / y, x / y), axis=1)
    constant, slope = np.linalg.lstsq(columns, np.ones(len(y)), rcond=None)[0]
    if constant < 0:
        constant, slope = 0.0, float(np.linalg.lstsq(columns[:, 1:], np.ones(len(y)), rcond=None)[0][0])
    return float(constant), max(float(slope), 1e-12)
