"""Inputs, their columns, and the features that columns make."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NewType

SPLITS = ("train", "valid", "test")

ColumnId = NewType("ColumnId", int)
"""Number of a column, counted over the feature axes of all inputs."""
InputPosition = NewType("InputPosition", int)
"""Position of a column along the feature axis of its full input."""
KeptPosition = NewType("KeptPosition", int)
"""Position of a column among the kept columns of its input."""


@dataclass(frozen=True)
class InputColumns:
    """One input of the network and the columns that feed it.

    Attributes:
        name: Name of the input.
        axis: Axis of a batch that holds the features; None if none can be pruned.
        columns: Names along that axis, in order; without an axis the columns of the file, if any.
    """

    name: str
    axis: int | None
    columns: tuple[str, ...]

    @property
    def prunable_columns(self) -> tuple[str, ...]:
        """The columns that can be pruned."""
        return self.columns if self.axis is not None else ()


@dataclass(frozen=True)
class Feature:
    """An input feature: a column, or several columns of one input that are kept or removed together.

    Attributes:
        name: The feature.
        columns: Indices of its columns, counted over the feature columns of all inputs.
    """

    name: str
    columns: tuple[ColumnId, ...]


def spans(inputs: Sequence[InputColumns]) -> tuple[range, ...]:
    """Return the indices of each input's feature columns."""
    ends = [0]
    for part in inputs:
        ends.append(ends[-1] + len(part.prunable_columns))
    return tuple(range(start, end) for start, end in itertools.pairwise(ends))
