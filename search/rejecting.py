"""Which built candidates are not worth the device's time. Conservative: what is thrown away here is never measured."""

from __future__ import annotations

from domain.build import BuildResult
from domain.trial import Trial
from search.told import allowed_drop
from search.view import View

# The larger of: a quarter of all samples lost, so many times the drop a search candidate may show.
HOPELESS_DROP = 0.25
HOPELESS_DROPS = 5.0
# Smaller differences of accuracy on a validation split of a few hundred samples are chance.
DOMINATED_BY = 0.03
DOMINATED_MACS = 0.9


def why_rejected(view: View, trial: Trial, built: BuildResult) -> str | None:
    """Return why a built candidate is not measured, in words; None to measure it.

    Hopeless: it lost far more accuracy than the search allows, and the target has at least one measured trial.
    Dominated beyond doubt: a measured trial of the same precision is clearly more accurate, no group of it is wider, and its
    MACs are clearly fewer. Fewer MACs alone would not do: they do not decide latency.
    """
    if trial.candidate.zeros:
        return None  # whether zeros make the target faster is what it was built to find out
    measured = [other for other in view.succeeded(trial.target) if not other.candidate.zeros]
    if not measured:
        return None
    accuracy = built.accuracy.search
    drop = view.dense_accuracy(trial.target) - accuracy
    if drop > max(HOPELESS_DROP, HOPELESS_DROPS * allowed_drop(view.spec)):
        return f"not measured: lost {drop:.1%} of accuracy after recovery, beyond what the finals can bring back"
    for other in measured:
        reference = view.built(other)
        if reference is None or other.values is None or other.candidate.precision != trial.candidate.precision:
            continue
        narrower = all(width <= trial.candidate.widths[name] for name, width in other.candidate.widths.items())
        if (
            narrower
            and reference.macs <= DOMINATED_MACS * built.macs
            and 1.0 - other.values.error >= accuracy + DOMINATED_BY
        ):
            return f"not measured: trial {other.number} is narrower everywhere and more accurate"
    return None
