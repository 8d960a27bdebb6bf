"""The standardisation layer a recipe can ask for."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Standardize(nn.Module):
    """Map raw columns to ``(x - mean) / std``; mean and std are fixed buffers.

    Args:
        mean: Column means, shape (n_columns,), in the units of the columns.
        std: Column standard deviations, shape (n_columns,), all above zero.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Standardise the last axis of ``x``, shape (..., n_columns)."""
        return (x - self.mean) / self.std


class Scaled(nn.Module):
    """A network behind its standardisation layer, so that the exported file takes raw columns."""

    def __init__(self, standardize: Standardize, network: nn.Module) -> None:
        super().__init__()
        self.standardize = standardize
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Run the network on raw columns, shape (batch, n_columns)."""
        return self.network(self.standardize(x))


def scaled(network: nn.Module, mean: Tensor, std: Tensor) -> Scaled:
    """Put a standardisation layer in front of ``network``, keeping its train/eval mode."""
    return Scaled(Standardize(mean.to(torch.float32), std.to(torch.float32)), network).train(network.training)
