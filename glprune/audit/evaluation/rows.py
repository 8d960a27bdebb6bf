"""Rows on which a bundle is evaluated, and the columns that they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from glprune.schema.plan import InputPlan

Array = NDArray[Any]
Batch = tuple[Array, ...]
Columns = Sequence[NDArray[np.int64] | None]
RowsKind = Literal["test rows", "own rows"]
SplitName = Literal["train", "valid", "test", "all"]
CHUNK = 1024
"""Rows of a call; as in a run, so that the same machine gives the same outputs."""


@dataclass(frozen=True)
class Division:
    """Rows divided by a protected attribute.

    Attributes:
        labels: Names of the segments.
        number: Index of each row's segment, shape (rows,); -1: it has none.
    """

    labels: tuple[str, ...]
    number: NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Rows in batches.

    Attributes:
        source: Where they come from.
        kind: ``test rows``: those of the report, as their digest shows; ``own rows``: others.
        evidence: How that is known.
        batches: The inputs of each batch, in the network's order.
        held: For each input the positions, along its feature axis in the original, of the columns that the
            batches hold; None: the input is whole.
        target: Class numbers or values, shape (rows,); (rows, 0) without labels.
        divisions: Protected attribute -> the rows divided by it.
        missing: Columns of the original that are not in the data, by name where that is known.
        undivided: Protected attribute of the report -> why the rows are not divided by it.
        names: For each input: position in the original -> name of the column, where that is known.
        place: Returns the place of a row in the source.
        notes: What the auditor should know of the rows.
    """

    source: str
    kind: RowsKind
    evidence: str
    batches: Sequence[Batch]
    held: tuple[NDArray[np.int64] | None, ...]
    target: Array
    divisions: Mapping[str, Division] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    undivided: Mapping[str, str] = field(default_factory=dict)
    names: Sequence[Mapping[int, str]] = ()
    place: Callable[[int], str] = lambda row: f"row {row + 1:,}"
    notes: tuple[str, ...] = ()

    def lacks(self, wanted: Columns) -> bool:
        """Whether one of the wanted columns is not held."""
        pairs = zip(wanted, self.held, strict=True)
        return any(w is not None and h is not None and not np.isin(w, h).all() for w, h in pairs)

    def select(self, parts: Sequence[InputPlan], wanted: Columns) -> Iterator[dict[str, Array]]:
        """Yield the batches with some columns of the original inputs; 0 stands for those that are not held.

        Args:
            parts: The inputs.
            wanted: Positions of the columns in the original, for each input; None: the input is whole.
        """
        places = [
            None if columns is None or held is None else _places(columns, held)
            for columns, held in zip(wanted, self.held, strict=True)
        ]
        for batch in self.batches:
            yield {
                part.name: x if index is None else _take(x, index, part)
                for part, x, index in zip(parts, batch, places, strict=True)
            }


def _places(wanted: NDArray[np.int64], held: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the place of each wanted column among those held; -1 for one that is not."""
    place = {column: number for number, column in enumerate(held.tolist())}
    return np.array([place.get(column, -1) for column in wanted.tolist()], dtype=np.int64)


def _take(x: Array, index: NDArray[np.int64], part: InputPlan) -> Array:
    """Select columns; one that is not held is 0."""
    axis = (part.axis or 0) % x.ndim
    taken = np.take(x, np.maximum(index, 0), axis=axis)
    absent = np.flatnonzero(index < 0)
    if len(absent):
        taken[(slice(None),) * axis + (absent,)] = 0
    return np.ascontiguousarray(taken)


def in_chunks(arrays: Sequence[Array]) -> list[Batch]:
    """Divide arrays of the same rows into batches."""
    return [tuple(x[start : start + CHUNK] for x in arrays) for start in range(0, len(arrays[0]), CHUNK)]
