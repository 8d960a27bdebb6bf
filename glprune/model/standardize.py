"""The standardisation layer a recipe can ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
        self.register_buffer("mean", mean.to(torch.float32, copy=True))
        self.register_buffer("std", std.to(torch.float32, copy=True))

    def forward(self, x: Tensor) -> Tensor:
        """Standardise the last axis of ``x``, shape (..., n_columns)."""
        return (x - self.mean) / self.std


class StandardizedNetwork(nn.Module):
    """A network that standardises its inputs, so that the exported file takes raw columns.

    Args:
        layers: The layer of each input, ``standardize``, ``standardize_1`` and so on; None passes an
            input as it is.
        network: The network.
    """

    def __init__(self, layers: Sequence[Standardize | None], network: nn.Module) -> None:
        super().__init__()
        self.layers = [f"standardize_{n}" if n else "standardize" for n in range(len(layers))]
        for name, layer in zip(self.layers, layers, strict=True):
            self.add_module(name, nn.Identity() if layer is None else layer)
        self.network = network

    def forward(self, *inputs: Tensor) -> Any:
        """Run the network on raw inputs, each (batch, ...)."""
        layers = [self.get_submodule(name) for name in self.layers]
        return self.network(*(layer(x) for layer, x in zip(layers, inputs, strict=True)))


def with_standardization(network: nn.Module, mean: Tensor, std: Tensor) -> StandardizedNetwork:
    """Add a standardisation layer to a network of one input, keeping its train/eval mode."""
    return StandardizedNetwork([Standardize(mean, std)], network).train(network.training)
