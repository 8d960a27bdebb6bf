"""Pruning of GRUs, which torch-pruning 1.6 cannot trace: its formulas, applied to the weights of the units.

A unit's weights are its rows of both matrices in all three gates, its column of the recurrent matrix, and its
column of the layer that reads it: the next GRU or the head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from hidden_cases import Recurrent
from torch import Tensor, nn

ALPHA = 2.0**4  # strength on the weakest unit relative to the strongest, torch-pruning's default


class GruPruner:
    """The interface of torch-pruning's pruners, for two GRUs and a head."""

    def __init__(
        self, network: Recurrent, original: Recurrent, kind: str, ratio: float, everywhere: bool, reg: float
    ) -> None:
        self.kind, self.ratio, self.everywhere, self.reg = kind, ratio, everywhere, reg
        self.widths = original.first.hidden_size, original.second.hidden_size
        self.layers = [(network.first, network.second), (network.second, network.head)]

    @torch.no_grad()
    def step(self) -> None:
        """Remove the units of least importance."""
        scores = [importance(gru, reader, self.kind) for gru, reader in self.layers]
        pooled = torch.cat(scores).sort().values
        threshold = pooled[min(int(self.ratio * len(pooled)), len(pooled) - 1)]
        for (gru, reader), score, width in zip(self.layers, scores, self.widths, strict=True):
            left = int((score >= threshold).sum()) if self.everywhere else round((1 - self.ratio) * width)
            best = score.argsort(descending=True)[: max(1, left)]
            keep(gru, reader, best.sort().values)

    @torch.no_grad()
    def regularize(self, model: nn.Module) -> None:
        """Add the gradient of sparse training, stronger on weak units."""
        for gru, reader in self.layers:
            size = importance(gru, reader, "norm").sqrt()
            strength = self.reg * ALPHA ** ((size.max() - size) / (size.max() - size.min()))
            rows, into = strength.repeat(3)[:, None], weight_of(reader)
            gru.weight_ih_l0.grad += rows * gru.weight_ih_l0
            gru.weight_hh_l0.grad += (rows + strength) * gru.weight_hh_l0
            into.grad += strength * into


def importance(gru: nn.GRU, reader: nn.Module, kind: str) -> Tensor:
    """The importance of each unit, of mean 1: the mean over its parts, as torch-pruning's groups have it."""
    if kind == "random":
        return torch.rand(gru.hidden_size)
    if kind == "taylor":
        found = [part.sum(1) for part in parts(gru, reader, lambda w: (w * w.grad).abs())]
    else:
        squares = parts(gru, reader, lambda w: w.square())
        found = [torch.cdist(p, p).sum(0) if kind == "distance" else p.sum(1) for p in squares]
    mean = torch.stack(found).mean(0)
    return mean / mean.mean()


def parts(gru: nn.GRU, reader: nn.Module, of: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """A function of the units' weights: rows, recurrent and reading columns, each (units, weights)."""
    units = gru.hidden_size
    rows = [of(w).view(3, units, -1).transpose(0, 1).flatten(1) for w in (gru.weight_ih_l0, gru.weight_hh_l0)]
    return [*rows, of(gru.weight_hh_l0).T, of(weight_of(reader)).T]


def weight_of(reader: nn.Module) -> nn.Parameter:
    """The matrix that reads the units of the GRU before."""
    return reader.weight_ih_l0 if isinstance(reader, nn.GRU) else reader.weight


def keep(gru: nn.GRU, reader: nn.Module, units: Tensor) -> None:
    """Cut a GRU and its reader to some of its units."""
    rows = torch.cat([units + gate * gru.hidden_size for gate in range(3)])
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        setattr(gru, name, nn.Parameter(getattr(gru, name)[rows]))
    gru.weight_hh_l0 = nn.Parameter(gru.weight_hh_l0[:, units])
    gru.hidden_size = len(units)
    if isinstance(reader, nn.GRU):
        reader.weight_ih_l0, reader.input_size = nn.Parameter(reader.weight_ih_l0[:, units]), len(units)
    else:
        reader.weight, reader.in_features = nn.Parameter(reader.weight[:, units]), len(units)
