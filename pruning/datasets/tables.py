"""CSV and Parquet: named columns to inputs and labels. One table, or ``train``, ``val`` and ``test`` beside one another."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet
import torch

from domain.data_files import MAX_UNPACKED_BYTES
from domain.errors import Invalid
from pruning.datasets.columns import to_array
from pruning.datasets.files import SPLIT_NAMES, Tree
from pruning.datasets.params import Params
from pruning.datasets.problems import problem
from pruning.datasets.splits import Splits

PARAMS = ("inputs", "label", "split", "shape")


def read_table(tree: Tree, kind: str, given: Mapping[str, Any]) -> Splits:
    """Read tables.

    Args:
        tree: One file, or files named after their splits.
        kind: ``csv`` or ``parquet``.
        given: The job's ``data.params``: ``inputs``, columns (default: all that are nothing else); ``label``, a column or several
            (default: none); ``split``, a column that says train, val or test; ``shape`` of one sample.

    Raises:
        Invalid: ``data_not_table``, ``data_columns``, ``data_shape``, ``data_missing``, ``data_too_large`` or ``bad_data_params``.
    """
    params = Params(given, PARAMS)
    tables = _tables(tree, kind)
    split_column = params.names("split")
    if split_column:
        tables = _split(tables, split_column[0])
    labels = params.names("label") or ()
    left_out = {*labels, *(split_column or ())}
    columns = params.names("inputs") or tuple(name for name in tables["train"].column_names if name not in left_out)
    if not columns:
        raise problem("data.params.inputs", "data_columns", "No column is left for the inputs; name some in `inputs`.")
    shape, classes = params.shape("shape"), _classes(tables, labels)
    pairs: dict[str, Any] = {}
    for name, table in tables.items():
        inputs = _side_by_side(table, columns, "data.params.inputs")
        if shape is not None:
            if int(np.prod(shape)) != int(np.prod(inputs.shape[1:])):
                message = f"A row has {int(np.prod(inputs.shape[1:]))} values, a sample of shape {shape} {int(np.prod(shape))}."
                raise problem("data.params.shape", "data_shape", message)
            inputs = inputs.reshape(-1, *shape)
        wanted = _labels(table, labels, classes) if labels else None
        pairs[name] = (torch.from_numpy(inputs), wanted)
    told = [f"inputs: {_few(columns)}", *(f"labels: {_few(labels)}" for _ in labels[:1])]
    if classes:
        told.append(f"classes: {_few(tuple(classes))}")
    return Splits(pairs["train"], pairs.get("val"), pairs.get("test"), how="; ".join(told))


def _tables(tree: Tree, kind: str) -> dict[str, pa.Table]:
    if len(tree.names) == 1:
        return {"train": _read(tree.read(tree.names[0]), kind)}
    tables = {}
    for name in tree.names:
        path = PurePosixPath(name)
        split = SPLIT_NAMES.get(path.stem.lower())
        if path.suffix.lower() != f".{kind}" or split is None or split in tables:
            message = f"{name} is no table of a split; name the files train.{kind}, val.{kind} and test.{kind}."
            raise problem("data.artifact", "data_not_table", message)
        tables[split] = _read(tree.read(name), kind)
    return _with_train(tables)


def _read(data: bytes, kind: str) -> pa.Table:
    try:
        if kind == "csv":
            table = pa_csv.read_csv(io.BytesIO(data))
        else:
            file = pa_parquet.ParquetFile(io.BytesIO(data))
            unpacked = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
            if unpacked > MAX_UNPACKED_BYTES:
                raise problem(
                    "data.artifact", "data_too_large", f"The table unpacks to {unpacked} bytes; give fewer rows."
                )
            table = file.read()
    except (pa.ArrowException, OSError, ValueError) as error:
        message = f"The file cannot be read as {kind}: {str(error).splitlines()[0]}. Write it again."
        raise problem("data.artifact", "data_not_table", message) from error
    if table.num_rows == 0:
        raise problem("data.artifact", "data_empty", "The table has no rows.")
    return table


def _split(tables: dict[str, pa.Table], column: str) -> dict[str, pa.Table]:
    table = tables["train"]
    _require(table, (column,), "data.params.split")
    said = [str(value).strip().lower() for value in table.column(column).to_pylist()]
    unknown = sorted(set(said) - set(SPLIT_NAMES))
    if unknown:
        message = f"The column {column} says {unknown[0]!r}; it may say train, val or test."
        raise problem("data.params.split", "data_columns", message)
    found: dict[str, list[int]] = {}
    for row, word in enumerate(said):
        found.setdefault(SPLIT_NAMES[word], []).append(row)
    return _with_train({name: table.take(rows) for name, rows in found.items()})


def _with_train(tables: dict[str, pa.Table]) -> dict[str, pa.Table]:
    if "train" not in tables:
        raise problem(
            "data.artifact", "data_missing", f"There is no train split; there are {', '.join(sorted(tables))}."
        )
    return tables


def _side_by_side(table: pa.Table, columns: tuple[str, ...], field: str) -> np.ndarray:
    _require(table, columns, field)
    arrays = [to_array(table.column(name), name, field) for name in columns]
    if len(arrays) == 1 and arrays[0].ndim > 1:
        return arrays[0]
    return np.concatenate([array.reshape(len(array), -1) for array in arrays], axis=1)


def _require(table: pa.Table, columns: tuple[str, ...], field: str) -> None:
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        message = f"There is no column {missing[0]!r}; there are {_few(tuple(table.column_names))}."
        raise problem(field, "data_columns", message)


def _classes(tables: dict[str, pa.Table], labels: tuple[str, ...]) -> list[str]:
    """Return the words of a label column that holds words, sorted; their places are the classes."""
    if len(labels) != 1:
        return []
    for table in tables.values():
        _require(table, labels, "data.params.label")
    if not is_words(tables["train"].column(labels[0]).type):
        return []
    return sorted({str(word) for word in tables["train"].column(labels[0]).to_pylist() if word is not None})


def _labels(table: pa.Table, labels: tuple[str, ...], classes: list[str]) -> torch.Tensor:
    if classes:
        return torch.from_numpy(places_of(table.column(labels[0]), labels[0], classes))
    found = _side_by_side(table, labels, "data.params.label").astype(np.float32)
    return torch.from_numpy(found[:, 0] if found.shape[1] == 1 else found)


def is_words(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)


def places_of(column: pa.ChunkedArray, name: str, classes: list[str]) -> np.ndarray:
    """Return each word's place among the classes; raises Invalid ``data_columns`` for a word that train has not."""
    place = {word: number for number, word in enumerate(classes)}
    found = []
    for row, word in enumerate(column.to_pylist()):
        if str(word) not in place or word is None:
            raise _unknown(name, row, word, classes)
        found.append(place[str(word)])
    return np.array(found, np.int64)


def _unknown(name: str, row: int, word: object, classes: list[str]) -> Invalid:
    message = f"Row {row} of the label {name} is {word!r}, which train has not ({_few(tuple(classes))})."
    return problem("data.params.label", "data_columns", message)


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:10])}, ... ({len(names)})"
