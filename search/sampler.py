"""Named sampler presets, each seeded afresh for every ask."""

from __future__ import annotations

import hashlib
from typing import Literal

from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

Preset = Literal["tpe", "gp", "nsga2", "random"]


def make_sampler(preset: Preset, *, seed: int) -> BaseSampler:
    """Return a sampler.

    ``tpe`` is the default: multivariate, good to about a thousand trials. ``gp`` for at most 150 trials of few
    parameters; it needs torch, so the search worker must be installed with it. ``nsga2`` for thousands of cheap trials.
    """
    if preset == "tpe":
        return TPESampler(multivariate=True, constant_liar=True, n_startup_trials=8, seed=seed)
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
