"""Data a job may name: built-in sets, entry points of the group ``pruneloop.datasets``, and files of several kinds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from domain.errors import FieldProblem, Invalid
from domain.job import DataSpec
from domain.ports import ArtifactStore
from pruning.datasets.digits import digits
from pruning.datasets.files import fingerprint, locate, open_tree
from pruning.datasets.labels import check_labels
from pruning.datasets.mnist import mnist_5k
from pruning.datasets.npz import read_npz
from pruning.datasets.problems import problem
from pruning.datasets.splits import CheckedSplits, Pair, Splits, as_splits, cut_missing
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
    "state_of",
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


def load_data(
    spec: DataSpec,
    artifacts: ArtifactStore,
    registry: Registry[object] = DATASETS,
    *,
    folder: Path | None = None,
) -> CheckedSplits:
    """Load a job's data and check its shape: same sample shape everywhere, finite, no split empty.

    Args:
        spec: The job's data.
        artifacts: Where an uploaded file lies.
        registry: Where names are looked up.
        folder: What the operator lets builders read; paths of jobs lie in it.

    Raises:
        Invalid: ``unknown_dataset``, ``broken_plugin``, ``bad_data_params``, ``bad_data``, ``data_path_not_allowed``,
        ``data_pickled``,
            ``data_not_npz``, ``data_not_table``, ``data_not_dataset``, ``data_image``, ``data_columns``, ``data_too_large``,
            ``data_missing``, ``data_shape``, ``data_empty``, ``data_not_finite`` or ``reader_missing``; fields are named.
        NotFound: ``data_not_found`` where a file was never uploaded, or a path leads nowhere.
    """
    if spec.is_file:
        path = locate(spec, artifacts, folder)
        splits = as_splits(_read_file(spec, path))
        if spec.path is not None:
            told = f"read from {spec.path} (state {fingerprint(path)})"
            splits = replace(splits, how="; ".join(part for part in (told, splits.how) if part))
        return splits
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


def state_of(spec: DataSpec, artifacts: ArtifactStore, folder: Path | None) -> str:
    """Return what a cache of a job's data goes by: an upload never changes, a path may."""
    if spec.path is None:
        return spec.model_dump_json()
    return f"{spec.model_dump_json()} {fingerprint(locate(spec, artifacts, folder))}"


def _read_file(spec: DataSpec, path: Path) -> Splits:
    if spec.source == "npz":
        if spec.params:
            raise problem("data.params", "bad_data_params", "An npz takes no parameters; leave `params` out.")
        return read_npz(path)
    try:
        if spec.source == "images":
            from pruning.datasets.images import read_images

            with open_tree(path, path.name) as tree:
                return read_images(tree, spec.params)
        if spec.source == "huggingface":
            from pruning.datasets.hugging_face import read_hugging_face

            with open_tree(path, path.name) as tree:
                return read_hugging_face(tree, spec.params)
        from pruning.datasets.tables import read_table

        with open_tree(path, f"table.{spec.source}") as tree:
            return read_table(tree, spec.source, spec.params)
    except ModuleNotFoundError as error:
        message = f"Data of source {spec.source} needs {error.name}, which builders lack here: pip install 'pruneloop[build]'."
        raise problem("data.source", "reader_missing", message) from error
