"""What every exporter holds its files to: they give what the module gives."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from domain.errors import PruneloopError

RELATIVE_TOLERANCE = 1e-3
ABSOLUTE_TOLERANCE = 1e-4  # of the outputs' largest value


class ExportFailed(PruneloopError):
    """A file could not be made, is not valid, or does not give what the module gives."""

    default_code = "export_failed"


def check_outputs(format: str, given: Tensor, inputs: Tensor, wanted: Tensor) -> Mapping[str, np.ndarray]:
    """Compare a file's outputs with the module's, and return the check's arrays: ``input_input``, ``output_output``.

    Raises:
        ExportFailed: ``export_differs``.
    """
    found, expected = given.float().cpu().numpy(), wanted.float().cpu().numpy()
    scale = float(np.abs(expected).max())
    if found.shape != expected.shape:
        message = f"The {format} file gives outputs of shape {found.shape}, the module {expected.shape}."
        raise ExportFailed(message, code="export_differs")
    if not np.allclose(found, expected, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE * max(scale, 1e-6)):
        worst = float(np.abs(found - expected).max())
        raise ExportFailed(
            f"The {format} file gives other outputs than the module: off by {worst:.3g} where the largest is {scale:.3g}.",
            code="export_differs",
        )
    return {"input_input": inputs.float().cpu().numpy(), "output_output": expected}
