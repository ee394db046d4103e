"""What each block is worth: found by leaving it out alone, once a job."""

from __future__ import annotations

import torch
from torch import nn

from domain.candidate import BlockInfo, is_inside
from pruning.blocks import drop_blocks, find_blocks
from pruning.cost import layer_costs
from pruning.rough import Rough
from pruning.stopwatch import Stopwatch


def score_blocks(rough: Rough, watch: Stopwatch) -> tuple[BlockInfo, ...]:
    """Skip one block at a time, and note what its weights are like, how far the outputs move and what accuracy is lost.

    The outputs are compared right after the block went; accuracy is taken once batch norm was re-estimated without it.

    Args:
        rough: Of the job's dense model.
        watch: Told the fraction done.
    """
    dense, whole = rough.dense, rough.whole
    costs = layer_costs(dense.model, dense.example)
    blocks = find_blocks(dense.model, dense.groups(), dense.example)
    infos = []
    for number, block in enumerate(blocks):
        model = dense.compute.adopt(drop_blocks(dense.model, (block.name,)))
        skipped = rough.outputs(model)
        module = dense.model.get_submodule(block.name)
        infos.append(
            BlockInfo(
                name=block.name,
                groups=block.groups,
                macs=sum(cost.macs for name, cost in costs.items() if is_inside(name, (block.name,))),
                params=sum(parameter.numel() for parameter in module.parameters()),
                weight_norm=weight_norm(module),
                output_change=float((skipped - whole).norm() / whole.norm().clamp_min(1e-12)),
                sensitivity=rough.lost(model),
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
