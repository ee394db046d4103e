"""timm's models: ``timm/NAME``, with the parameters of ``timm.create_model`` (``num_classes``, ``in_chans``, ``img_size``, ...)."""

from __future__ import annotations

from typing import Any

from torch import nn

from pruning.zoo.missing import declare_missing_operators

_OPERATORS = declare_missing_operators()

import timm  # noqa: E402 - imports torchvision, which must have its operators by then


def create(name: str, **params: Any) -> nn.Module:
    """Return a model of timm with fresh weights; its ``Attention`` is written out, as every exporter and runtime knows it.

    Args:
        name: As ``timm.list_models()`` has it.
        params: Of ``timm.create_model``. ``pretrained`` fetches weights, where this machine reaches timm's hub.
    """
    timm.layers.set_fused_attn(False)
    made: nn.Module = timm.create_model(name, **params)
    for module in made.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]
    return made
