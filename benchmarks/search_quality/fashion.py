"""Fashion-MNIST as an npz, cut from the files of Debian's package ``dataset-fashion-mnist`` (MIT), where that is installed.

Harder than digits, so that fronts differ by more than the noise of a test split; a small part of it trains, so that a recovery fits
into the seconds of a run, and half of its test images judge.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

DATA = "fashion-mnist"
PLACE = Path("/usr/share/datasets/fashion-mnist")
TRAIN, VAL, TEST = 6000, 1000, 5000
MEAN, DEVIATION = 0.2860, 0.3530  # of the whole train split, scaled to 0..1


def missing(place: Path = PLACE) -> str | None:
    """Return what to install where the files are not; else None."""
    if (place / "train-images-idx3-ubyte.gz").exists():
        return None
    return f"its data is not in {place}; run apt-get install dataset-fashion-mnist"


def write_npz(path: Path, place: Path = PLACE) -> Path:
    """Write the splits once, in the form jobs take; returns the path. The files are shuffled as they come."""
    if path.exists():
        return path
    images, labels = _read(place, "train")
    test_images, test_labels = _read(place, "t10k")
    parts = {
        "train": (images[:TRAIN], labels[:TRAIN]),
        "val": (images[TRAIN : TRAIN + VAL], labels[TRAIN : TRAIN + VAL]),
        "test": (test_images[:TEST], test_labels[:TEST]),
    }
    arrays = {
        f"{name}_inputs": ((part[:, None] / 255 - MEAN) / DEVIATION).astype(np.float32)
        for name, (part, _) in parts.items()
    }
    arrays |= {f"{name}_labels": answers.astype(np.int64) for name, (_, answers) in parts.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    part_path = path.with_suffix(".part.npz")
    np.savez(part_path, allow_pickle=False, **arrays)
    part_path.replace(path)
    return path


def _read(place: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Read idx files: a header of 16 bytes before images, 8 before labels."""
    images = gzip.decompress((place / f"{name}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((place / f"{name}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)
