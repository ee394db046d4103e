"""What a method gets to work with: the dense model, the clock, and the steps that are not its own idea.

Surgery, batch-norm re-estimation, training, export and timing are ours for all of them, so that a difference between two methods is
in what they choose to try. A method may bring its own surgery: it only has to hand over a module.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.search_quality.shelf import Shelf
from benchmarks.search_quality.tasks import Task
from domain.candidate import ImportanceMix
from domain.pareto import nondominated
from pruning.cost import count_macs
from pruning.datasets.splits import CheckedSplits
from pruning.dense import Dense
from pruning.exporters.onnx import OnnxExporter
from pruning.recovery import reestimate_batch_norm, train
from search.reserve import MOST_FOR_FINALS
from workers.agent.runtimes.base import RuntimeSession
from workers.agent.runtimes.onnxruntime import OnnxRuntime

BLOCKS, RUNS = 15, 4
WARM_UP_RUNS = 8


@dataclass(frozen=True)
class Size:
    """Of a group: its channels, and the step its width goes by, 8, or 1 where it counts attention heads."""

    channels: int
    step: int = 8

    def rounded(self, width: float) -> int:
        """Return the multiple of the step nearest to a width, at least one step, at most all channels."""
        return min(self.channels, max(self.step, round(width / self.step) * self.step))

    def narrower(self, width: int) -> int | None:
        """Return the next width below; None below one step."""
        below = (width - 1) // self.step * self.step
        return below if below >= self.step else None


@dataclass(frozen=True)
class Tried:
    """A model with its measured latency ratio and its error on the search split, after a short recovery."""

    model: nn.Module
    ratio: float
    error: float


class Bench:
    """A method's place of work.

    Args:
        task: What is pruned.
        dense: Opened; ``dense.seed`` is the run's.
        shelf: Where kept files go; its clock ends the run.
    """

    def __init__(self, task: Task, dense: Dense, shelf: Shelf) -> None:
        self.task, self.dense, self.shelf, self.clock = task, dense, shelf, shelf.clock
        self.notes = shelf.notes
        self._finals_s: list[float] = []
        self._dense_session: RuntimeSession | None = None

    @property
    def seed(self) -> int:
        return self.dense.seed

    @cached_property
    def sizes(self) -> dict[str, Size]:
        """Group -> size, of the dense model."""
        return {g.name: Size(g.channels, g.info.granularity or 8) for g in self.dense.groups().groups}

    @property
    def widths(self) -> dict[str, int]:
        """Group -> channels, of the dense model."""
        return {name: size.channels for name, size in self.sizes.items()}

    # --- steps ------------------------------------------------------------------------------------------------------
    def prune(
        self, widths: Mapping[str, int], mix: ImportanceMix | None = None, source: Dense | None = None
    ) -> nn.Module:
        """Return a copy of the dense model (or of ``source``) cut to widths."""
        self.clock.check()
        return (source or self.dense).prune(dict(widths), mix or ImportanceMix(), nullcontext)

    def renorm(self, model: nn.Module) -> nn.Module:
        """Re-estimate batch norm in place."""
        reestimate_batch_norm(model, self.dense.calibration()[0], self.dense.compute)
        return model

    def accuracy(self, model: nn.Module) -> float:
        """Return accuracy on the search split."""
        self.clock.check()
        return self.dense.evaluate(model, "val", nullcontext)

    def recover(self, model: nn.Module, epochs: float | None = None) -> nn.Module:
        """Train in place by the common recipe: whole and as much longer as suits the network (None), or so many epochs of it."""
        share = count_macs(model, self.dense.example) / self._dense_macs
        final = self.task.final_recipe(self.seed, share)
        recipe = final if epochs is None else self.task.recipe(self.seed, epochs)
        # What its first call takes says nothing of an epoch.
        data = self.dense.training_set(distill=True, hold=nullcontext)
        begin_s = time.monotonic()
        train(model, data, recipe, self.dense.compute, progress=self.clock.tick)
        if recipe.epochs > 0:
            self._finals_s.append((time.monotonic() - begin_s) / recipe.epochs * final.epochs)
        return model

    @cached_property
    def _dense_macs(self) -> int:
        return count_macs(self.dense.model, self.dense.example)

    def latency_ratio(self, model: nn.Module) -> float:
        """Return measured time of a model / time of the dense one, both exported: about a quarter of a second."""
        self.clock.check()
        if self._dense_session is None:
            self._dense_session = _session(self.export(self.dense.model))
        return _paired_ratio(self._dense_session, _session(self.export(model)))

    def export(self, model: nn.Module) -> bytes:
        """Return the ONNX file of a model, batch 1."""
        return exported(model, self.dense.splits)

    # --- what counts ------------------------------------------------------------------------------------------------
    def keep(self, model: nn.Module, **note: Any) -> None:
        """Export a recovered model and hand it over.

        Raises:
            TimeUp: Where it comes too late; then it does not count.
        """
        file = self.export(model)
        self.clock.check()
        self.shelf.keep_file(file, **note)

    # --- time -------------------------------------------------------------------------------------------------------
    def final_s(self) -> float:
        """Return what the whole recipe would take for the networks trained so far, on average; infinite before the first."""
        return float(np.mean(self._finals_s)) if self._finals_s else float("inf")

    def reserve_s(self, finals: int) -> float:
        """Return the seconds to keep for so many finals: what they would take, and no larger a share than our own search keeps."""
        return min(finals * self.final_s(), MOST_FOR_FINALS * self.clock.budget_s)

    def finish_best(self, tried: Sequence[Tried], most: int = 6) -> None:
        """Give the final recipe to models spread along the front of what was tried, then to the others, while there is time.

        Those that lose more than ten points by then are left out: they count nothing.
        """
        base = self.accuracy(self.dense.model)
        front = nondominated(tried, latency=lambda one: one.ratio, error=lambda one: one.error)
        front = [one for one in front if one.error <= 1 - base + 0.10 and one.ratio < 1]
        count = min(most, len(front))
        places = np.unique(np.linspace(0, len(front) - 1, count).round().astype(int)).tolist() if front else []
        for place in (*places, *(other for other in range(len(front)) if other not in places)):
            one = front[place]
            self.recover(one.model)
            self.keep(one.model, stage="final", ratio=round(one.ratio, 3))


def exported(model: nn.Module, splits: CheckedSplits) -> bytes:
    """Return the ONNX file of a module, batch 1."""
    on_cpu = deepcopy(model).to("cpu").to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    return OnnxExporter().export(on_cpu, splits.val[0][:1].contiguous())


def _session(file: bytes) -> RuntimeSession:
    with tempfile.NamedTemporaryFile(suffix=".onnx") as out:
        out.write(file)
        out.flush()
        session = OnnxRuntime().load(Path(out.name), threads=1, precision="fp32", batch=1)
    rng = np.random.default_rng(0)
    session.bind(
        {spec.name: rng.standard_normal([size or 1 for size in spec.shape], np.float32) for spec in session.inputs}
    )
    return session


def _paired_ratio(dense: RuntimeSession, other: RuntimeSession) -> float:
    """Return other / dense time: the median over pairs of blocks of the fastest runs, as our agent does it, but shorter."""
    for _ in range(WARM_UP_RUNS):
        dense.run()
        other.run()
    return float(np.median([_fastest_ns(other) / _fastest_ns(dense) for _ in range(BLOCKS)]))


def _fastest_ns(session: RuntimeSession) -> int:
    times = []
    session.run()
    for _ in range(RUNS):
        begin_ns = time.perf_counter_ns()
        session.run()
        times.append(time.perf_counter_ns() - begin_ns)
    return min(times)
