"""What each block is worth: found by leaving it out alone, once a job."""

from __future__ import annotations

import torch
from torch import nn

from domain.candidate import BlockInfo, is_inside
from pruning.accuracy import predict
from pruning.blocks import drop_blocks, find_blocks
from pruning.cost import layer_costs
from pruning.dense import Dense
from pruning.recovery import reestimate_batch_norm
from pruning.stopwatch import Stopwatch


def score_blocks(dense: Dense, watch: Stopwatch, *, samples: int) -> tuple[BlockInfo, ...]:
    """Skip one block at a time, and note what its weights are like, how far the outputs move and what accuracy is lost.

    The outputs are compared right after the block went; accuracy is taken once batch norm was re-estimated without it.

    Args:
        dense: The job's dense model.
        watch: Told the fraction done; its hold is entered round every batch.
        samples: Samples of val, and half as many of the calibration samples.
    """
    inputs = dense.splits.val[0][:samples]
    labels = dense.labels("val", watch.hold)[:samples]
    whole = predict(dense.model, inputs, dense.compute, hold=watch.hold, is_rough=True)
    costs = layer_costs(dense.model, dense.example)
    blocks = find_blocks(dense.model, dense.groups(), dense.example)
    infos = []
    for number, block in enumerate(blocks):
        model = dense.compute.adopt(drop_blocks(dense.model, (block.name,)))
        skipped = predict(model, inputs, dense.compute, hold=watch.hold, is_rough=True)
        reestimate_batch_norm(model, dense.calibration()[0], dense.compute, hold=watch.hold, samples=samples // 2)
        after = predict(model, inputs, dense.compute, hold=watch.hold, is_rough=True)
        module = dense.model.get_submodule(block.name)
        infos.append(
            BlockInfo(
                name=block.name,
                groups=block.groups,
                macs=sum(cost.macs for name, cost in costs.items() if is_inside(name, (block.name,))),
                params=sum(parameter.numel() for parameter in module.parameters()),
                weight_norm=weight_norm(module),
                output_change=float((skipped - whole).norm() / whole.norm().clamp_min(1e-12)),
                sensitivity=round(dense.score(whole, labels) - dense.score(after, labels), 6),
            )
        )
        watch.tell((number + 1) / len(blocks))
    return tuple(infos)


def weight_norm(module: nn.Module) -> float:
    """Return the L2 norm of a module's convolution and linear weights over the root of their number: their typical size."""
    weights = [
        parameter.detach().float().flatten()
        for parameter in module.parameters()
        if parameter.ndim > 1  # norms and biases are of another kind
    ]
    return float(torch.cat(weights).pow(2).mean().sqrt()) if weights else 0.0
