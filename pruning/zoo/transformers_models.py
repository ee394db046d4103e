"""Models of Hugging Face's transformers, built from a configuration: ``transformers/bert`` with ``task: text-classification``.

Fresh weights; trained ones come as safetensors (``model.weights``), under the names transformers gives them.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

from pruning.signature import Packed, Port, Signature

TASKS = {
    "text-classification": "AutoModelForSequenceClassification",
    "feature-extraction": "AutoModel",
    "image-classification": "AutoModelForImageClassification",
}


class _Wrapped(nn.Module):
    """A model of transformers inside a module of ours, which takes its weights under their own names."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def rename_weights(self, state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        own = f"{prefix}model."
        if any(name.startswith(own) for name in state):  # as this module itself writes them
            return state
        return {
            f"{own}{name.removeprefix(prefix)}" if name.startswith(prefix) else name: one for name, one in state.items()
        }


class Text(_Wrapped):
    """A text model of token ids alone; padding is masked. Gives logits ``(N, labels)`` or tokens ``(N, T, dim)``."""

    def __init__(self, model: nn.Module, pad: int) -> None:
        super().__init__(model)
        self.pad = pad

    def forward(self, input_ids: Tensor) -> Tensor:
        # The additive mask of four dimensions that every attention takes: transformers would build it by operators no file knows.
        keep = (input_ids != self.pad).to(torch.float32)
        penalty = (1.0 - keep)[:, None, None, :] * -1e4
        given = self.model(input_ids=input_ids, attention_mask=penalty)
        return _output(given)


class Pixels(_Wrapped):
    """An image model: ``(N, C, H, W)`` to logits."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        return _output(self.model(pixel_values=pixel_values))


def create(name: str, task: str = "text-classification", **params: Any) -> nn.Module:
    """Return a model of transformers with fresh weights, its attention written out.

    Args:
        name: A ``model_type`` of transformers: ``bert``, ``distilbert``, ``roberta``, ``vit``, ...
        task: One of ``TASKS``.
        params: Of its configuration (``hidden_size``, ``num_labels``, ...).

    Raises:
        ValueError: For another task.
    """
    if task not in TASKS:
        raise ValueError(f"task {task!r} is not one of {', '.join(TASKS)}")
    config = transformers.AutoConfig.for_model(name, **params)
    config.architectures = config.architectures or []  # of some kinds transformers looks it up, and finds None
    made = getattr(transformers, TASKS[task]).from_config(config, attn_implementation="eager")
    if task == "image-classification":
        return Pixels(made)
    port = Port("input_ids", ("batch", "tokens"), torch.int64)
    outputs = (
        ("logits", ("batch", int(config.num_labels)))
        if task == "text-classification"
        else ("last_hidden_state", ("batch", "tokens", int(config.hidden_size)))
    )
    return Packed(Text(made, int(config.pad_token_id or 0)), Signature((port,), (Port(*outputs),)))


def _output(given: Any) -> Tensor:
    found: Tensor = given.logits if hasattr(given, "logits") else given.last_hidden_state
    return found
