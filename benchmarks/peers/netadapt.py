"""NetAdapt, from its paper: iteration by iteration, one group is narrowed, the one that keeps most accuracy for the time asked.

A table of measured latencies is made first: the whole model with one group narrowed, some widths a group, in between
interpolated. Each iteration asks for a share of the latency that is left. For every group the widest width that meets it by the
table is cut and fine-tuned briefly; the most accurate of these proposals is kept and measured. What was met on the way gets the
long fine-tune.

Two choices follow from minutes of budget, where the paper took days: an iteration asks for a larger share, and a proposal is tuned
for a small part of an epoch.

Source: Yang et al., NetAdapt, ECCV 2018, arXiv:1804.03230, algorithm 1. From the paper; no code of theirs was used.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from benchmarks.search_quality.bench import Bench, Size, Tried
from pruning.dense import Dense

TABLE = (0.25, 0.5, 0.75)
SHARE = 0.2  # of the present latency, saved by an iteration
PROPOSAL_EPOCHS = 0.1
FINALS = 5
HOPELESS = 0.12

Table = dict[str, tuple[list[int], list[float]]]


def run(bench: Bench) -> None:
    """Make the table, adapt while there is time, fine-tune what was met on the way."""
    table = _table(bench)
    floor = bench.accuracy(bench.dense.model) - HOPELESS
    widths, source, ratio = bench.widths, bench.dense, 1.0
    met: list[Tried] = []
    while not met or bench.clock.left_s() > bench.reserve_s(min(len(met), FINALS)):
        best = _iteration(bench, source, widths, table, ratio)
        if best is None:
            break
        widths, model, accuracy = best
        ratio = bench.latency_ratio(model)
        bench.keep(model, stage="iteration", widths=dict(widths), val=accuracy)
        if accuracy < floor:
            break
        met.append(Tried(model, ratio, 1 - accuracy))
        source = bench.dense.narrowed(model)
    bench.notes["iterations"] = len(met)
    bench.finish_best(met, most=FINALS)


def _table(bench: Bench) -> Table:
    """Return, per group, widths and the latency ratio of the model with this group alone so wide; wider is never faster."""
    table: Table = {}
    for group, size in bench.sizes.items():
        count = size.channels
        widths = sorted({size.rounded(count * (1 - sparsity)) for sparsity in TABLE} - {count})
        ratios = [bench.latency_ratio(bench.prune({group: width})) for width in widths]
        table[group] = ([*widths, count], [float(ratio) for ratio in np.maximum.accumulate([*ratios, 1.0])])
    return table


def _iteration(
    bench: Bench, source: Dense, widths: dict[str, int], table: Table, ratio: float
) -> tuple[dict[str, int], nn.Module, float] | None:
    """Return widths, model and accuracy of the best proposal; None where no group can save what is asked."""
    best: tuple[dict[str, int], nn.Module, float] | None = None
    for group, now in widths.items():
        width = _widest(table[group], bench.sizes[group], now, SHARE * ratio)
        if width is None:
            continue
        proposed = {**widths, group: width}
        model = bench.recover(bench.prune(proposed, source=source), PROPOSAL_EPOCHS)
        accuracy = bench.accuracy(model)
        if best is None or accuracy > best[2]:
            best = proposed, model, accuracy
    return best


def _widest(row: tuple[list[int], list[float]], size: Size, now: int, wanted: float) -> int | None:
    """Return the widest width that saves so much by the table; the narrowest if it saves an eighth of it; else None."""
    known, ratios = row

    def saves(width: int) -> float:
        return float(np.interp(now, known, ratios) - np.interp(width, known, ratios))

    width, last = size.narrower(now), None
    while width is not None and width >= known[0]:
        if saves(width) >= wanted:
            return width
        width, last = size.narrower(width), width
    # A net of many small groups has none that saves it all alone; the paper's would stop here, at almost the dense model.
    return last if last is not None and saves(last) >= wanted / 8 else None


METHODS = {"netadapt": run}
