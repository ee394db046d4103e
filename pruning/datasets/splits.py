"""Train, val and test, checked: every later step may rely on what is said here."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from domain.errors import FieldProblem, Invalid

Pair = tuple[Tensor, Tensor | None]
"""Inputs of shape ``(N, ...)`` and labels of shape ``(N,)``: classes as int64, ratings as float32; labels may be None."""

VAL_SHARE = 0.15
TEST_SHARE = 0.15
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

    @property
    def has_labels(self) -> bool:
        return all(labels is not None for _, labels in (self.train, self.val, self.test))


def as_splits(made: object) -> CheckedSplits:
    """Turn what a dataset gave into checked pairs of tensors, cutting missing splits from train.

    Raises:
        Invalid: ``data_missing``, ``data_shape``, ``data_empty`` or ``data_not_finite``.
    """
    if not isinstance(made, Splits):
        raise _problem("data", "data_shape", f"A dataset must give pruning.datasets.Splits, not {type(made).__name__}.")
    if made.train is None:
        raise _problem("data.train_inputs", "data_missing", "There is no train split, and nothing to cut one from.")
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
    if labels is None or labels.is_floating_point():
        return shuffled
    ranks = torch.empty(total, dtype=torch.float64)
    for label in labels.unique():
        members = shuffled[labels[shuffled] == label]
        jitter = torch.rand(1, generator=generator, dtype=torch.float64)
        ranks[members] = (torch.arange(len(members), dtype=torch.float64) + jitter) / len(members)
    return torch.argsort(ranks, stable=True)


def check_labels(splits: CheckedSplits, classes: int) -> None:
    """Check that labels are classes of the model.

    Raises:
        Invalid: ``data_shape`` where they are no whole numbers, ``labels_out_of_range``; both name the split.
    """
    for name, (_, labels) in _named(splits):
        if labels is not None and labels.is_floating_point():
            raise _problem(f"data.{name}_labels", "data_shape", f"{name}_labels must hold whole class numbers.")
        if labels is not None and (int(labels.min()) < 0 or int(labels.max()) >= classes):
            worst = int(labels.max()) if int(labels.max()) >= classes else int(labels.min())
            raise _problem(
                f"data.{name}_labels",
                "labels_out_of_range",
                f"Label {worst} in {name}_labels is outside the model's classes 0..{classes - 1}; give the model as many"
                " classes as the data has (`model.params.classes`) or mend the labels.",
            )


def _named(splits: CheckedSplits) -> tuple[tuple[str, Pair], ...]:
    return ("train", splits.train), ("val", splits.val), ("test", splits.test)


def _check(splits: CheckedSplits) -> None:
    shape = splits.train[0].shape[1:]
    for name, (inputs, labels) in _named(splits):
        field = f"data.{name}_inputs"
        if len(inputs) == 0:
            raise _problem(field, "data_empty", f"The {name} split has no samples.")
        if inputs.ndim < 2:
            raise _problem(field, "data_shape", f"{name}_inputs has shape {tuple(inputs.shape)}; want (samples, ...).")
        if inputs.shape[1:] != shape:
            message = f"A sample of {name} has shape {tuple(inputs.shape[1:])}, one of train {tuple(shape)}."
            raise _problem(field, "data_shape", message)
        if not bool(torch.isfinite(inputs).all()):
            raise _problem(field, "data_not_finite", f"{name}_inputs holds NaN or infinity; clean the data.")
        if labels is not None and labels.shape != (len(inputs),):
            message = f"{name}_labels has shape {tuple(labels.shape)}; want ({len(inputs)},), one class per sample."
            raise _problem(f"data.{name}_labels", "data_shape", message)


def _as_pair(name: str, split: object) -> Pair | None:
    if split is None:
        return None
    if isinstance(split, Dataset):
        if not isinstance(split, Sized):
            raise _problem(f"data.{name}", "data_shape", f"The {name} split has no length; give a map-style dataset.")
        samples: list[Any] = [split[index] for index in range(len(split))]
        split = (
            torch.stack([torch.as_tensor(sample[0]) for sample in samples]),
            None if samples[0][1] is None else torch.as_tensor([int(sample[1]) for sample in samples]),
        )
    if not isinstance(split, (tuple, list)) or len(split) != 2 or not isinstance(split[0], Tensor):
        raise _problem(f"data.{name}", "data_shape", f"The {name} split must be an (inputs, labels) pair of tensors.")
    inputs, labels = split
    if labels is not None:
        if labels.is_floating_point() and not bool(torch.isfinite(labels).all()):
            raise _problem(f"data.{name}_labels", "data_not_finite", f"{name}_labels holds NaN or infinity.")
        is_rating = labels.is_floating_point() and not bool((labels == labels.round()).all())
        labels = labels.to(torch.float32 if is_rating else torch.int64)
    return inputs.to(torch.float32), labels


def _problem(field: str, code: str, message: str) -> Invalid:
    return Invalid(message, code=code, fields=[FieldProblem(field, message)])
