"""Data a job may name: built-in sets, entry points of the group ``pruneloop.datasets``, and npz files."""

from __future__ import annotations

from domain.errors import FieldProblem, Invalid, NotFound
from domain.job import DataSpec
from domain.ports import ArtifactStore
from pruning.datasets.digits import digits
from pruning.datasets.mnist import mnist_5k
from pruning.datasets.npz import read_npz
from pruning.datasets.splits import CheckedSplits, Pair, Splits, as_splits, check_labels, cut_missing
from pruning.plugins import Plugin, Registry

__all__ = [
    "DATASETS",
    "CheckedSplits",
    "Pair",
    "Splits",
    "check_labels",
    "cut_missing",
    "dataset_names",
    "dataset_plugins",
    "load_data",
]

DATASETS: Registry[object] = Registry(
    "pruneloop.datasets", "dataset", "data.name", {"mnist-5k": mnist_5k, "digits": digits}
)


def dataset_names() -> tuple[str, ...]:
    """Return the dataset names that work here, sorted."""
    return DATASETS.names()


def dataset_plugins() -> tuple[Plugin, ...]:
    """Return every dataset name with its source, and the reason where a plug-in does not import."""
    return DATASETS.plugins()


def load_data(spec: DataSpec, artifacts: ArtifactStore, registry: Registry[object] = DATASETS) -> CheckedSplits:
    """Load a job's data and check its shape: same sample shape everywhere, finite, no split empty.

    Args:
        spec: The job's data.
        artifacts: Where an uploaded npz lies.
        registry: Where names are looked up.

    Raises:
        Invalid: ``unknown_dataset``, ``broken_plugin``, ``bad_data_params``, ``data_pickled``, ``data_not_npz``,
            ``data_too_large``, ``data_missing``, ``data_shape``, ``data_empty`` or ``data_not_finite``; fields are named.
        NotFound: ``data_not_found`` where the npz was never uploaded.
    """
    if spec.source == "npz":
        digest = spec.artifact or ""
        if not artifacts.exists(digest):
            raise NotFound(
                f"No artifact {digest}; upload the npz with POST /v1/artifacts and give its digest.",
                code="data_not_found",
            )
        return as_splits(read_npz(artifacts.local_path(digest)))
    name = spec.name or ""
    factory = registry.factory(name)
    try:
        made = factory(**spec.params)
    except Invalid:
        raise
    except Exception as error:  # A boundary: a factory may be a plug-in's, and raises what it likes on bad parameters.
        message = f"Dataset {name!r} does not take the parameters {dict(spec.params)}: {error}"
        raise Invalid(message, code="bad_data_params", fields=[FieldProblem("data.params", message)]) from error
    return as_splits(made)
