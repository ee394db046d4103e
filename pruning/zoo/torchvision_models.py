"""torchvision's models: ``torchvision/NAME``, with the parameters of ``torchvision.models.get_model`` (``num_classes``, ...)."""

from __future__ import annotations

from typing import Any

from torch import nn

from pruning.zoo.missing import declare_missing_operators
from pruning.zoo.unpacked import unpack_attention

_OPERATORS = declare_missing_operators()

import torchvision  # noqa: E402 - must have its operators by then


def create(name: str, **params: Any) -> nn.Module:
    """Return a model of torchvision with fresh weights; attention of ``vit_*`` in separate layers, so that heads can go.

    Args:
        name: As ``torchvision.models.list_models()`` has it.
        params: Of ``torchvision.models.get_model``. ``weights`` names what is fetched, where this machine reaches it.
    """
    made: nn.Module = torchvision.models.get_model(name, **params)
    return unpack_attention(made)
