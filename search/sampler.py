"""Named sampler presets, each seeded afresh for every ask."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

Preset = Literal["tpe", "gp", "nsga2", "random"]


class _FixedTPE(TPESampler):
    """TPE over parameters that never change: it need not look through every trial to find out which there are."""

    def __init__(self, distributions: Mapping[str, BaseDistribution], *, seed: int) -> None:
        super().__init__(multivariate=True, constant_liar=True, n_startup_trials=8, seed=seed)
        self._fixed = {name: one for name, one in distributions.items() if not one.single()}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._fixed)


def make_sampler(preset: Preset, *, seed: int, distributions: Mapping[str, BaseDistribution]) -> BaseSampler:
    """Return a sampler of parameters that stay the same all along.

    ``tpe`` is the default: multivariate, good to about a thousand trials. ``gp`` for at most 150 trials of few
    parameters; it needs torch, so the search worker must be installed with it. ``nsga2`` for thousands of cheap trials.
    """
    if preset == "tpe":
        return _FixedTPE(distributions, seed=seed)
    if preset == "gp":
        return GPSampler(n_startup_trials=8, seed=seed)
    if preset == "nsga2":
        return NSGAIISampler(population_size=20, seed=seed)
    return RandomSampler(seed=seed)


def ask_seed(job_seed: int, target: int, number: int) -> int:
    """Return the seed of one ask.

    From the job's seed, the target and the number of the ask alone, so that a study rebuilt after a crash asks what
    the lost one would have asked. Hashed, because neighbouring seeds would draw alike.
    """
    text = f"{job_seed}/{target}/{number}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big")
