"""``digits``: 1,797 images of 8x8 pixels that come inside scikit-learn. Too easy to rank methods, good for trying things."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from domain.errors import Invalid
from pruning.datasets.splits import Splits, stratified_order

VAL, TEST = 300, 400


def digits(seed: int = 0) -> Splits:
    """Return 1,097 / 300 / 400 images of shape ``(N, 1, 8, 8)``, about zero mean and unit variance, with labels 0..9.

    Args:
        seed: Of the stratified shuffle.

    Raises:
        Invalid: ``dataset_not_installed``.
    """
    try:
        # Not by importlib.resources: it imports scikit-learn, which takes seconds, for one file.
        spec = find_spec("sklearn")
        folder = Path(spec.origin or "").parent if spec is not None else Path("sklearn")
        text = gzip.decompress((folder / "datasets" / "data" / "digits.csv.gz").read_bytes()).decode()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Invalid(
            "digits comes with the package scikit-learn, which is not installed here; run pip install scikit-learn.",
            code="dataset_not_installed",
        ) from error
    table = np.fromstring(text.replace("\n", ","), dtype=np.float32, sep=",").reshape(-1, 65)
    labels = torch.from_numpy(table[:, 64].astype(np.int64))
    images = (torch.from_numpy(table[:, :64].copy()).reshape(-1, 1, 8, 8) - 4.9) / 6.0
    order = stratified_order(labels, len(labels), seed)
    images, labels = images[order], labels[order]
    test, val, train = slice(0, TEST), slice(TEST, TEST + VAL), slice(TEST + VAL, None)
    how = f"stratified shuffle, seed {seed}"
    return Splits((images[train], labels[train]), (images[val], labels[val]), (images[test], labels[test]), how=how)
