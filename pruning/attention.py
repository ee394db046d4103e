"""Attentions of libraries whose heads can be cut, by the names of their layers: what their authors do not declare, we do.

A layout that fits a module is still only a claim: ``heads`` believes it if a copy with half of its heads gives what the whole
gives when nobody reads the others. Whatever fits none is refused by its class's name.

Source: the names of timm 1.0 (``timm.layers.Attention``) and transformers 5 (BERT, RoBERTa, ELECTRA, DistilBERT, ViT, DeiT, ...).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Layout:
    """Where a kind of attention keeps its heads; paths are seen from the module.

    Args:
        makes: Layers whose outputs are heads, query first.
        reads: Layers whose inputs are heads; the first that is there counts.
        head_dim: Attribute with the features of a head.
        parts: How often all heads lie side by side in a layer of ``makes``.
        count: Attribute with the number of heads, where the forward reads it.
        features: Attribute with heads times their features, where the forward reads it.
    """

    makes: tuple[str, ...]
    reads: tuple[str, ...]
    head_dim: str
    parts: int = 1
    count: str | None = None
    features: str | None = None


LAYOUTS = (
    Layout(("qkv",), ("proj",), "head_dim", parts=3, count="num_heads", features="attn_dim"),
    Layout(("self.query", "self.key", "self.value"), ("output.dense",), "self.attention_head_size"),
    Layout(("q_lin", "k_lin", "v_lin"), ("out_lin",), "attention_head_size"),
    Layout(("q_proj", "k_proj", "v_proj"), ("o_proj", "out_proj"), "head_dim"),
)


def known_layout(module: nn.Module) -> tuple[Layout, str, int] | None:
    """Return the layout that fits a module, the layer that reads heads, and the features of a head; None where none does."""
    for layout in LAYOUTS:
        reader = next((name for name in layout.reads if isinstance(_get(module, name), nn.Linear)), None)
        head_dim = _get(module, layout.head_dim)
        if reader is None or not isinstance(head_dim, int):
            continue
        if all(isinstance(_get(module, name), nn.Linear) for name in layout.makes):
            return layout, reader, head_dim
    return None


def _get(module: nn.Module, path: str) -> object:
    found: object = module
    for part in path.split("."):
        found = getattr(found, part, None)
    return found
