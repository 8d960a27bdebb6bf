"""Splits: rows in batches, from memory or from wherever they lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SPLITS = ("train", "valid", "test")
Inputs = tuple[Tensor, ...]


class Split(Protocol):
    """Rows of one split, in batches."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        ...

    def batches(self, size: int | None, generator: torch.Generator | None) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield ``(inputs, target)``; at most ``size`` rows each, shuffled where a generator is given."""
        ...


@runtime_checkable
class Selectable(Split, Protocol):
    """A split whose targets are in memory and whose rows can be chosen by their numbers."""

    @property
    def target(self) -> Tensor:
        """Class numbers or values, shape (rows,); (rows, n) where the network is to agree with another."""
        ...

    def take(self, rows: NDArray[np.int64]) -> Self:
        """The split of some rows, given by ascending numbers."""
        ...


@dataclass(frozen=True)
class TensorSplit:
    """A split held in memory.

    Attributes:
        inputs: Each (rows, ...), float32 or int64.
        target: Class numbers int64 or values float32, shape (rows,); (rows, n) where the network is to
            agree with another, n = 0 until that one was asked.
    """

    inputs: Inputs
    target: Tensor

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.target)

    def batches(self, size: int | None, generator: torch.Generator | None) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield batches in order, or shuffled by ``generator``."""
        step = size or self.rows
        order = torch.randperm(self.rows, generator=generator) if generator is not None else None
        for start in range(0, self.rows, step):
            pick = slice(start, start + step) if order is None else order[start : start + step]
            yield tuple(x[pick] for x in self.inputs), self.target[pick]

    def take(self, rows: NDArray[np.int64]) -> TensorSplit:
        """The split of some rows."""
        return TensorSplit(tuple(x[rows] for x in self.inputs), self.target[rows])
