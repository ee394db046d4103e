"""The weight level: single weights set to zero and held there while the network recovers. Shapes stay as they are.

    row:0.75   the smallest three quarters of each row, by magnitude; a row is all weights of one output
    2:4        two of every four weights along the input, the smallest by magnitude: the pattern that sparse matrix units read

Whether a runtime gains by it is for a measurement to say (``search.zeros``); the file compresses better in any case.

Source: magnitude pruning, Han et al., arXiv:1506.02626; N:M sparsity, Mishra et al., arXiv:2104.08378.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from domain.candidate import parse_zeros

LEAST_ROW = 16  # weights of a row: below it a layer is left alone (depthwise filters), there is nothing to spare

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def set_zeros(model: nn.Module, zeros: str) -> Callable[[], None]:
    """Set weights of every layer with rows of 16 and more to zero, in place; return what sets the same ones to zero again.

    To be called after every step of an optimizer. Applied to a model that has the pattern already it changes nothing.

    Args:
        model: On any device.
        zeros: As in ``Candidate.zeros``; empty: nothing is done, and nothing is done again.

    Raises:
        Invalid: ``bad_zeros``.
    """
    if not zeros:
        return lambda: None
    kept: list[tuple[Tensor, Tensor]] = []
    for module in model.modules():
        if isinstance(module, _LAYERS) and module.weight[0].numel() >= LEAST_ROW:
            kept.append((module.weight, kept_weights(module.weight.detach(), zeros)))

    def again() -> None:
        with torch.no_grad():
            for weight, mask in kept:
                weight.mul_(mask)

    again()
    return again


def kept_weights(weight: Tensor, zeros: str) -> Tensor:
    """Return which weights are kept, as booleans of the weight's shape ``(out, in, ...)``; ties go to the earlier one.

    Raises:
        Invalid: ``bad_zeros``.
    """
    fraction, pattern = parse_zeros(zeros)
    inputs_last = weight.abs().movedim(1, -1)  # (out, ..., in): a pattern runs along the inputs of one position
    rows = inputs_last.reshape(len(weight), -1)
    mask = torch.ones_like(rows, dtype=torch.bool)
    if pattern is None:
        _drop_smallest(rows, mask, round(rows.shape[1] * fraction))
    else:
        keep, of = pattern
        inputs = inputs_last.shape[-1]
        whole = inputs - inputs % of  # what is left over at the end of a position stays
        folded = rows.view(-1, inputs)[:, :whole].reshape(-1, of)
        inner = torch.ones_like(folded, dtype=torch.bool)
        _drop_smallest(folded, inner, of - keep)
        mask.view(-1, inputs)[:, :whole] = inner.view(-1, whole)
    return mask.view(inputs_last.shape).movedim(-1, 1)


def share_of_zeros(model: nn.Module) -> float:
    """Return the share of a model's parameters that are zero."""
    parameters = list(model.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    return sum(int((parameter == 0).sum()) for parameter in parameters) / max(1, total)


def _drop_smallest(rows: Tensor, mask: Tensor, count: int) -> None:
    if count > 0:
        # A stable sort, so that equal weights give the same mask on every machine: the later of them goes.
        order = torch.argsort(rows, dim=1, descending=True, stable=True)
        mask.scatter_(1, order[:, rows.shape[1] - count :], False)
