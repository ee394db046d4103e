"""What a build says of its accuracy and its data."""

from __future__ import annotations

from domain.build import AccuracyReport, BuiltArtifact, SplitSizes
from pruning.datasets.splits import CheckedSplits
from pruning.dense import Dense


def sizes_of(splits: CheckedSplits) -> SplitSizes:
    return SplitSizes(train=len(splits.train[0]), val=len(splits.val[0]), test=len(splits.test[0]), how=splits.how)


def report(dense: Dense, search: float, test: float | None = None) -> AccuracyReport:
    """Return accuracies on val and, of a final, on test, as the job's metric has them."""
    on_test = {} if test is None else {"test_samples": len(dense.splits.test[0]), "spread_test": dense.spread("test")}
    return AccuracyReport(
        metric=dense.metric.name, search=search, test=test, spread_search=dense.spread("val"), **on_test
    )


def of_first(artifacts: tuple[BuiltArtifact, ...], module: float) -> float:
    """Return the accuracy on val of the first file, the one a build's own accuracy is told of."""
    own = artifacts[0].accuracy_search
    return module if own is None else own
