"""What ``datasets`` of Hugging Face saves to disk: Arrow files beside their JSON. Read by pyarrow alone.

The library itself is not needed, and none of it runs: columns of images hold their bytes, classes are told by the features in
``dataset_info.json``. See docs/adr/0017-data-as-files.md.

Source: the layout of ``Dataset.save_to_disk`` and ``DatasetDict.save_to_disk``, huggingface/datasets (Apache-2.0).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pruning.datasets.columns import to_array
from pruning.datasets.files import SPLIT_NAMES, Tree
from pruning.datasets.images import ImageForm, stack
from pruning.datasets.params import Params
from pruning.datasets.problems import problem
from pruning.datasets.splits import Splits
from pruning.datasets.tables import is_words, places_of

STATE, INFO, DICT = "state.json", "dataset_info.json", "dataset_dict.json"
LABELS = ("label", "labels", "target", "fine_label")
PARAMS = ("inputs", "label", "shape", "size", "mode", "fit", "mean", "std", "layout", "max_shift")


def read_hugging_face(tree: Tree, given: Mapping[str, Any]) -> Splits:
    """Read a dataset that was saved to disk.

    Args:
        tree: Its files.
        given: The job's ``data.params``: ``inputs``, a column of images or columns of numbers (default: the one column that
        can be);
            ``label`` (default: the column label or labels, if there); ``shape`` of one sample; of images those of ``ImageForm``.

    Raises:
        Invalid: ``data_not_dataset``, ``data_columns``, ``data_shape``, ``data_image``, ``data_missing`` or ``bad_data_params``.
    """
    params = Params(given, PARAMS)
    root = _root(tree)
    splits = _splits(tree, root)
    tables = {split: _table(tree, folder) for split, folder in splits.items()}
    features = _features(tree, splits["train"])
    table = tables["train"]
    labels = params.names("label") or tuple(name for name in LABELS if name in table.column_names)[:1]
    inputs = params.names("inputs") or _guessed(table, features, labels)
    for name in (*inputs, *labels):
        if name not in table.column_names:
            message = f"There is no column {name!r}; there are {', '.join(table.column_names)}."
            raise problem("data.params.label" if name in labels else "data.params.inputs", "data_columns", message)
    form, max_shift, shape = ImageForm.of(params), params.whole("max_shift", 0, 64), params.shape("shape")
    classes = _classes(table, features, labels)
    pairs: dict[str, Any] = {}
    for split, one in tables.items():
        arrays = [
            _images(one, name, form, split)
            if _is_image(one, name)
            else to_array(one.column(name), name, "data.params.inputs")
            for name in inputs
        ]
        whole = arrays[0] if len(arrays) == 1 else np.concatenate([a.reshape(len(a), -1) for a in arrays], axis=1)
        whole = whole.reshape(len(whole), -1) if whole.ndim == 1 else whole
        if shape is not None:
            if int(np.prod(shape)) != int(np.prod(whole.shape[1:])):
                message = f"A sample has shape {whole.shape[1:]}, which does not become {shape}."
                raise problem("data.params.shape", "data_shape", message)
            whole = whole.reshape(-1, *shape)
        pairs[split] = (
            torch.from_numpy(np.ascontiguousarray(whole)),
            _labels(one, labels, classes) if labels else None,
        )
    how = f"inputs: {', '.join(inputs)}" + (f"; labels: {', '.join(labels)}" if labels else "; no labels")
    if classes:
        how += f"; classes: {', '.join(classes[:12])}{', ...' if len(classes) > 12 else ''}"
    return Splits(pairs["train"], pairs.get("val"), pairs.get("test"), how=how, max_shift=max_shift)


def _root(tree: Tree) -> str:
    """Return the folder the dataset lies in, with a slash; zips of a folder have one more."""
    marks = [name for name in tree.names if name.rpartition("/")[2] in {DICT, STATE}]
    if not marks:
        message = f"There is no {DICT} and no {STATE}: it is nothing that `save_to_disk` of datasets wrote."
        raise problem("data.artifact", "data_not_dataset", message)
    folder, _, _ = min(marks, key=lambda name: (name.count("/"), name)).rpartition("/")
    return f"{folder}/" if folder else ""


def _splits(tree: Tree, root: str) -> dict[str, str]:
    """Return split -> folder; splits of other names are left out."""
    if f"{root}{DICT}" not in tree.names:
        return {"train": root}
    told = _json(tree, f"{root}{DICT}").get("splits")
    names = [str(name) for name in told] if isinstance(told, list) else []
    found = {SPLIT_NAMES[name.lower()]: f"{root}{name}/" for name in names if name.lower() in SPLIT_NAMES}
    if "train" not in found:
        message = f"The dataset has no split train; it has {', '.join(names) or 'none'}."
        raise problem("data.artifact", "data_missing", message)
    return found


def _table(tree: Tree, folder: str) -> pa.Table:
    state = _json(tree, f"{folder}{STATE}")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        message = "The dataset is a selection of another; call flatten_indices() before save_to_disk()."
        raise problem("data.artifact", "data_not_dataset", message)
    files = [
        f"{folder}{one['filename']}"
        for one in state.get("_data_files") or ()
        if isinstance(one, dict) and "filename" in one
    ]
    missing = [name for name in files if name not in tree.names]
    if missing or not files:
        message = (
            f"{folder}{STATE} names {missing[0] if missing else 'no file'}, which is not there; give the whole folder."
        )
        raise problem("data.artifact", "data_not_dataset", message)
    try:
        tables = [pa.ipc.open_stream(pa.py_buffer(tree.read(name))).read_all() for name in files]
        return pa.concat_tables(tables)
    except (pa.ArrowException, OSError, ValueError) as error:
        message = f"The Arrow files of {folder or 'the dataset'} cannot be read: {str(error).splitlines()[0]}."
        raise problem("data.artifact", "data_not_dataset", message) from error


def _features(tree: Tree, folder: str) -> dict[str, Any]:
    info = _json(tree, f"{folder}{INFO}") if f"{folder}{INFO}" in tree.names else {}
    features = info.get("features")
    return features if isinstance(features, dict) else {}


def _guessed(table: pa.Table, features: dict[str, Any], labels: tuple[str, ...]) -> tuple[str, ...]:
    able = [name for name in table.column_names if name not in labels and not is_words(table.column(name).type)]
    images = [name for name in able if _is_image(table, name)]
    found = images or able
    if len(found) != 1:
        message = f"Which column are the inputs? Name it in `inputs`; there are {', '.join(table.column_names)}."
        raise problem("data.params.inputs", "data_columns", message)
    del features
    return (found[0],)


def _is_image(table: pa.Table, name: str) -> bool:
    kind = table.column(name).type
    return pa.types.is_struct(kind) and {kind.field(i).name for i in range(kind.num_fields)} >= {"bytes", "path"}


def _images(table: pa.Table, name: str, form: ImageForm, split: str) -> np.ndarray:
    def decoded() -> Any:
        for row, cell in enumerate(table.column(name)):
            value = cell.as_py()
            if not value or not value.get("bytes"):
                message = (
                    f"Row {row} of {split}, column {name}, names an image file and does not hold it; such paths are not"
                    f" followed. Save it"
                    " with the bytes in it: dataset.cast_column(name, Image()) over embedded bytes."
                )
                raise problem("data.params.inputs", "data_image", message)
            yield form.decode(value["bytes"], f"of row {row} of {split}")

    return stack(decoded(), [f"row {row} of {split}" for row in range(table.num_rows)])


def _classes(table: pa.Table, features: dict[str, Any], labels: tuple[str, ...]) -> list[str]:
    if len(labels) != 1:
        return []
    told = features.get(labels[0])
    if isinstance(told, dict) and told.get("_type") == "ClassLabel":
        return [str(name) for name in told.get("names") or ()]
    if is_words(table.column(labels[0]).type):
        return sorted({str(word) for word in table.column(labels[0]).to_pylist() if word is not None})
    return []


def _labels(table: pa.Table, labels: tuple[str, ...], classes: list[str]) -> torch.Tensor:
    if classes and is_words(table.column(labels[0]).type):
        return torch.from_numpy(places_of(table.column(labels[0]), labels[0], classes))
    arrays = [to_array(table.column(name), name, "data.params.label") for name in labels]
    found = arrays[0] if len(arrays) == 1 else np.concatenate([a.reshape(len(a), -1) for a in arrays], axis=1)
    return torch.from_numpy(found)


def _json(tree: Tree, name: str) -> dict[str, Any]:
    try:
        found = json.loads(tree.read(name)) if name in tree.names else None
    except (ValueError, RecursionError) as error:
        raise problem("data.artifact", "data_not_dataset", f"{name} is no JSON: {error}.") from error
    if not isinstance(found, dict):
        raise problem(
            "data.artifact", "data_not_dataset", f"{name} is not there, or holds something else than expected."
        )
    return found
