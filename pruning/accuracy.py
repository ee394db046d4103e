"""Accuracy on a split: the share of samples whose highest logit is the label.

Without labels the metric is ``agreement``: the same share, against the dense model's own answers as labels.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from domain.ports import Hold
from pruning.precision import Compute

EVALUATION_BATCH = 250


def predict(
    model: nn.Module,
    inputs: Tensor,
    compute: Compute,
    *,
    hold: Hold = nullcontext,
    batch: int = EVALUATION_BATCH,
    is_rough: bool = False,
) -> Tensor:
    """Run a model in eval mode, batch by batch, in fp32: the precision of the file a user gets.

    Args:
        model: On ``compute.device``; left in the mode it was in.
        inputs: Shape ``(N, ...)``, anywhere.
        compute: Where to run.
        hold: Entered around every batch.
        batch: Samples a forward pass.
        is_rough: Run in ``compute``'s own precision instead, which may be twice as fast.

    Returns:
        Logits of shape ``(N, classes)``, float32, on the CPU.
    """
    was_training = model.training
    model.eval()
    parts = []
    try:
        for chunk in inputs.split(batch):
            with hold(), torch.no_grad(), compute.autocast() if is_rough else nullcontext():
                parts.append(model(compute.place(chunk)).float().cpu())
    finally:
        model.train(was_training)
    return torch.cat(parts)


def accuracy_of(logits: Tensor, labels: Tensor) -> float:
    """Return the share of rows of ``(N, classes)`` whose largest logit is at the label of ``(N,)``; NaN rows are wrong."""
    right = (logits.argmax(1) == labels) & torch.isfinite(logits).all(1)
    return int(right.sum()) / len(right)


def evaluate(model: nn.Module, inputs: Tensor, labels: Tensor, compute: Compute, *, hold: Hold = nullcontext) -> float:
    """Return the accuracy of a model on a split, between 0 and 1."""
    return accuracy_of(predict(model, inputs, compute, hold=hold), labels)
