"""A chain made greedily: always the step that loses least accuracy per predicted millisecond.

Accuracy of each group at three widths after batch-norm re-estimation; a latency model, constant + multiply-accumulates with
channels rounded up to 8, fitted on fifteen measured candidates; each deeper candidate goes on from the recovered shallower one,
1.4 epochs each, importance scored anew. What time is left gives them the final recipe.

Source: NetAdapt's idea of one group a step, arXiv:1804.03230, with a map in place of its trials.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.peers.paper_latency import RoundedMacs, fit
from benchmarks.search_quality.bench import Bench, Size, Tried

MEASURED = 15
SPARSITIES = (0.25, 0.5, 0.75)
EPOCHS = 1.4
LINKS = 9
FASTEST = 10.0
HOPELESS = 0.12


def run(bench: Bench) -> None:
    """Map, fit, walk down, and finish what was met on the way."""
    macs = RoundedMacs(bench.dense)
    constant, slope = _fit(bench, macs)
    bench.notes["latency_model"] = {"constant": constant, "of_dense_macs": slope * macs({})}
    lost = _map(bench)
    dense_accuracy = bench.accuracy(bench.dense.model)
    widths, source, met = bench.widths, bench.dense, []
    narrowest = {name: size.rounded(size.step) for name, size in bench.sizes.items()}
    floor = max(1 / FASTEST, constant + slope * macs(narrowest))
    for wanted in np.geomspace(1.0, floor, LINKS + 1)[1:]:
        widths = _walk(widths, bench.sizes, lost, lambda w: constant + slope * macs(w), float(wanted))
        model = bench.recover(bench.prune(widths, source=source), EPOCHS)
        accuracy = bench.accuracy(model)
        bench.keep(model, stage="chain", widths=dict(widths), val=accuracy)
        if accuracy < dense_accuracy - HOPELESS:
            break
        met.append(Tried(model, bench.latency_ratio(model), 1 - accuracy))
        source = bench.dense.narrowed(model)
        if all(bench.sizes[group].narrower(width) is None for group, width in widths.items()):
            break
    bench.finish_best(met, most=len(met))


def _fit(bench: Bench, macs: RoundedMacs) -> tuple[float, float]:
    rng = np.random.default_rng(bench.seed)
    known: list[tuple[float, float]] = [(macs({}), 1.0)]
    for _ in range(MEASURED):
        depth = rng.uniform(0.1, 0.8)
        widths = {
            name: size.rounded(size.channels * (1 - rng.uniform(0, min(1.0, 2 * depth))))
            for name, size in bench.sizes.items()
        }
        known.append((macs(widths), bench.latency_ratio(bench.prune(widths))))
    return fit(*zip(*known, strict=True))


def _map(bench: Bench) -> dict[str, tuple[float, ...]]:
    """Return accuracy lost by each group alone at each sparsity, never falling with it."""
    base = bench.accuracy(bench.dense.model)
    lost = {}
    for group, size in bench.sizes.items():
        own = []
        for sparsity in SPARSITIES:
            model = bench.renorm(bench.prune({group: size.rounded(size.channels * (1 - sparsity))}))
            own.append(max(0.0, base - bench.accuracy(model)))
        lost[group] = tuple(np.maximum.accumulate(own))
    return lost


def _walk(
    widths: dict[str, int],
    sizes: dict[str, Size],
    lost: dict[str, tuple[float, ...]],
    predict: Callable[[dict[str, int]], float],
    wanted: float,
) -> dict[str, int]:
    """Narrow by one step after the other until the predicted ratio is what is wanted, or nothing can go."""

    def loss(group: str, width: int) -> float:
        return float(np.interp(1 - width / sizes[group].channels, (0.0, *SPARSITIES, 1.0), (0.0, *lost[group], 1.0)))

    widths = dict(widths)
    while predict(widths) > wanted:
        now, best, best_price = predict(widths), None, float("inf")
        for group, width in widths.items():
            narrower = sizes[group].narrower(width)
            if narrower is None:
                continue
            gain = now - predict({**widths, group: narrower})
            price = (loss(group, narrower) - loss(group, width) + 1e-4) / max(gain, 1e-6)
            if price < best_price:
                best, best_price = (group, narrower), price
        if best is None:
            break
        widths[best[0]] = best[1]
    return widths


METHODS = {"greedy-chain": run}
