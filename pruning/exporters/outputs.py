"""What every exporter holds its files to: they give what the module gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from domain.errors import PruneloopError

RELATIVE_TOLERANCE = 1e-3
ABSOLUTE_TOLERANCE = 1e-4  # of the outputs' largest value
PROBABILITY_ROUNDING = float(np.finfo(np.float32).eps)  # of what is worked out from 1, however near 0 it is


class ExportFailed(PruneloopError):
    """A file could not be made, is not valid, or does not give what the module gives."""

    default_code = "export_failed"


def check_outputs(
    format: str, feeds: Mapping[str, np.ndarray], given: Mapping[str, Tensor], outputs: Tensor
) -> Mapping[str, np.ndarray]:
    """Compare a file's outputs with the module's, and return the check's arrays: ``input_<name>``, ``output_<name>``.

    Args:
        format: For people.
        feeds: What the file was fed, by its own names.
        given: What it gave, in order, by its own names; each ``(N, ...)``.
        outputs: What the module gives, ``(N, values)``: all outputs side by side.

    Raises:
        ExportFailed: ``export_differs``.
    """
    lengths = [output[0].numel() for output in given.values()]
    if sum(lengths) != outputs.flatten(1).shape[1]:
        compare(format, joined(list(given.values())), outputs)
    arrays = {f"input_{name}": array for name, array in feeds.items()}
    parts = outputs.flatten(1).split(lengths, dim=1)
    for (name, output), part in zip(given.items(), parts, strict=True):
        wanted = part.reshape(output.shape) if len(output) == len(part) else part
        compare(format, output, wanted, name if len(given) > 1 else "")
        arrays[f"output_{name}"] = wanted.float().cpu().numpy()
    return arrays


def compare(format: str, given: Tensor, wanted: Tensor, name: str = "") -> None:
    """Raise ExportFailed ``export_differs`` where an output of a file is not what the module gives."""
    found, expected = given.float().cpu().numpy(), wanted.float().cpu().numpy()
    which = f" {name}" if name else ""
    if found.shape != expected.shape:
        message = f"The {format} file gives outputs{which} of shape {found.shape}, the module {expected.shape}."
        raise ExportFailed(message, code="export_differs")
    scale = float(np.abs(expected).max(initial=0.0))
    least = ABSOLUTE_TOLERANCE * max(scale, 1e-4)
    if float(expected.min(initial=0.0)) >= 0 and scale <= 1:  # a sigmoid's or softmax's
        least = max(least, PROBABILITY_ROUNDING)
    if not np.allclose(found, expected, rtol=RELATIVE_TOLERANCE, atol=least):
        worst = float(np.abs(found - expected).max())
        raise ExportFailed(
            f"The {format} file gives other outputs{which} than the module: off by {worst:.3g} where the largest is"
            f" {scale:.3g}.",
            code="export_differs",
        )


def joined(outputs: Sequence[Tensor]) -> Tensor:
    """Return outputs ``(N, ...)`` as one ``(N, values)``, side by side; one of two dimensions as it is."""
    if len(outputs) == 1 and outputs[0].ndim == 2:
        return outputs[0].float()
    return torch.cat([output.flatten(1).float() for output in outputs], dim=1)


def with_outputs(arrays: Mapping[str, np.ndarray], given: Tensor) -> dict[str, np.ndarray]:
    """Return a check's arrays with other outputs: ``given`` ``(N, values)`` holds them side by side, as ``joined`` does."""
    names = [name for name in arrays if name.startswith("output_")]
    lengths = [arrays[name][0].size for name in names]
    parts = given.float().cpu().split(lengths, dim=1)
    made = {name: part.reshape(arrays[name].shape).numpy() for name, part in zip(names, parts, strict=True)}
    return {**arrays, **made}


def by_order(outputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the outputs of a file that has no names for them: ``output``, or ``output_0``, ``output_1``, ..."""
    if len(outputs) == 1:
        return {"output": outputs[0]}
    return {f"output_{number}": output for number, output in enumerate(outputs)}
