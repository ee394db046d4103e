"""What a model costs on paper: multiply-accumulates and parameters. Neither is ever called a speed-up."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class LayerCost:
    """One call of one layer, per sample: multiply-accumulates, and positions of its output (1 for a vector)."""

    macs: int
    positions: int


def layer_costs(model: nn.Module, example: Tensor) -> dict[str, LayerCost]:
    """Count multiply-accumulates of every convolution and linear layer, in the order they run.

    Args:
        model: Any module; it is left as it was.
        example: Inputs of shape ``(N, ...)``; counts are divided by ``N``.

    Returns:
        Module name -> cost per sample. A layer called twice counts twice; biases and other layers count as nothing.
    """
    names = {module: name for name, module in model.named_modules()}
    costs: dict[str, LayerCost] = {}
    samples = example.shape[0]

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, _CONVOLUTIONS):
            per_output = module.in_channels // module.groups * math.prod(module.kernel_size)
            macs, positions = output.numel() * per_output, math.prod(output.shape[2:])
        elif isinstance(module, _TRANSPOSED):
            per_input = module.out_channels // module.groups * math.prod(module.kernel_size)
            macs, positions = inputs[0].numel() * per_input, math.prod(output.shape[2:])
        else:
            assert isinstance(module, nn.Linear)
            macs, positions = output.numel() * module.in_features, math.prod(output.shape[1:-1])
        before = costs.get(names[module])
        costs[names[module]] = LayerCost(macs // samples + (before.macs if before else 0), positions)

    hooks = [
        module.register_forward_hook(record)
        for module in model.modules()
        if isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear))
    ]
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(example)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return costs


def count_macs(model: nn.Module, example: Tensor) -> int:
    """Return multiply-accumulates per sample of convolutions and linear layers."""
    return sum(cost.macs for cost in layer_costs(model, example).values())


def count_params(model: nn.Module) -> int:
    """Return the number of parameters; batch-norm buffers are none."""
    return sum(parameter.numel() for parameter in model.parameters())
