"""Parameters <-> candidate: a few numbers that a sampler handles well, decoded to a width for every group.

``speedup`` says how fast the network should be on the target; the knapsack finds the widths that get there at the least accuracy
lost, as far as the target's latency model and the loss model know. The other parameters bend the knapsack's prices: a multiplier a
stage of the network (a group, where there are few), one for channels that skip connections couple, and ``trust``, which moves the
price from "all groups alike" to "as the probes say". What is built is the widths, never the parameters.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from optuna.distributions import BaseDistribution, FloatDistribution

from domain.candidate import Candidate, ImportanceMix
from domain.job import RecoverySpec
from search import latency_model
from search.knapsack import fastest_of, narrow, options_of, reaching
from search.loss_model import LossModel
from search.models import Models
from search.network import Ints, Network
from search.recipe import NEUTRAL_RATE, short_plan
from search.widths import kept_width

FEW_GROUPS = 6
LEAST_SPEEDUP = 1.1
LEAST_RANGE = 1.25  # of the speed-ups to draw from; wider, half of what is drawn is slower than what lost nothing
BEYOND_USUAL = 10.0
BEND = 3.0  # most a price is multiplied or divided by
LEAST_RATE, MOST_RATE = 0.01, 0.03  # of a wide network: at 0.04 a ViT's came to less, at 0.008 narrow ones' did
FURTHEST = 0.85  # of the latency asked for: what one narrowing may leave while others go less far


class SearchSpace:
    """The parameters of one target's study and what they decode to.

    Args:
        network: Groups and layers, as the prepare build found them.
        recovery: What the job asks of recovery. The search chooses the learning rate within it.
        precisions: Precisions of the artifact to choose from, the target's first one first.
        is_slow_to_recover: Whether the model is one that short recoveries bring back slowly.
    """

    def __init__(
        self,
        network: Network,
        recovery: RecoverySpec,
        *,
        precisions: Sequence[str] = ("fp32",),
        is_slow_to_recover: bool = False,
    ) -> None:
        self.network = network
        self.groups = network.groups
        self.recovery = recovery
        self._is_slow = is_slow_to_recover
        self.precisions = tuple(precisions)
        self.is_per_group = len(self.groups) <= FEW_GROUPS
        self.stages = tuple(sorted({group.stage for group in self.groups}))
        self.has_kinds = len({group.is_residual for group in self.groups}) == 2
        self.distributions: dict[str, BaseDistribution] = self._distributions()

    def _distributions(self) -> dict[str, BaseDistribution]:
        bend = FloatDistribution(low=1 / BEND, high=BEND, log=True)
        ranges: dict[str, BaseDistribution] = {
            "speedup": FloatDistribution(low=LEAST_SPEEDUP, high=self._most_speedup(), log=True)
        }
        if self.is_per_group:
            # One of several multipliers would be redundant, but which one must stand for the rest is not known.
            ranges |= {f"m_{index}": bend for index in range(len(self.groups))} if len(self.groups) > 1 else {}
        else:
            ranges |= {f"m_stage_{stage}": bend for stage in self.stages} if len(self.stages) > 1 else {}
            if self.has_kinds:
                ranges["m_outer"] = bend
        if any(group.sensitivity for group in self.groups):
            ranges["trust"] = FloatDistribution(low=0.0, high=1.0)
        if len(self.precisions) > 1:
            # An index into the precisions: from many bits to few where they are named so, hence ordered.
            ranges["precision"] = FloatDistribution(low=0.0, high=len(self.precisions) - 1.0, step=1.0)
        # Two numbers span every mix of three criteria: how much data decides, and what of it is activation.
        ranges["mix_data"] = FloatDistribution(low=0.0, high=1.0, step=0.05)
        ranges["mix_activation"] = FloatDistribution(low=0.0, high=1.0, step=0.05)
        if self.recovery.epochs > 0:
            ranges["learning_rate"] = FloatDistribution(low=LEAST_RATE, high=MOST_RATE, log=True)
        return ranges

    def _most_speedup(self) -> float:
        """Return the end of the range: ten times what the usual target gives with all that may go gone.

        The usual target is a guess: 7-fold where 67-fold was reached. ``reach`` tells more once something was measured.
        """
        return max(2.0, BEYOND_USUAL / fastest_of(latency_model.fit(self.network, []), LossModel(self.network, {})))

    def reach(self, models: Models) -> float:
        """Return the largest speed-up that any network of the space is predicted to have, within its precision."""
        return max(latency.scale / fastest_of(latency, models.loss) for latency in models.latency.values())

    def within(self, low: float, high: float) -> dict[str, BaseDistribution]:
        """Return the distributions for networks so many times as fast, or where that is hardly a range for a little slower ones."""
        whole = self.distributions["speedup"]
        assert isinstance(whole, FloatDistribution)
        high = min(whole.high, max(high, whole.low * LEAST_RANGE))
        low = min(max(low, whole.low), high / LEAST_RANGE)
        return {**self.distributions, "speedup": FloatDistribution(_rounded(low), _rounded(high), log=True)}

    @property
    def neutral(self) -> dict[str, float]:
        """Parameters that bend nothing, at the least speed-up, with the default importance and learning rate."""
        params: dict[str, float] = {}
        for name in self.distributions:
            if name.startswith("m_"):
                params[name] = 1.0
            else:
                params[name] = {
                    "speedup": LEAST_SPEEDUP,
                    "trust": 0.5,
                    "mix_data": 0.5,
                    "learning_rate": NEUTRAL_RATE,
                }.get(name, 0.0)
        return params

    def in_precision(self, params: Mapping[str, float], precision: str) -> dict[str, float]:
        """Return parameters with another precision of the artifact."""
        if len(self.precisions) == 1:
            return dict(params)
        return {**params, "precision": float(self.precisions.index(precision))}

    def precision_of(self, params: Mapping[str, float]) -> str:
        return self.precisions[round(params.get("precision", 0.0))]

    def decode(
        self, params: Mapping[str, float], models: Models, *, start: Ints | None = None, is_close: bool = False
    ) -> Candidate:
        """Return the candidate that parameters stand for, as the models know the target now.

        The faster a network is asked for, the narrower everywhere.

        Args:
            params: One value a parameter.
            models: The target's predictors.
            start: The row to narrow from; none: the dense model's.
            is_close: Come as near to the speed-up as can be, even if that means other narrowings than on the way to a faster one.
        """
        precision = self.precision_of(params)
        latency = models.latency[precision]
        begin = self.network.dense if start is None else start
        options = options_of(models.loss, trust=params.get("trust", 0.5), multipliers=self._multipliers(params))
        # The formula is asked for a little more than is wanted: what it misses, the correction then finds on the way.
        wanted = latency.scale / params["speedup"]
        path = narrow(
            latency, options, begin, to_ratio=0.7 * wanted, least_ratio=FURTHEST * wanted if is_close else 0.0
        )
        row = reaching(latency, path, wanted)
        return self.candidate(begin if row is None else row, params)

    def candidate(self, row: Ints, params: Mapping[str, float]) -> Candidate:
        """Return the candidate of a row with the mix, the recovery and the precision of parameters."""
        share = float(self.network.macs_share(row[None])[0])
        rate = params.get("learning_rate", NEUTRAL_RATE)
        widths = self.network.widths_of(row)
        return Candidate(
            sparsity={group.name: round(1.0 - widths[group.name] / group.channels, 6) for group in self.groups},
            widths=widths,
            dropped=self.network.dropped_of(row),
            precision=self.precision_of(params),
            importance=_mix(params["mix_data"], params["mix_activation"]),
            recovery=short_plan(self.recovery, share, rate, is_slow=self._is_slow),
        )

    def row_of(self, candidate: Candidate) -> Ints:
        return self.network.row(candidate.widths, candidate.dropped)

    def uniform(self, sparsity: float) -> Ints:
        """Return the row of the same sparsity in every group."""
        return self.network.row({group.name: kept_width(group, sparsity) for group in self.groups})

    def project(self, row: Ints, models: Models, precision: str) -> dict[str, float]:
        """Return the neutral parameters of the predicted latency of a row; compare ``decode`` to see whether they are exact."""
        params = self.in_precision(self.neutral, precision)
        return {**params, "speedup": self._clipped("speedup", models.latency[precision].speedup(row))}

    def perturb(self, params: Mapping[str, float], *, dice: random.Random, scale: float) -> dict[str, float]:
        """Return parameters near others: about half of those that shape the network moved by ``scale`` of their range."""
        moved = {name: float(params[name]) for name in self.distributions}
        for name, distribution in self.distributions.items():
            if name.startswith("mix_") or name == "learning_rate":
                continue
            if name == "precision":
                # What is good in one precision is worth a try in another.
                if dice.random() < 0.25:
                    moved[name] = float(dice.randrange(len(self.precisions)))
                continue
            if dice.random() < 0.5:
                continue
            if not isinstance(distribution, FloatDistribution):
                raise TypeError(f"{name} is not a float")
            low, high = distribution.low, distribution.high
            if distribution.log:
                value = math.exp(math.log(moved[name]) + dice.gauss(0.0, scale) * math.log(high / low))
            else:
                value = moved[name] + dice.gauss(0.0, scale) * (high - low)
            moved[name] = min(high, max(low, value))
        return moved

    def _multipliers(self, params: Mapping[str, float]) -> dict[str, float]:
        if self.is_per_group:
            return {group.name: params.get(f"m_{index}", 1.0) for index, group in enumerate(self.groups)}
        return {
            group.name: params.get(f"m_stage_{group.stage}", 1.0)
            * (params.get("m_outer", 1.0) if group.is_residual else 1.0)
            for group in self.groups
        }

    def _clipped(self, name: str, value: float) -> float:
        distribution = self.distributions[name]
        assert isinstance(distribution, FloatDistribution)
        return min(distribution.high, max(distribution.low, value))


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _mix(data: float, activation: float) -> ImportanceMix:
    return ImportanceMix(
        l2=round(1.0 - data, 4), taylor=round(data * (1.0 - activation), 4), activation=round(data * activation, 4)
    )
