"""The digit network: pixels 0..255 in, ten logits out."""

import torch
from torch import nn


class Digits(nn.Module):
    """A perceptron 784-256-128-10 that scales its pixels itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(784, 256),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(256, 128),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(128, 10),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x / 255.0)


def build() -> nn.Module:
    return Digits()
