"""What Hugging Face's `datasets` writes today, our reader reads: the same values, in the same order, by none of its code."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
from PIL import Image as PillowImage

from domain.job import DataSpec
from pruning.datasets import load_data
from tests.unit.pruning.folder import FolderStore


def test_images_and_class_labels(store: FolderStore, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (9, 12, 3), dtype=np.uint8) for _ in range(12)]
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {
        "picture": [PillowImage.fromarray(array) for array in arrays],
        "label": [number % 2 for number in range(12)],
    }
    whole = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(
        {"train": whole, "validation": whole.select(range(4)), "test": whole.select([5, 4])}
    ).save_to_disk(str(tmp_path / "pets"), num_shards={"train": 3, "validation": 1, "test": 1})
    splits = load_data(DataSpec(source="huggingface", path="pets"), store, folder=tmp_path)
    assert "classes: cat, dog" in splits.how and splits.train[0].shape == (12, 3, 9, 12)
    for image, array in zip(splits.train[0], arrays, strict=True):
        np.testing.assert_allclose(image.numpy(), array.transpose(2, 0, 1) / 255, atol=1e-6)
    assert splits.test[1] is not None and splits.test[1].tolist() == [1, 0]
    np.testing.assert_allclose(splits.test[0][0].numpy(), arrays[5].transpose(2, 0, 1) / 255, atol=1e-6)


def test_lists_arrays_and_words(store: FolderStore, tmp_path: Path) -> None:
    grid = np.arange(6 * 12, dtype=np.float32).reshape(12, 2, 3)
    features = datasets.Features(
        {
            "grid": datasets.Array2D((2, 3), "float32"),
            "kind": datasets.Value("string"),
            "score": datasets.Value("float64"),
        }
    )
    rows = {"grid": list(grid), "kind": ["oak", "ash"] * 6, "score": [0.5 * number for number in range(12)]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "trees"))
    splits = load_data(
        DataSpec(source="huggingface", path="trees", params={"inputs": "grid", "label": "kind"}), store, folder=tmp_path
    )
    assert splits.train[0].shape[1:] == (2, 3) and "classes: ash, oak" in splits.how
    found = {tuple(sample.flatten().tolist()) for _, (inputs, _) in splits.named() for sample in inputs}
    assert found == {tuple(sample.flatten().tolist()) for sample in grid}
