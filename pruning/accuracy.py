"""A model's outputs on a split, and the accuracy of a classifier; other metrics are ``pruning.metrics``."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from domain.ports import Hold
from pruning.metrics.scores import accuracy
from pruning.precision import Compute

# Samples of a forward pass. On a CPU the tensors of a larger one are given back to the system and asked for anew by every layer:
# with 250 a MobileNet took 3.7 times as long as with 64.
CPU_BATCH = 64
GPU_BATCH = 250


def predict(
    model: nn.Module,
    inputs: Tensor,
    compute: Compute,
    *,
    hold: Hold = nullcontext,
    is_rough: bool = False,
) -> Tensor:
    """Run a model in eval mode, batch by batch, in fp32: the precision of the file a user gets.

    Args:
        model: On ``compute.device``; left in the mode it was in.
        inputs: Shape ``(N, ...)``, anywhere.
        compute: Where to run.
        hold: Entered around every batch.
        is_rough: Run in ``compute``'s own precision instead, which may be twice as fast.

    Returns:
        Logits of shape ``(N, classes)``, float32, on the CPU.
    """
    was_training = model.training
    model.eval()
    batch = CPU_BATCH if compute.device.type == "cpu" else GPU_BATCH
    parts = []
    try:
        for chunk in inputs.split(batch):
            with hold(), torch.no_grad(), compute.autocast() if is_rough else nullcontext():
                parts.append(model(compute.place(chunk)).float().cpu())
    finally:
        model.train(was_training)
    return torch.cat(parts)


def evaluate(model: nn.Module, inputs: Tensor, labels: Tensor, compute: Compute, *, hold: Hold = nullcontext) -> float:
    """Return the accuracy of a classifier on a split, between 0 and 1."""
    return accuracy(predict(model, inputs, compute, hold=hold), labels)
