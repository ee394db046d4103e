"""An Arrow column as an array ``(rows, ...)``: numbers, or lists of numbers that are all equally long."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pruning.datasets.problems import problem


def to_array(column: pa.ChunkedArray, name: str, field: str) -> np.ndarray:
    """Return a column's values, first axis the rows.

    Args:
        column: Of a table.
        name: For messages.
        field: The job's field that names it.

    Raises:
        Invalid: ``data_columns`` where it holds no numbers or has gaps, ``data_shape`` where lists differ in length.
    """
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # of no or several chunks, by the version of Arrow
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    shape: list[int] = []
    rows = len(array)
    while True:
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        if array.null_count:
            raise problem(
                field, "data_columns", f"The column {name} has {array.null_count} gap(s); fill or leave those rows out."
            )
        kind = array.type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            break
        inner = array.flatten()
        length, rest = divmod(len(inner), len(array)) if len(array) else (0, 0)
        lengths = set(array.value_lengths().to_pylist()) if not pa.types.is_fixed_size_list(kind) else {length}
        if rest or len(lengths) > 1:
            message = f"The lists of the column {name} differ in length ({min(lengths)} to {max(lengths)}); fill them up to one."
            raise problem(field, "data_shape", message)
        shape.append(length)
        array = inner
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        message = f"The column {name} holds {kind}, not numbers; turn it into numbers, or leave it out of `inputs`."
        raise problem(field, "data_columns", message)
    values = array.to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(values.astype(np.float32).reshape(rows, *shape))
