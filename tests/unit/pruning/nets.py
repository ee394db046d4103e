"""Networks with the habits that trip pruning engines."""

from __future__ import annotations

import torch
from torch import Tensor, nn

IMAGES = (2, 1, 8, 8)


class LayerScale(nn.Module):
    """A bare parameter scales channels, outside every module."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.gamma = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.second = nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        out = torch.relu(self.gamma * self.first(inputs))
        return self.head(torch.relu(self.second(out)).mean((2, 3)))


class Flat(nn.Module):
    """Convolution, flatten, linear: each channel is several inputs of the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.hidden = nn.Linear(6 * 64, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        out = torch.relu(self.bn(self.conv(inputs))).flatten(1)
        return self.head(torch.relu(self.hidden(out)))


class Joined(nn.Module):
    """Two branches, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(1, 4, 3, padding=1)
        self.right = nn.Conv2d(1, 6, 3, padding=1)
        self.join = nn.Conv2d(10, 5, 1)
        self.head = nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        both = torch.cat([torch.relu(self.left(inputs)), torch.relu(self.right(inputs))], 1)
        return self.head(torch.relu(self.join(both)).mean((2, 3)))


class JoinedNorm(nn.Module):
    """Two branches, concatenated and then normalised together: each group has a part of one batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(1, 4, 3, padding=1)
        self.right = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(10)
        self.join = nn.Conv2d(10, 5, 1)
        self.head = nn.Linear(5, 3)
        nn.init.normal_(self.norm.running_mean)  # type: ignore[arg-type]
        nn.init.normal_(self.norm.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        both = self.norm(torch.cat([self.left(inputs), self.right(inputs)], 1))
        return self.head(torch.relu(self.join(torch.relu(both))).mean((2, 3)))


class Attention(nn.Module):
    """Attention with its head count and size fixed in the forward, and a feed-forward beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        out = self.embed(inputs.flatten(0, 1))
        query, key, value = self.qkv(out).reshape(-1, 8, 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(-1, 8, 8)
        out = self.norm(out + self.out(mixed))
        return self.head((out + self.down(torch.relu(self.up(out)))).mean(1))


class Opaque(nn.Module):
    """Nothing but its output layer: nothing can be removed."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(inputs.flatten(1))


class Tied(nn.Module):
    """Two layers share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 8)
        self.one = nn.Linear(8, 8)
        self.two = nn.Linear(8, 8)
        self.two.weight = self.one.weight
        self.wide = nn.Linear(8, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        out = torch.relu(self.two(torch.relu(self.one(torch.relu(self.stem(inputs.flatten(1)))))))
        return self.head(torch.relu(self.wide(out)))
