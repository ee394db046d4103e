"""What a build writes: which files of those asked for, of which samples, and what they must give."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn

from domain.build import BuildRequest
from domain.errors import FieldProblem, Invalid
from domain.formats import why_not
from pruning.dense import Dense
from pruning.exporters.outputs import joined
from pruning.signature import file_outputs


def wanted_files(formats: tuple[str, ...], precisions: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Return format -> the precisions it has of those asked.

    One request serves targets of several runtimes, and not every format has what another target asks: the rest is not made.

    Raises:
        Invalid: ``precision_not_available`` where nothing of the first format, the one that is measured, would be made.
    """
    wanted = {name: tuple(p for p in precisions if why_not(name, precision=p) is None) for name in formats}
    if not wanted[formats[0]]:
        code, message = why_not(formats[0], precision=precisions[0]) or ("precision_not_available", "")
        raise Invalid(message, code=code, fields=[FieldProblem("candidate.precision", message)])
    return wanted


def to_export(dense: Dense, model: nn.Module, request: BuildRequest) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a model on the CPU, real samples of a file's batch, and what its file must give for them."""
    on_cpu = deepcopy(model).to("cpu").to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    inputs = _check_inputs(dense.splits.val[0], request.batch, request.seed)
    with torch.no_grad():
        return on_cpu, inputs, joined(file_outputs(on_cpu, inputs))


def _check_inputs(inputs: Tensor, batch: int, seed: int) -> Tensor:
    """Return ``batch`` real samples of val, seeded, repeated where val is smaller."""
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    index = order.repeat(-(-batch // len(order)))[:batch]
    return torch.from_numpy(no_denormals(inputs[index].numpy())).contiguous()


def no_denormals(array: np.ndarray) -> np.ndarray:
    """Set denormal values to zero: they are slow on some devices and would be timed as such."""
    if array.dtype.kind != "f":
        return array
    tiny = np.finfo(array.dtype).tiny
    return np.where(np.abs(array) < tiny, np.zeros((), array.dtype), array)
