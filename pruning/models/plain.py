"""Networks without skips: a plain convolutional one and a depthwise-separable one.

Source: Howard et al., MobileNets, arXiv:1704.04861, for the depthwise-separable block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _conv_bn_relu(in_width: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(in_width, width, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(width), nn.ReLU()]


class ConvNet(nn.Module):
    """Three pairs of 3x3 convolutions, each pair at half the resolution of the one before, then a classifier.

    Args:
        width: Channels of the first pair; then twice and four times as many.
        in_channels: Channels of the input, which has shape ``(N, in_channels, H, W)``.
        classes: Number of logits.
    """

    def __init__(self, width: int = 16, in_channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = in_channels
        for index, channels in enumerate((width, 2 * width, 4 * width)):
            layers += _conv_bn_relu(before, channels, 3, stride=1 if index == 0 else 2)
            layers += _conv_bn_relu(channels, channels, 3)
            before = channels
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(before, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.pool(self.features(inputs)), 1))


class MobileNet(nn.Module):
    """A stem and depthwise-separable blocks at three resolutions, then a classifier.

    Args:
        width: Channels of the stem.
        blocks: Separable blocks a resolution.
        in_channels: Channels of the input, which has shape ``(N, in_channels, H, W)``.
        classes: Number of logits.
    """

    def __init__(self, width: int = 16, blocks: int = 2, in_channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        layers = _conv_bn_relu(in_channels, width, 3)
        before = width
        for stage, channels in enumerate((2 * width, 4 * width, 8 * width)):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers += _conv_bn_relu(before, before, 3, stride=stride, groups=before)
                layers += _conv_bn_relu(before, channels, 1)
                before = channels
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(before, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.pool(self.features(inputs)), 1))
