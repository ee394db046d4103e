"""A small MobileNet of the later kinds: inverted residuals with squeeze-and-excite.

Source: Sandler et al., MobileNetV2, CVPR 2018, arXiv:1801.04381; Howard et al., MobileNetV3, ICCV 2019, arXiv:1905.02244.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SqueezeExcite(nn.Module):
    """Scales each channel by a factor computed from the means of all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, max(4, width // 4), 1)
        self.expand = nn.Conv2d(max(4, width // 4), width, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        means = inputs.mean((2, 3), keepdim=True)
        return inputs * nn.functional.hardsigmoid(self.expand(torch.relu(self.reduce(means))))


class InvertedResidual(nn.Module):
    """Widen, filter each channel alone, excite, narrow; with a skip where the shape stays."""

    def __init__(self, in_width: int, width: int, *, stride: int = 1, expansion: int = 3) -> None:
        super().__init__()
        hidden = expansion * in_width
        self.widen = nn.Conv2d(in_width, hidden, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, groups=hidden, bias=False)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.excite = SqueezeExcite(hidden)
        self.narrow = nn.Conv2d(hidden, width, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(width)
        self.has_skip = stride == 1 and in_width == width

    def forward(self, inputs: Tensor) -> Tensor:
        out = nn.functional.hardswish(self.norm1(self.widen(inputs)))
        out = self.excite(nn.functional.hardswish(self.norm2(self.depthwise(out))))
        out = self.norm3(self.narrow(out))
        return inputs + out if self.has_skip else out


class Mobile(nn.Module):
    """Stem, four inverted residuals at two resolutions, classifier; for inputs of shape ``(N, 1, 8, 8)``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(
            InvertedResidual(8, 8),
            InvertedResidual(8, 12, stride=2),
            InvertedResidual(12, 12),
            InvertedResidual(12, 12),
        )
        self.head = nn.Linear(12, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        out = self.blocks(torch.relu(self.norm(self.stem(inputs))))
        return self.head(out.mean((2, 3)))
