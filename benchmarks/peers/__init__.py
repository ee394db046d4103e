"""Other people's ways to prune, each as its users would run it, on the bench of ``benchmarks.search_quality``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.peers import fastnas, greedy_chain, netadapt, plain_search, torch_pruning_grid
from benchmarks.search_quality.bench import Bench

METHODS: dict[str, Callable[[Bench], None]] = {
    **torch_pruning_grid.METHODS,
    **greedy_chain.METHODS,
    **netadapt.METHODS,
    **plain_search.METHODS,
    **fastnas.METHODS,
}
STRONGEST = {
    "resnet": ("tp-uniform-4", "tp-taylor-4", "tp-isomorphic-4"),
    "mobilenet": ("tp-uniform-16", "tp-isomorphic-16", "tp-taylor-16"),
    "vit": ("greedy-chain", "optuna-nsga2", "random"),
}
"""Run with three seeds, as ours: of a task's peers the best of those that have run."""
USUAL = ("greedy-chain", "tp-isomorphic", "tp-taylor")
"""The same on a task where too few have run to tell."""


def strongest(task: str) -> tuple[str, ...]:
    """Return the peers that are run with three seeds on a task."""
    return STRONGEST.get(task, USUAL)


def missing(method: str) -> str | None:
    """Return what to install before a method can run; None where it can."""
    return fastnas.missing() if method in fastnas.METHODS else None


def source_of(method: str) -> Path:
    """Return the file a method is in."""
    function = METHODS[method]
    module = sys.modules[function.func.__module__ if isinstance(function, partial) else function.__module__]
    assert module.__file__ is not None
    return Path(module.__file__)
