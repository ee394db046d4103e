"""A network of your own, as Pruneloop finds it: a function that returns an ordinary torch module."""

from __future__ import annotations

import torch
from torch import nn


class DigitsNet(nn.Module):
    """Three convolutions and a classifier for 8x8 images: (samples, 1, 8, 8) -> (samples, 10). Knows nothing of pruning."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(2 * width, 10)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(inputs))


def make_model(width: int = 32) -> nn.Module:
    """Return the network with fresh weights; a job's `params` come in as arguments."""
    return DigitsNet(width)
