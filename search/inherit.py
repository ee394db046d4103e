"""Which recovered candidate a new one goes on from. Pure.

A narrower candidate cut from a recovered wider one starts nearer to where it can be than one cut from the dense model, and the
recoveries of all its ancestors count for it.

Source: NetAdapt, arXiv:1804.03230, and Once-for-All, arXiv:1908.09791, both of which shrink step by step.
"""

from __future__ import annotations

import math

from domain.build import BuildResult, CandidateRequest, Inherited
from domain.candidate import Candidate
from domain.trial import Trial
from search.view import View

COST_OF_A_BLOCK = 1.0  # how far a candidate is from one with a block more, in the logarithm of a width


def settled(view: View, target: int, candidate: Candidate) -> tuple[Candidate, Inherited | None]:
    """Return a candidate with what it inherits; one that only changes the precision of a recovered network is not trained again."""
    start = inherited(view, target, candidate)
    if start is not None and _shape(start.candidate) == _shape(candidate):
        recovery = candidate.recovery.model_copy(update={"epochs": 0.0})
        candidate = candidate.model_copy(update={"recovery": recovery})
    return candidate, start


def inherited(view: View, target: int, candidate: Candidate) -> Inherited | None:
    """Return the nearest built candidate that is at least as wide everywhere; None: cut from the dense model.

    Nearest is the one with the fewest channels to lose, in logarithms summed over groups; of equally near ones the most
    accurate, then the oldest. Precision does not matter: weights are kept in full.
    """
    best: tuple[float, float, int] | None = None
    found: tuple[Trial, BuildResult] | None = None
    dense = view.dense_of(target)
    for trial in view.snapshot.trials:
        built = view.built(trial)
        if built is None or trial.candidate.zeros not in {"", candidate.zeros}:
            continue  # zeros stay zeros: they would be in the way of a network that has none
        if not _contains(trial.candidate, candidate):
            continue
        if not math.isfinite(built.accuracy.search) or not _is_worth_it(dense, built):
            continue
        kept = candidate.kept_widths
        far = sum(math.log(trial.candidate.widths[name] / width) for name, width in kept.items())
        far += COST_OF_A_BLOCK * (len(candidate.dropped) - len(trial.candidate.dropped))
        rank = (far, -built.accuracy.search, trial.number)
        if best is None or rank < best:
            best, found = rank, (trial, built)
    if found is None:
        return None
    trial, built = found
    return Inherited(candidate=trial.candidate, weights=built.weights)


def lineage(view: View, trial: Trial) -> list[Trial]:
    """Return a trial and all whose recoveries it builds on, the oldest first: the one that was cut from the dense model."""
    by_key = {other.candidate.key: other for other in reversed(view.snapshot.trials) if other.build_id is not None}
    line = [view.original(trial)]
    while True:
        build = view.builds_by_id.get(line[0].build_id or "")
        start = build.request.start if build is not None and isinstance(build.request, CandidateRequest) else None
        parent = by_key.get(start.candidate.key) if start is not None else None
        if parent is None or parent in line:
            return line
        line.insert(0, parent)


def _contains(wide: Candidate, narrow: Candidate) -> bool:
    """Return whether one can be cut from the other: no group that is left is wider, no dropped block comes back."""
    return (
        wide.widths.keys() == narrow.widths.keys()
        and set(wide.dropped) <= set(narrow.dropped)
        and all(wide.widths[name] >= width for name, width in narrow.kept_widths.items())
    )


def _shape(candidate: Candidate) -> tuple[dict[str, int], tuple[str, ...], str]:
    return candidate.kept_widths, candidate.dropped, candidate.zeros


def _is_worth_it(dense: BuildResult, built: BuildResult) -> bool:
    """Return whether a network is still good enough to go on from: one that fell apart teaches its children nothing."""
    return built.accuracy.search >= dense.accuracy.search / 2
