"""Data as a file: an npz without pickles, first axis the samples."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from pruning.datasets.problems import problem
from pruning.datasets.splits import Splits

MAX_UNPACKED_BYTES = 8 * 2**30
_PARTS = tuple(f"{split}_{part}" for split in ("train", "val", "test") for part in ("inputs", "labels"))


def read_npz(path: Path) -> Splits:
    """Read ``{train,val,test}_{inputs,labels}`` of an npz; uint8 inputs are scaled to 0..1.

    Args:
        path: The file; nothing in it is ever unpickled.

    Raises:
        Invalid: ``data_not_npz``, ``data_too_large``, ``data_pickled``, ``data_missing`` or ``data_shape``.
    """
    arrays = _read_arrays(path)
    if "train_inputs" not in arrays:
        found = ", ".join(sorted(arrays)) or "nothing"
        raise problem("data.train_inputs", "data_missing", f"The npz has no train_inputs; it holds {found}.")
    how = []
    pairs: dict[str, tuple[torch.Tensor, torch.Tensor | None] | None] = {}
    for split in ("train", "val", "test"):
        inputs, labels = arrays.get(f"{split}_inputs"), arrays.get(f"{split}_labels")
        if inputs is None:
            if labels is not None:
                raise problem(
                    f"data.{split}_inputs", "data_missing", f"There is {split}_labels, but no {split}_inputs."
                )
            pairs[split] = None
            continue
        if inputs.dtype == np.uint8:
            inputs = inputs.astype(np.float32) / 255
            how.append(f"{split}_inputs scaled from 0..255 to 0..1")
        pairs[split] = (
            torch.from_numpy(np.ascontiguousarray(inputs, dtype=np.float32)),
            None if labels is None else _labels(split, labels),
        )
    return Splits(pairs["train"], pairs["val"], pairs["test"], how="; ".join(how))


def _labels(split: str, labels: np.ndarray) -> torch.Tensor:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    whole = labels.astype(np.int64) if np.isfinite(labels).all() else labels
    if not np.array_equal(whole, labels):  # ratings; whether the metric takes any is seen when the model is there
        return torch.from_numpy(np.ascontiguousarray(labels, dtype=np.float32))
    return torch.from_numpy(np.ascontiguousarray(whole))


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError) as error:
        message = f"The data file is not an npz (a zip of npy arrays): {error}. Save it with numpy.savez."
        raise problem("data.artifact", "data_not_npz", message) from error
    if unpacked > MAX_UNPACKED_BYTES:
        message = f"The npz unpacks to {unpacked} bytes, more than {MAX_UNPACKED_BYTES}; give fewer samples."
        raise problem("data.artifact", "data_too_large", message)
    arrays: dict[str, np.ndarray] = {}
    with np.load(path, allow_pickle=False) as file:
        for name in file.files:
            if name not in _PARTS:
                continue
            try:
                array = file[name]
            except (ValueError, EOFError, zipfile.BadZipFile) as error:
                is_pickled = "allow_pickle" in str(error) or "pickle" in str(error)
                code = "data_pickled" if is_pickled else "data_not_npz"
                mend = "save plain numeric arrays, not objects" if is_pickled else "write the file again"
                raise problem(f"data.{name}", code, f"{name} cannot be read ({error}); {mend}.") from error
            if array.dtype.kind not in "biuf":
                message = f"{name} holds {array.dtype}, not numbers; save plain numeric arrays."
                raise problem(f"data.{name}", "data_shape", message)
            arrays[name] = array
    return arrays
