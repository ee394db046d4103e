"""Plain black-box search: one ratio a group, measured latency and accuracy after a short fine-tune, no prior knowledge.

Optuna's TPE and NSGA-II as they come, and random search. Towards the end the front of what was tried gets the final recipe.

Source: Optuna 5; Akiba et al., arXiv:1907.10902.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

from benchmarks.search_quality.bench import Bench, Tried
from pruning.recovery import TrainingDiverged

EPOCHS = 0.5
FINALS = 5
LARGEST_RATIO = 0.9
POPULATION = 10  # the default of 50 would be a random search in this time


def run(bench: Bench, *, sampler: Callable[[int], BaseSampler]) -> None:
    """Ask and tell until what is left is needed for the finals."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler(bench.seed))
    tried: dict[tuple[int, ...], Tried | None] = {}
    asked = 0
    while not tried or bench.clock.left_s() > bench.reserve_s(FINALS):
        trial = study.ask()
        asked += 1
        widths = {
            name: size.rounded(size.channels * (1 - trial.suggest_float(name, 0.0, LARGEST_RATIO)))
            for name, size in bench.sizes.items()
        }
        shape = tuple(widths.values())
        if shape not in tried:
            tried[shape] = None if widths == bench.widths else _try(bench, widths)
        one = tried[shape]
        if one is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, [one.ratio, one.error])
    bench.notes["asked"], bench.notes["built"] = asked, len(tried)
    bench.finish_best([one for one in tried.values() if one is not None], most=FINALS + 1)


def _try(bench: Bench, widths: dict[str, int]) -> Tried | None:
    model = bench.prune(widths)
    try:
        bench.recover(model, EPOCHS)
    except TrainingDiverged:
        return None
    one = Tried(model, bench.latency_ratio(model), 1 - bench.accuracy(model))
    bench.keep(model, stage="search", ratio=round(one.ratio, 3))
    return one


METHODS: dict[str, Callable[[Bench], None]] = {
    "optuna-tpe": partial(run, sampler=lambda seed: TPESampler(seed=seed)),
    "optuna-nsga2": partial(run, sampler=lambda seed: NSGAIISampler(seed=seed, population_size=POPULATION)),
    "random": partial(run, sampler=lambda seed: RandomSampler(seed=seed)),
}
