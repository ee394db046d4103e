"""Torch-Pruning's own pruners over a grid of ratios; every ratio is pruned, given the final recipe, and handed over.

``uniform`` (its MagnitudePruner, L1), ``taylor`` (global, first order) and ``isomorphic`` (Taylor, ranked within a topology). One
thing is mended for them: where their ``round_to`` would round a layer down to no channels at all, they silently leave it whole;
here it keeps one step. Attention heads stay: its option for them does not fit separate query, key and value layers.

Source: Torch-Pruning 1.6.1; Fang et al., arXiv:2301.12900 and arXiv:2407.04616.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch.nn.functional as F  # noqa: N812 - torch's own custom
import torch_pruning as tp
from torch import nn

from benchmarks.search_quality.bench import Bench

# The whole range first, so that a run that is cut short has been everywhere; high ratios are cheap and carry the fast end.
RATIOS = (0.5, 0.7, 0.85, 0.3, 0.8, 0.9, 0.6, 0.95, 0.4, 0.75, 0.65, 0.2, 0.55, 0.45, 0.35, 0.25, 0.15, 0.1)


class Pruner(tp.pruner.BasePruner):  # type: ignore[misc]
    """Theirs, with one step at least."""

    def _round_to(self, n_pruned: int, current_channels: int, round_to: int) -> int:
        return min(super()._round_to(n_pruned, current_channels, round_to), max(0, current_channels - round_to))


def run(bench: Bench, *, kind: str, align: int) -> None:
    """Go through the grid until the time is over."""
    seen = set()
    for ratio in RATIOS:
        model = pruned(bench, kind=kind, align=align, ratio=ratio)
        shape = tuple(tuple(parameter.shape) for parameter in model.parameters())
        if shape in seen:
            continue  # rounding gave what an earlier ratio gave: no time is wasted on it
        seen.add(shape)
        bench.recover(model)
        bench.keep(model, stage="final", ratio=ratio)
    bench.notes["grid"] = "gone through before the time was over"


def pruned(bench: Bench, *, kind: str, align: int, ratio: float) -> nn.Module:
    """Return a copy of the dense model, pruned their way."""
    bench.clock.check()
    model = deepcopy(bench.dense.model).eval().requires_grad_(True)
    outputs = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == bench.dense.classes]
    heads = [  # it takes a value layer, coupled with no query or key, for a fused one, and counts a third of its heads
        owner.get_submodule(name)
        for owner in model.modules()
        if hasattr(owner, "head_groups")
        for declared in owner.head_groups()
        for name in declared.makes
    ]
    settings: dict[str, Any] = {"importance": tp.importance.MagnitudeImportance(p=1)}
    if kind != "uniform":
        settings = {
            "importance": tp.importance.GroupTaylorImportance(),
            "global_pruning": True,
            "isomorphic": kind == "isomorphic",
        }
    pruner = Pruner(
        model, bench.dense.example, pruning_ratio=ratio, round_to=align, ignored_layers=[*outputs, *heads], **settings
    )
    if kind != "uniform":
        model.zero_grad()
        inputs, labels = bench.dense.calibration()
        assert labels is not None
        for part, answers in zip(inputs.split(64), labels.split(64), strict=True):
            F.cross_entropy(model(bench.dense.compute.place(part)), answers).backward()
    pruner.step()
    model.zero_grad(set_to_none=True)
    return bench.dense.compute.adopt(model)


METHODS: dict[str, Callable[[Bench], None]] = {
    f"tp-{kind}{'' if align == 8 else f'-{align}'}": partial(run, kind=kind, align=align)
    for kind in ("uniform", "taylor", "isomorphic")
    for align in (4, 8, 16)
}
