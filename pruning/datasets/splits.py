"""Train, val and test, checked: every later step may rely on what is said here."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pruning.datasets.problems import problem

Pair = tuple[Tensor, Tensor | None]
"""Inputs of shape ``(N, ...)`` and labels ``(N,)`` or ``(N, ...)``: whole numbers as int64, others float32; labels may be None."""

VAL_SHARE = 0.15
TEST_SHARE = 0.15
MOST_CLASSES = 2_000
CUT_SEED = 20_240_501  # fixed: the same file is always cut the same way, whatever the job's seed


@dataclass(frozen=True)
class Splits:
    """Three splits. A plug-in may give map-style datasets in place of pairs; they are read into tensors.

    Args:
        train: What recovery learns from.
        val: What the search is told about.
        test: Touched once, at the end.
        how: How a missing split was cut, for the report.
        max_shift: Pixels an image may be moved by as augmentation without changing its meaning; 0 for none.
    """

    train: Any
    val: Any = None
    test: Any = None
    how: str = ""
    max_shift: int = 0


@dataclass(frozen=True)
class CheckedSplits(Splits):
    """Splits whose members are pairs of tensors of one sample shape, finite and not empty."""

    train: Pair
    val: Pair
    test: Pair

    def named(self) -> tuple[tuple[str, Pair], ...]:
        return ("train", self.train), ("val", self.val), ("test", self.test)

    @property
    def has_labels(self) -> bool:
        return all(labels is not None for _, (_, labels) in self.named())


def as_splits(made: object) -> CheckedSplits:
    """Turn what a dataset gave into checked pairs of tensors, cutting missing splits from train.

    Raises:
        Invalid: ``data_missing``, ``data_shape``, ``data_empty`` or ``data_not_finite``.
    """
    if not isinstance(made, Splits):
        raise problem("data", "data_shape", f"A dataset must give pruning.datasets.Splits, not {type(made).__name__}.")
    if made.train is None:
        raise problem("data.train_inputs", "data_missing", "There is no train split, and nothing to cut one from.")
    pairs = {name: _as_pair(name, getattr(made, name)) for name in ("train", "val", "test")}
    whole = cut_missing(pairs, made.how)
    return replace(whole, max_shift=made.max_shift)


def cut_missing(pairs: dict[str, Pair | None], how: str = "") -> CheckedSplits:
    """Cut val and test from train where they are missing, the same way every time, and check the whole."""
    train = pairs["train"]
    assert train is not None
    cut: dict[str, Pair] = {name: pair for name, pair in pairs.items() if pair is not None}
    notes = [how] if how else []
    missing = [name for name in ("val", "test") if pairs.get(name) is None]
    if missing:
        inputs, labels = train
        total = len(inputs)
        order = stratified_order(labels, total, CUT_SEED)
        for name in missing:
            size = max(1, round(total * (VAL_SHARE if name == "val" else TEST_SHARE)))
            index, order = order[:size], order[size:]
            cut[name] = (inputs[index], None if labels is None else labels[index])
            notes.append(f"{name}: {size} of {total} samples cut from train (stratified, seed {CUT_SEED})")
        cut["train"] = (inputs[order], None if labels is None else labels[order])
    splits = CheckedSplits(cut["train"], cut["val"], cut["test"], how="; ".join(notes))
    _check(splits)
    return splits


def stratified_order(labels: Tensor | None, total: int, seed: int) -> Tensor:
    """Return a seeded order of ``total`` samples in which every prefix holds the classes in proportion."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(total, generator=generator)
    if labels is None or labels.is_floating_point() or labels.ndim > 1:
        return shuffled
    classes = labels.unique()
    if len(classes) > MOST_CLASSES:
        return shuffled  # whole numbers that are no classes
    ranks = torch.empty(total, dtype=torch.float64)
    for label in classes:
        members = shuffled[labels[shuffled] == label]
        jitter = torch.rand(1, generator=generator, dtype=torch.float64)
        ranks[members] = (torch.arange(len(members), dtype=torch.float64) + jitter) / len(members)
    return torch.argsort(ranks, stable=True)


def _check(splits: CheckedSplits) -> None:
    shape = splits.train[0].shape[1:]
    for name, (inputs, labels) in splits.named():
        field = f"data.{name}_inputs"
        if len(inputs) == 0:
            raise problem(field, "data_empty", f"The {name} split has no samples.")
        if inputs.ndim < 2:
            raise problem(field, "data_shape", f"{name}_inputs has shape {tuple(inputs.shape)}; want (samples, ...).")
        if inputs.shape[1:] != shape:
            message = f"A sample of {name} has shape {tuple(inputs.shape[1:])}, one of train {tuple(shape)}."
            raise problem(field, "data_shape", message)
        if not bool(torch.isfinite(inputs).all()):
            raise problem(field, "data_not_finite", f"{name}_inputs holds NaN or infinity; clean the data.")
        if labels is not None and (labels.ndim == 0 or len(labels) != len(inputs)):
            message = f"{name}_labels has shape {tuple(labels.shape)}; want ({len(inputs)}, ...), the samples first."
            raise problem(f"data.{name}_labels", "data_shape", message)


def _as_pair(name: str, split: object) -> Pair | None:
    if split is None:
        return None
    if isinstance(split, Dataset):
        if not isinstance(split, Sized):
            raise problem(f"data.{name}", "data_shape", f"The {name} split has no length; give a map-style dataset.")
        samples: list[Any] = [split[index] for index in range(len(split))]
        split = (
            torch.stack([torch.as_tensor(sample[0]) for sample in samples]),
            None if samples[0][1] is None else torch.stack([torch.as_tensor(sample[1]) for sample in samples]),
        )
    if not isinstance(split, (tuple, list)) or len(split) != 2 or not isinstance(split[0], Tensor):
        raise problem(f"data.{name}", "data_shape", f"The {name} split must be an (inputs, labels) pair of tensors.")
    inputs, labels = split
    if labels is not None:
        if labels.is_floating_point() and not bool(torch.isfinite(labels).all()):
            raise problem(f"data.{name}_labels", "data_not_finite", f"{name}_labels holds NaN or infinity.")
        is_rating = labels.is_floating_point() and not bool((labels == labels.round()).all())
        labels = labels.to(torch.float32 if is_rating else torch.int64)
    return inputs.to(torch.float32), labels
