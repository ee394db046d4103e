"""torch's own attention, which keeps query, key and value in one packed weight, in layers of their own: heads can be cut then."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pruning.heads import Heads

PARTS = ("query", "key", "value")


class UnpackedAttention(nn.Module):
    """What ``nn.MultiheadAttention`` with ``batch_first`` computes of one sequence with itself; loads its weights as well."""

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        super().__init__()
        self.head_dim = packed.head_dim
        has_bias = packed.in_proj_bias is not None
        self.query, self.key, self.value = (nn.Linear(packed.embed_dim, packed.embed_dim, bias=has_bias) for _ in PARTS)
        self.proj = nn.Linear(packed.embed_dim, packed.embed_dim, bias=has_bias)
        self.dropout = packed.dropout
        self.load_state_dict(_unpacked(packed.state_dict(), ""))

    def head_groups(self) -> tuple[Heads, ...]:
        return (Heads(makes=PARTS, reads=("proj",), head_dim=self.head_dim),)

    def rename_weights(self, state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Take a packed attention's names in a file of weights for this one's."""
        return _unpacked(state, prefix)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False) -> tuple[Tensor, None]:
        del need_weights  # nobody who asks for them is unpacked
        heads = [
            layer(tokens).unflatten(2, (-1, self.head_dim)).transpose(1, 2)
            for layer, tokens in ((self.query, query), (self.key, key), (self.value, value))
        ]
        weights = torch.softmax(heads[0] @ heads[1].transpose(-2, -1) * self.head_dim**-0.5, dim=-1)
        weights = nn.functional.dropout(weights, self.dropout, self.training)
        return self.proj((weights @ heads[2]).transpose(1, 2).flatten(2)), None


def unpack_attention(model: nn.Module) -> nn.Module:
    """Put an ``UnpackedAttention`` in the place of every plain ``nn.MultiheadAttention`` with the batch first."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.MultiheadAttention and _is_plain(child):
                setattr(module, name, UnpackedAttention(child))
    return model


def _is_plain(packed: nn.MultiheadAttention) -> bool:
    is_odd = packed.bias_k is not None or packed.add_zero_attn or packed.in_proj_weight is None
    return packed.batch_first and not is_odd


def _unpacked(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    found = dict(state)
    for kind in ("weight", "bias"):
        packed = found.pop(f"{prefix}in_proj_{kind}", None)
        if packed is not None:
            found |= {f"{prefix}{part}.{kind}": piece for part, piece in zip(PARTS, packed.chunk(3), strict=True)}
        out = found.pop(f"{prefix}out_proj.{kind}", None)
        if out is not None:
            found[f"{prefix}proj.{kind}"] = out
    return found
