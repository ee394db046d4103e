"""Parameters <-> candidate: a few numbers that a sampler handles well, decoded to a width for every group.

A model with few groups gets one sparsity a group. A larger one gets a global sparsity, a multiplier a stage, one for
channels inside a block and one for those a skip connection couples, and ``temp``, which moves sparsity from groups that
hurt to groups that do not. Decoding is pure and many-to-one: what is built is the widths, never the parameters.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from optuna.distributions import BaseDistribution, FloatDistribution

from domain.candidate import Candidate, GroupInfo, ImportanceMix, RecoveryPlan
from domain.job import RecoverySpec

FEW_GROUPS = 6
MAX_SPARSITY = 0.9
# A group that alone costs more accuracy than this, before any recovery, is not pruned further than where it does so.
# Loose on purpose: a ResNet-8 that stood at 0.41 to 0.67 after a uniform cut by half was back at 0.97 after one epoch.
SENSITIVITY_TOLERANCE = 0.5
# However bad a group looks before recovery, this much of it may always be tried.
MIN_CEILING = 0.5


def widths_of(channels: int) -> list[int]:
    """Return the widths a group of this many channels may be given, narrowest first, its own last.

    ONNX Runtime's CPU kernels pack channels in blocks of 16 (AVX-512) or 8 (AVX2, NEON). Measured on a ResNet of widths
    32/64/128: cut to 24/48/96 it kept 56 % of the MACs and ran 1.3 times faster; cut to 16/32/64 it kept 25 % and ran
    3.5 times faster. So: 8, then multiples of 16. Groups of 16 channels or fewer would be left one width by that, so
    they step by 4.

    Source: our own measurement; VainF/Torch-Pruning issue 38 (odd widths ran three times slower than dense).
    """
    if channels <= 16:
        return [*range(4, channels, 4), channels]
    return [8, *range(16, channels, 16), channels]


def kept_width(channels: int, sparsity: float) -> int:
    """Return the channels kept: the allowed width nearest to ``channels * (1 - sparsity)``, or all of them.

    Of two equally near widths the wider, which is the safer.
    """
    wanted = channels * (1.0 - sparsity)
    return min(widths_of(channels), key=lambda width: (abs(width - wanted), -width))


def ceiling(group: GroupInfo, *, tolerance: float = SENSITIVITY_TOLERANCE) -> float:
    """Return the highest sparsity worth trying on a group, from what its sensitivity probes cost in accuracy.

    Linear between the last probe within the tolerance and the first beyond it; ``MAX_SPARSITY`` where none is beyond.
    """
    previous_sparsity, previous_loss = 0.0, 0.0
    for sparsity, loss in probes(group):
        if loss > tolerance:
            share = (tolerance - previous_loss) / (loss - previous_loss) if loss > previous_loss else 0.0
            crossing = previous_sparsity + min(1.0, max(0.0, share)) * (sparsity - previous_sparsity)
            return min(MAX_SPARSITY, max(MIN_CEILING, crossing))
        previous_sparsity, previous_loss = sparsity, loss
    return MAX_SPARSITY


def probes(group: GroupInfo) -> list[tuple[float, float]]:
    """Return a group's (sparsity, accuracy lost) pairs, mildest first; a gain counts as nothing lost."""
    return sorted((float(sparsity), max(0.0, loss)) for sparsity, loss in group.sensitivity.items())


def robustness(groups: Sequence[GroupInfo]) -> dict[str, float]:
    """Return a factor on sparsity a group by its rank in sensitivity: 0.25 for the most sensitive, 1.75 for the least.

    Groups that lose the same get the same factor; without probes every factor is 1.
    """
    mean_loss = {}
    for group in groups:
        measured = probes(group)
        if not measured:
            return dict.fromkeys((other.name for other in groups), 1.0)
        mean_loss[group.name] = sum(loss for _, loss in measured) / len(measured)
    losses = list(mean_loss.values())
    if len(losses) < 2:
        return dict.fromkeys(mean_loss, 1.0)
    factors = {}
    for name, loss in mean_loss.items():
        worse = sum(other > loss for other in losses)
        equal = sum(other == loss for other in losses) - 1
        factors[name] = 0.25 + 1.5 * (worse + equal / 2) / (len(losses) - 1)
    return factors


