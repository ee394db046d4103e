"""The weight level: whether single weights set to zero make a target faster, measured; and where they do, tried on the front. Pure.

The third of the levels, on what blocks and channels left. A target is first *probed*: the dense model with zeros in each pattern,
against the dense model without. A pattern that shows no gain beyond its interval buys size only: the report says so, and no trial
of it stands on a front. One that shows a gain is tried on every point of the front, with the weights it was recovered to.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import JsonValue

from domain.candidate import Candidate
from domain.trial import Trial
from search.told import allowed_error
from search.view import View, deployable

PATTERNS = ("2:4", "row:0.8")  # what sparse matrix units read; what runtimes with sparse kernels ask for at least
LEAST_GAIN = 1.02
NAME = "zeros-"


def next_candidate(view: View, target: int, dense: Candidate, front: Sequence[Trial]) -> tuple[str, Candidate] | None:
    """Return the name and candidate of the next trial of the level; None: nothing to try (now).

    Args:
        view: The job.
        target: Index of the target.
        dense: The candidate that prunes nothing, in the target's first precision, with its recovery.
        front: The measured front so far of what has no zeros.
    """
    trials = view.trials_of(target)
    for pattern in PATTERNS:
        name = f"{NAME}{pattern}"
        if all(trial.seed_name != f"{name}~" for trial in trials):
            return name, dense.model_copy(update={"zeros": pattern})
    if trials and trials[-1].candidate.zeros:
        return None  # what widths are worth trying is learnt from the others: every second trial is theirs
    seen = view.identities_of(target)
    limit = allowed_error(view, target)
    for pattern in PATTERNS:
        for trial in front if pays(view, target, pattern) else ():
            candidate = trial.candidate.model_copy(update={"zeros": pattern})
            if trial.values is not None and trial.values.error > limit:
                continue  # it lost more than any front has use for, and zeros would not bring that back
            if not trial.candidate.zeros and candidate.identity not in seen:
                return f"{NAME}{pattern}-of-{trial.number}", candidate
    return None


def pays(view: View, target: int, pattern: str) -> bool:
    """Return whether a pattern's probe was measured to be faster than the dense model, beyond its interval."""
    probe = _probe(view, target, pattern)
    found = view.measured(probe) if probe is not None else None
    return found is not None and found[2].speedup_ci[0] > 1.0 and found[2].speedup >= LEAST_GAIN


def may_stand(view: View, trial: Trial) -> bool:
    """Return whether a measured trial may stand on a front: zeros that buy no time would only differ by chance."""
    return not trial.candidate.zeros or pays(view, trial.target, trial.candidate.zeros)


def weights_report(view: View) -> dict[str, JsonValue]:
    """Return, a target and pattern, what its probe came to: the speed-up measured, and the size of the file as sent over a wire."""
    report: dict[str, JsonValue] = {}
    for target, spec in enumerate(view.spec.targets):
        found: dict[str, JsonValue] = {}
        for pattern in PATTERNS:
            probe = _probe(view, target, pattern)
            measured = view.measured(probe) if probe is not None else None
            built = view.built(probe) if probe is not None else None
            if probe is None or measured is None or built is None:
                continue
            timing = measured[2]
            file = deployable(built, view.format_of(target))
            dense = deployable(view.dense_of(target), view.format_of(target), spec.precision[0])
            is_faster = pays(view, target, pattern)
            found[pattern] = {
                "trial": probe.number,
                "speedup": round(timing.speedup, 4),
                "speedup_ci": [round(end, 4) for end in timing.speedup_ci],
                "pays": is_faster,
                "accuracy_search": built.accuracy.search,
                "size_bytes": file.artifact.size_bytes,
                "compressed_bytes": file.compressed_bytes,
                "dense_compressed_bytes": dense.compressed_bytes,
                "says": "faster on this target: tried on every point of the front"
                if is_faster
                else f"no gain in {spec.runtime} on this target: smaller when compressed, not faster; kept off the front",
            }
        if found:
            report[str(target)] = found
    return report


def _probe(view: View, target: int, pattern: str) -> Trial | None:
    name = f"{NAME}{pattern}~"
    return next((trial for trial in view.trials_of(target) if trial.seed_name == name), None)
