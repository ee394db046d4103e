"""A small vision transformer.

Source: Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021, arXiv:2010.11929, with pre-normalisation, the mean over
tokens in place of a class token (Zhai et al., arXiv:2106.04560, section 3.3) and separate query, key and value layers, so that
whole heads can be cut; Xiao et al., Early Convolutions Help Transformers See Better, NeurIPS 2021, arXiv:2106.14881, for the stem:
with it a few thousand images are enough to learn from.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pruning.heads import Heads


class Attention(nn.Module):
    """Multi-head self-attention with its own normalisation and skip, shape ``(N, tokens, dim)`` in and out.

    The number of heads is read off the weights: heads can be cut.
    """

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, heads * head_dim)
        self.key = nn.Linear(dim, heads * head_dim)
        self.value = nn.Linear(dim, heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, dim)

    def head_groups(self) -> tuple[Heads, ...]:
        return (Heads(makes=("query", "key", "value"), reads=("proj",), head_dim=self.head_dim),)

    def forward(self, inputs: Tensor) -> Tensor:
        normed = self.norm(inputs)
        query, key, value = (self._split(layer(normed)) for layer in (self.query, self.key, self.value))
        # Written out: every exporter and runtime knows matmul and softmax, few know the fused operator.
        weights = torch.softmax(query @ key.transpose(-2, -1) * self.head_dim**-0.5, dim=-1)
        return inputs + self.proj((weights @ value).transpose(1, 2).flatten(2))

    def _split(self, tokens: Tensor) -> Tensor:
        """Shape ``(N, tokens, heads * head_dim)`` to ``(N, heads, tokens, head_dim)``."""
        return tokens.unflatten(2, (-1, self.head_dim)).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear layers with their own normalisation and skip, shape ``(N, tokens, dim)`` in and out."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.down(nn.functional.gelu(self.up(self.norm(inputs))))


class Block(nn.Module):
    """Attention, then feed-forward; each has its own skip, so each can be left out."""

    def __init__(self, dim: int, heads: int, head_dim: int, hidden: int) -> None:
        super().__init__()
        self.attention = Attention(dim, heads, head_dim)
        self.mlp = FeedForward(dim, hidden)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.mlp(self.attention(inputs))


class VisionTransformer(nn.Module):
    """Convolutions down to tokens, a learned position for each, blocks, mean over tokens, classifier.

    Args:
        image: Side of the square inputs, in pixels; a multiple of ``patch``.
        patch: Pixels a token stands for, each way: a power of two, as the stem halves the resolution so many times.
        dim: Features of a token.
        depth: Blocks; each is an attention and a feed-forward.
        heads: Attention heads a block.
        head_dim: Features of a head; ``None`` is ``dim // heads``.
        mlp_ratio: Hidden features of a feed-forward, over ``dim``.
        in_channels: Channels of the input, which has shape ``(N, in_channels, image, image)``.
        classes: Number of logits.
    """

    def __init__(
        self,
        image: int = 28,
        patch: int = 4,
        dim: int = 48,
        depth: int = 3,
        heads: int = 4,
        head_dim: int | None = None,
        mlp_ratio: float = 2.0,
        in_channels: int = 1,
        classes: int = 10,
    ) -> None:
        super().__init__()
        if patch < 2 or patch & (patch - 1) or image % patch:
            raise ValueError(f"patch ({patch}) must be a power of two, and image ({image}) a multiple of it")
        if head_dim is None and dim % heads:
            raise ValueError(f"dim ({dim}) must be a multiple of heads ({heads}), or head_dim be given")
        each = head_dim or dim // heads
        self.embed = _stem(patch, in_channels, dim)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (image // patch) ** 2, dim))
        hidden = round(mlp_ratio * dim)
        self.blocks = nn.Sequential(*(Block(dim, heads, each, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.classifier = nn.Linear(dim, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = self.embed(inputs).flatten(2).transpose(1, 2) + self.positions
        return self.classifier(self.norm(self.blocks(tokens)).mean(1))


def _stem(patch: int, in_channels: int, dim: int) -> nn.Sequential:
    """Convolutions of stride two down to one position a token; all but the last are half as wide, normalised and rectified."""
    layers: list[nn.Module] = []
    before = in_channels
    while patch > 2:
        conv = nn.Conv2d(before, dim // 2, 3, stride=2, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(dim // 2), nn.ReLU()]
        before, patch = dim // 2, patch // 2
    return nn.Sequential(*layers, nn.Conv2d(before, dim, 3, stride=2, padding=1))