class SearchSpace:
    """The parameters of one target's study and what they decode to.

    Args:
        groups: The groups the prepare build found; at least one.
        recovery: What the job asks of recovery. The search chooses the learning rate within it.
        precisions: Precisions of the artifact to choose from, the target's first one first.
    """

    def __init__(
        self, groups: Sequence[GroupInfo], recovery: RecoverySpec, *, precisions: Sequence[str] = ("fp32",)
    ) -> None:
        self.groups = tuple(groups)
        self.recovery = recovery
        self.precisions = tuple(precisions)
        self.is_per_group = len(self.groups) <= FEW_GROUPS
        self._ceilings = {group.name: ceiling(group) for group in self.groups}
        self._robustness = robustness(self.groups)
        self.stages = tuple(sorted({group.stage for group in self.groups}))
        self.has_kinds = len({group.is_residual for group in self.groups}) == 2
        self.distributions: dict[str, BaseDistribution] = self._distributions()

    def _distributions(self) -> dict[str, BaseDistribution]:
        ranges: dict[str, BaseDistribution] = {}
        if self.is_per_group:
            for index, group in enumerate(self.groups):
                ranges[f"s_{index}"] = FloatDistribution(low=0.0, high=self._ceilings[group.name])
        else:
            ranges["s_global"] = FloatDistribution(low=0.0, high=MAX_SPARSITY)
            if len(self.stages) > 1:
                for stage in self.stages:
                    ranges[f"m_stage_{stage}"] = FloatDistribution(low=0.25, high=2.0, log=True)
            if self.has_kinds:
                ranges["m_inner"] = FloatDistribution(low=0.5, high=2.0, log=True)
                ranges["m_outer"] = FloatDistribution(low=0.5, high=2.0, log=True)
            if any(factor != 1.0 for factor in self._robustness.values()):
                ranges["temp"] = FloatDistribution(low=0.0, high=1.0)
        if len(self.precisions) > 1:
            # An index into the precisions: from many bits to few where they are named so, hence ordered.
            ranges["precision"] = FloatDistribution(low=0.0, high=len(self.precisions) - 1.0, step=1.0)
        # Two numbers span every mix of three criteria: how much data decides, and what of it is activation.
        ranges["mix_data"] = FloatDistribution(low=0.0, high=1.0, step=0.05)
        ranges["mix_activation"] = FloatDistribution(low=0.0, high=1.0, step=0.05)
        if self.recovery.epochs > 0:
            ranges["learning_rate"] = FloatDistribution(low=0.004, high=0.1, log=True)
        return ranges

    @property
    def neutral(self) -> dict[str, float]:
        """The parameters of the dense model, with the default importance and learning rate."""
        params: dict[str, float] = {}
        for name in self.distributions:
            if name.startswith("m_"):
                params[name] = 1.0
            elif name == "mix_data":
                params[name] = 0.5
            elif name == "learning_rate":
                params[name] = 0.02
            else:
                params[name] = 0.0
        return params

    def in_precision(self, params: Mapping[str, float], precision: str) -> dict[str, float]:
        """Return parameters with another precision of the artifact."""
        if len(self.precisions) == 1:
            return dict(params)
        return {**params, "precision": float(self.precisions.index(precision))}

    def uniform(self, sparsity: float) -> dict[str, float]:
        """Return the parameters that ask the same sparsity of every group, as far as ceilings allow."""
        params = self.neutral
        if self.is_per_group:
            for index, group in enumerate(self.groups):
                params[f"s_{index}"] = min(sparsity, self._ceilings[group.name])
        else:
            params["s_global"] = min(sparsity, MAX_SPARSITY)
        return params

    def decode(self, params: Mapping[str, float]) -> Candidate:
        """Return the candidate that parameters stand for: sparsity as asked, widths aligned, mix and recovery.

        Pure, and monotone: more ``s_global`` (or more of a group's own sparsity) never keeps more channels.
        """
        sparsity = {group.name: round(self._sparsity(index, params), 6) for index, group in enumerate(self.groups)}
        return Candidate(
            sparsity=sparsity,
            widths={group.name: kept_width(group.channels, sparsity[group.name]) for group in self.groups},
            precision=self.precisions[round(params.get("precision", 0.0))],
            importance=_mix(params["mix_data"], params["mix_activation"]),
            recovery=RecoveryPlan(
                epochs=self.recovery.epochs,
                learning_rate=float(f"{params.get('learning_rate', 0.02):.3g}"),
                distill=self.recovery.distill,
                precision=self.recovery.precision,
            ),
        )

    def _sparsity(self, index: int, params: Mapping[str, float]) -> float:
        group = self.groups[index]
        if self.is_per_group:
            wanted = params[f"s_{index}"]
        else:
            temp = params.get("temp", 0.0)
            wanted = (
                params["s_global"]
                * params.get(f"m_stage_{group.stage}", 1.0)
                * params.get("m_outer" if group.is_residual else "m_inner", 1.0)
                * ((1.0 - temp) + temp * self._robustness[group.name])
            )
        return min(max(0.0, wanted), self._ceilings[group.name])

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

    def with_widths(self, widths: Mapping[str, int]) -> Candidate:
        """Return the explicit candidate of given widths, with the default mix and recovery."""
        sparsity = {group.name: round(1.0 - widths[group.name] / group.channels, 6) for group in self.groups}
        return self.decode(self.neutral).model_copy(update={"sparsity": sparsity, "widths": dict(widths)})

    def project(self, widths: Mapping[str, int]) -> dict[str, float]:
        """Return the parameters nearest to given widths; compare ``decode`` of them to see whether they are exact."""
        params = self.neutral
        wanted = {group.name: 1.0 - widths[group.name] / group.channels for group in self.groups}
        if self.is_per_group:
            for index, group in enumerate(self.groups):
                params[f"s_{index}"] = min(wanted[group.name], self._ceilings[group.name])
            return params
        mean = sum(wanted.values()) / len(wanted)
        params["s_global"] = min(mean, MAX_SPARSITY)
        if mean <= 0:
            return params
        for stage in self.stages if len(self.stages) > 1 else ():
            params[f"m_stage_{stage}"] = _ratio([wanted[g.name] for g in self.groups if g.stage == stage], mean, 0.25)
        if self.has_kinds:
            for name, is_residual in (("m_inner", False), ("m_outer", True)):
                of_kind = [g for g in self.groups if g.is_residual is is_residual]
                expected = sum(mean * params.get(f"m_stage_{g.stage}", 1.0) for g in of_kind) / len(of_kind)
                params[name] = _ratio([wanted[g.name] for g in of_kind], expected, 0.5)
        return params


def _ratio(sparsities: Sequence[float], mean: float, low: float) -> float:
    return min(2.0, max(low, sum(sparsities) / len(sparsities) / mean))


def _mix(data: float, activation: float) -> ImportanceMix:
    return ImportanceMix(
        l2=round(1.0 - data, 4), taylor=round(data * (1.0 - activation), 4), activation=round(data * activation, 4)
    )


def macs_fraction(groups: Sequence[GroupInfo], widths: Mapping[str, int]) -> float:
    """Return the approximate share of the groups' MACs that widths keep, 0..1, known before anything is built.

    A layer's work goes with kept outputs times kept inputs. Which group feeds which is not recorded, so the inputs are
    taken to be narrowed like the mean of the group's stage, weighted by MACs. Real MACs come from the build.
    """
    total = sum(group.macs for group in groups) or 1
    kept = 0.0
    for stage in {group.stage for group in groups}:
        members = [group for group in groups if group.stage == stage]
        weight = sum(group.macs for group in members)
        if weight == 0:
            continue
        outputs = sum(group.macs * widths[group.name] / group.channels for group in members)
        kept += outputs * outputs / weight
    return kept / total if math.isfinite(kept) else 1.0
