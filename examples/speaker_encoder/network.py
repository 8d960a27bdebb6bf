"""The speaker encoder of Resemblyzer: 1.6 s of speech in, a unit vector of 256 numbers for the voice out.

The architecture of Wan, Wang, Papir and Moreno, "Generalized End-to-End Loss for Speaker Verification",
ICASSP 2018. The three layers of the LSTM are modules of their own, so that each may keep a width of its own.
"""

import torch
from torch import nn

MELS = 40
WIDTH = 256
LAYERS = 3


class SpeakerEncoder(nn.Module):
    """A stacked LSTM over mel spectra; the last state of the last layer is the voice."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.ModuleList(
            nn.LSTM(MELS if layer == 0 else WIDTH, WIDTH, batch_first=True) for layer in range(LAYERS)
        )
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, mels: torch.Tensor) -> torch.Tensor:
        x = mels  # (batch, frames, mels)
        for layer in self.lstm:
            x, _ = layer(x)
        voice = torch.relu(self.linear(x[:, -1]))
        return voice / torch.linalg.vector_norm(voice, dim=1, keepdim=True)


def build() -> nn.Module:
    return SpeakerEncoder()
