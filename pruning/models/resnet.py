"""Residual networks for small images.

Source: He et al., Deep Residual Learning, CVPR 2016, arXiv:1512.03385, section 4.2, with projection shortcuts (option B)
where the shape changes, because zero-padded ones hide which channels are coupled.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a skip; the skip is projected where the shape changes."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.project: nn.Module = nn.Identity()
        if stride != 1 or in_width != width:
            self.project = nn.Sequential(
                nn.Conv2d(in_width, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, inputs: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(inputs)))
        return torch.relu(self.bn2(self.conv2(out)) + self.project(inputs))


class ResNet(nn.Module):
    """Stem, three stages at full, half and quarter resolution, global pooling, classifier.

    Args:
        blocks: Residual blocks a stage; the net has ``6 * blocks + 2`` weighted layers.
        width: Channels of the first stage; the next ones have twice and four times as many.
        in_channels: Channels of the input, which has shape ``(N, in_channels, H, W)``.
        classes: Number of logits.
    """

    def __init__(self, blocks: int, width: int = 16, in_channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.stage1 = self._stage(width, width, blocks, 1)
        self.stage2 = self._stage(width, 2 * width, blocks, 2)
        self.stage3 = self._stage(2 * width, 4 * width, blocks, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(4 * width, classes)

    @staticmethod
    def _stage(in_width: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_width, width, stride)
        return nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(blocks - 1)))

    def forward(self, inputs: Tensor) -> Tensor:
        out = torch.relu(self.bn(self.stem(inputs)))
        out = self.stage3(self.stage2(self.stage1(out)))
        return self.classifier(torch.flatten(self.pool(out), 1))
