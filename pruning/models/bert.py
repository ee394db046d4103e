"""A BERT encoder that gives one vector a text; heads, features of feed-forwards and halves of layers can go.

Source: Devlin et al., BERT, NAACL 2019, arXiv:1810.04805; mean over tokens and unit length as in Reimers and Gurevych,
Sentence-BERT, EMNLP 2019, arXiv:1908.10084.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pruning.heads import Heads
from pruning.signature import Packed, Port, Signature

PAD = 0
HF_NAMES = {
    "embeddings.word_embeddings": "words",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "types",
    "embeddings.LayerNorm": "norm",
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.proj",
    "attention.output.LayerNorm": "attention.norm",
    "intermediate.dense": "mlp.up",
    "output.dense": "mlp.down",
    "output.LayerNorm": "mlp.norm",
}


class Attention(nn.Module):
    """Self-attention, its skip, and the normalisation after it; ``(N, tokens, dim)`` in and out."""

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.head_dim = dim // heads
        self.query, self.key, self.value, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        self.norm = nn.LayerNorm(dim, eps=eps)

    def head_groups(self) -> tuple[Heads, ...]:
        return (Heads(makes=("query", "key", "value"), reads=("proj",), head_dim=self.head_dim),)

    def forward(self, inputs: Tensor, penalty: Tensor) -> Tensor:
        query, key, value = (self._split(layer(inputs)) for layer in (self.query, self.key, self.value))
        weights = torch.softmax(query @ key.transpose(-2, -1) * self.head_dim**-0.5 + penalty, dim=-1)
        return self.norm(inputs + self.proj((weights @ value).transpose(1, 2).flatten(2)))

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(2, (-1, self.head_dim)).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear layers, their skip, and the normalisation after it."""

    def __init__(self, dim: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)
        self.norm = nn.LayerNorm(dim, eps=eps)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.norm(inputs + self.down(nn.functional.gelu(self.up(inputs))))


class Layer(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.attention = Attention(dim, heads, eps)
        self.mlp = FeedForward(dim, hidden, eps)

    def forward(self, inputs: Tensor, penalty: Tensor) -> Tensor:
        return self.mlp(self.attention(inputs, penalty))


class SentenceEncoder(nn.Module):
    """Token ids ``(N, tokens)``, filled up with zeros, to vectors ``(N, dim)`` of length one."""

    def __init__(
        self, vocabulary: int, dim: int, depth: int, heads: int, hidden: int, longest: int, eps: float = 1e-12
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, dim)
        self.positions = nn.Embedding(longest, dim)
        self.types = nn.Embedding(2, dim)
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.layers = nn.ModuleList(Layer(dim, heads, hidden, eps) for _ in range(depth))

    def forward(self, ids: Tensor) -> Tensor:
        is_word = (ids != PAD).to(self.words.weight.dtype)
        tokens = self.words(ids) + self.positions.weight[: ids.shape[1]] + self.types.weight[0]
        tokens = self.norm(tokens)
        penalty = (1.0 - is_word)[:, None, None, :] * -1e4
        for layer in self.layers:
            tokens = layer(tokens, penalty)
        mean = (tokens * is_word[..., None]).sum(1) / is_word.sum(1, keepdim=True).clamp_min(1e-9)
        return mean / mean.norm(dim=1, keepdim=True).clamp_min(1e-9)


def bert_encoder(
    vocabulary: int = 30522,
    dim: int = 384,
    depth: int = 6,
    heads: int = 12,
    hidden: int = 1536,
    longest: int = 512,
) -> Packed:
    """Return a sentence encoder; the defaults are MiniLM-L6's. Its file takes ``input_ids`` and gives ``sentence_embedding``.

    Args:
        vocabulary: Token ids; 0 fills up short texts.
        dim: Features of a token, and of the result.
        depth: Layers.
        heads: Attention heads a layer.
        hidden: Features inside a feed-forward.
        longest: Tokens a text may have.
    """
    signature = Signature(
        (Port("input_ids", ("batch", "tokens"), torch.int64),), (Port("sentence_embedding", ("batch", dim)),)
    )
    return Packed(SentenceEncoder(vocabulary, dim, depth, heads, hidden, longest), signature)


def from_hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a BERT's weights under the names they have here; what an encoder does not use (the pooler) is left out."""
    made = {}
    for name, tensor in state.items():
        module, _, leaf = name.removeprefix("bert.").rpartition(".")
        prefix = ""
        if module.startswith("encoder.layer."):
            _, _, number, module = module.split(".", 3)
            prefix = f"layers.{number}."
        if module in HF_NAMES and leaf in {"weight", "bias"}:
            made[f"{prefix}{HF_NAMES[module]}.{leaf}"] = tensor
    return made
