"""A torchvision whose compiled half does not fit this torch.

On Linux the index gives a torchvision for CUDA beside a torch for the CPU; its library then does not load, and without two of its
operators it does not even import. Classifiers use none of them: they are declared here, without code, and say so when they are
called.
"""

from __future__ import annotations

from functools import cache

import torch

OPERATORS = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@cache
def declare_missing_operators() -> torch.library.Library | None:
    """Declare what torchvision registers for at import, where importing it fails for want of it; returns what keeps them alive.

    Raises:
        ImportError: Where torchvision, which timm needs too, is not installed.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    else:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in OPERATORS:
        library.define(f"{name}{SCHEMA}")
    import torchvision  # noqa: F401

    return library
