"""CREPE: 1,024 samples at 16 kHz in, the salience of 360 pitches (20 cents apart) out.

The architecture of Kim, Salamon, Li and Bello, "CREPE: A Convolutional Representation for Pitch
Estimation", ICASSP 2018, with the tensor names of torchcrepe. It differs from torchcrepe in one thing: the
last activations are laid out channel by channel, so that a channel is one run of the classifier's columns.
"""

import torch
from torch import nn
from torch.nn import functional

WIDTHS = {"tiny": (128, 16, 16, 16, 32, 64), "full": (1024, 128, 128, 128, 256, 512)}
KERNELS = (512, 64, 64, 64, 64, 64)
PADDINGS = ((254, 254), *5 * ((31, 32),))
PITCHES = 360


class Crepe(nn.Module):
    """Six convolutions over time, each halving it by pooling, and a dense layer of pitches."""

    def __init__(self, capacity: str = "tiny") -> None:
        super().__init__()
        inputs = 1
        for number, (width, kernel) in enumerate(zip(WIDTHS[capacity], KERNELS, strict=True), start=1):
            stride = 4 if number == 1 else 1
            self.add_module(f"conv{number}", nn.Conv2d(inputs, width, (kernel, 1), (stride, 1)))
            self.add_module(f"conv{number}_BN", nn.BatchNorm2d(width, eps=0.0010000000474974513))
            inputs = width
        self.classifier = nn.Linear(4 * inputs, PITCHES)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        x = frames[:, None, :, None]
        for number, padding in enumerate(PADDINGS, start=1):
            x = functional.pad(x, (0, 0, *padding))
            x = functional.relu(self.get_submodule(f"conv{number}")(x))
            x = functional.max_pool2d(self.get_submodule(f"conv{number}_BN")(x), (2, 1))
        # (batch, channels, 4 instants, 1) -> (batch, channels x 4 instants), see get_weights.py
        return torch.sigmoid(self.classifier(x.flatten(1)))


def build(capacity: str = "tiny") -> nn.Module:
    return Crepe(capacity)
