"""Splits: rows in batches, held in memory or read when they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glprune.tables.features import InputPosition

Inputs = tuple[Tensor, ...]


def select_columns(inputs: Inputs, axes: Sequence[int | None], columns: Sequence[Tensor]) -> Inputs:
    """Select the kept columns of every input; an input without a feature axis is kept whole."""
    return tuple(
        x if axis is None else x.index_select(axis, kept)
        for x, axis, kept in zip(inputs, axes, columns, strict=True)
    )


class Split(Protocol):
    """The rows of one split, in batches."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        ...

    def batches(self, size: int | None, generator: torch.Generator | None) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield ``(inputs, target)`` of at most ``size`` rows, shuffled if a generator is given."""
        ...


@runtime_checkable
class IndexableSplit(Split, Protocol):
    """A split whose targets are in memory and whose rows can be selected by index."""

    @property
    def target(self) -> Tensor:
        """Class numbers or values, shape (rows,); (rows, n) for distillation."""
        ...

    def take(self, rows: NDArray[np.int64]) -> Self:
        """Return the split of some rows, given by ascending indices."""
        ...


@dataclass(frozen=True)
class ColumnSelection:
    """The kept columns of full inputs.

    Attributes:
        columns: Kept positions along each input's feature axis, int64.
        axes: The feature axis of each input; None: the input is kept whole.
    """

    columns: tuple[Tensor, ...]
    axes: tuple[int | None, ...]

    def __call__(self, inputs: Inputs) -> Inputs:
        """Select the kept columns of a full batch."""
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
    """A split that can avoid reading columns that are not kept."""

    def view_columns(self, selection: ColumnSelection) -> Split:
        """Return the same rows, in the same order, with the kept columns only."""
        ...


def view_columns(split: Split, selection: ColumnSelection) -> Split:
    """Return a split with the kept columns only; without support by the split, each batch is cut."""
    return (
        split.view_columns(selection)
        if isinstance(split, SupportsColumnSelection)
        else _ColumnView(split, selection)
    )


@dataclass(frozen=True)
class _ColumnView:
    """A split of which each batch is cut to the kept columns."""

    split: Split
    selection: ColumnSelection

    @property
    def rows(self) -> int:
        return self.split.rows

    def batches(self, size: int | None, generator: torch.Generator | None) -> Iterator[tuple[Inputs, Tensor]]:
        for inputs, target in self.split.batches(size, generator):
            yield self.selection(inputs), target


@dataclass(frozen=True)
class TensorSplit:
    """A split held in memory.

    Attributes:
        inputs: Each (rows, ...), float32 or int64.
        target: Class numbers int64 or values float32, shape (rows,); for distillation (rows, n), with
            n = 0 until the original network's outputs were computed.
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
        """Return the split of some rows."""
        return TensorSplit(tuple(x[rows] for x in self.inputs), self.target[rows])

    def view_columns(self, selection: ColumnSelection) -> TensorSplit:
        """Return the same rows with the kept columns only."""
        return TensorSplit(selection(self.inputs), self.target)


def first_rows(split: Split, rows: int) -> Inputs:
    """Return the first rows of a split."""
    inputs, _ = next(split.batches(rows, None))
    return inputs


def identity(inputs: Inputs) -> Inputs:
    """Return a batch unchanged: the selection of all columns."""
    return inputs
