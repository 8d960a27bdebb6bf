"""Splits: rows in batches, from memory or from wherever they lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NewType, Protocol, Self, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SPLITS = ("train", "valid", "test")
Inputs = tuple[Tensor, ...]

ColumnId = NewType("ColumnId", int)
"""Number of a column, counted over the feature axes of all inputs."""
InputPosition = NewType("InputPosition", int)
"""Position of a column along the feature axis of its full input."""
KeptPosition = NewType("KeptPosition", int)
"""Position of a column among the kept columns of its input."""


def select_columns(inputs: Inputs, axes: Sequence[int | None], columns: Sequence[Tensor]) -> Inputs:
    """Take the kept columns of every input; an input without a feature axis passes whole."""
    return tuple(
        x if axis is None else x.index_select(axis, kept)
        for x, axis, kept in zip(inputs, axes, columns, strict=True)
    )


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
class IndexableSplit(Split, Protocol):
    """A split whose targets are in memory and whose rows can be chosen by their numbers."""

    @property
    def target(self) -> Tensor:
        """Class numbers or values, shape (rows,); (rows, n) where the network is to agree with another."""
        ...

    def take(self, rows: NDArray[np.int64]) -> Self:
        """The split of some rows, given by ascending numbers."""
        ...


@dataclass(frozen=True)
class ColumnSelection:
    """The kept columns of full inputs.

    Attributes:
        columns: Kept positions along each input's feature axis, int64.
        axes: The feature axis of each input; None passes an input whole.
    """

    columns: tuple[Tensor, ...]
    axes: tuple[int | None, ...]

    def __call__(self, inputs: Inputs) -> Inputs:
        """Take the kept columns out of a full batch."""
        return select_columns(inputs, self.axes, self.columns)

    def positions(self) -> list[list[InputPosition]]:
        """The kept positions of each input; empty for an input without a feature axis."""
        return [[InputPosition(p) for p in kept.tolist()] for kept in self.columns]

    def then(self, second: ColumnSelection) -> ColumnSelection:
        """This selection followed by a second one of its result, as one selection of full inputs."""
        pairs = zip(self.columns, second.columns, strict=True)
        return ColumnSelection(tuple(a[b] if len(a) else a for a, b in pairs), self.axes)


@runtime_checkable
class SupportsColumnSelection(Split, Protocol):
    """A split that can do without columns nobody wants."""

    def view_columns(self, narrow: ColumnSelection) -> Split:
        """The same rows, in the same order, of the kept columns."""
        ...


def view_columns(split: Split, narrow: ColumnSelection) -> Split:
    """A split of the kept columns: cut out once in memory, alone read of files, else cut of every batch."""
    return (
        split.view_columns(narrow)
        if isinstance(split, SupportsColumnSelection)
        else _ColumnView(split, narrow)
    )


@dataclass(frozen=True)
class _ColumnView:
    """A split seen through the kept columns."""

    split: Split
    narrow: ColumnSelection

    @property
    def rows(self) -> int:
        return self.split.rows

    def batches(self, size: int | None, generator: torch.Generator | None) -> Iterator[tuple[Inputs, Tensor]]:
        for inputs, target in self.split.batches(size, generator):
            yield self.narrow(inputs), target


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

    def view_columns(self, narrow: ColumnSelection) -> TensorSplit:
        """The same rows of the kept columns."""
        return TensorSplit(narrow(self.inputs), self.target)


def first_rows(split: Split, rows: int) -> Inputs:
    """The first rows of a split."""
    inputs, _ = next(split.batches(rows, None))
    return inputs


def identity(inputs: Inputs) -> Inputs:
    """Take all columns of a batch."""
    return inputs
