"""Numbers out of columns, and what a pass over them finds: defects, constant columns, mean and spread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from glprune.data.records import Standardization
from glprune.data.tables import Reader, RowGroup, Table, first_inexact, inexact_message
from glprune.errors import DataError, did_you_mean, name_list

if TYPE_CHECKING:
    from glprune.schema.recipe import Recipe

Dtype = Literal["float", "int"]
TYPES = {"float": np.float32, "int": np.int64}
_SCALE = "scale or encode them otherwise, or list it under data.exclude"
_WHOLE = "write them as whole numbers"
COLUMNS_AT_ONCE = 1024  # of a piece; a reader holds buffers for each


def is_numeric(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type can be features as they are."""
    return (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    )


def check_columns(table: Table, columns: Sequence[str]) -> None:
    """Refuse columns that are missing or not numeric.

    Raises:
        DataError: They are named, with a value of the first.
    """
    missing = sorted(set(columns) - set(table.names))
    if missing:
        raise DataError(
            f"{table.path}: column {name_list(missing)} missing.{did_you_mean(missing[0], table.names)}"
        )
    kinds = dict(zip(table.schema.names, table.schema.types, strict=True))
    bad = [name for name in columns if not is_numeric(kinds[name])]
    if bad:
        values = (v for batch in table.batches(bad[:1]) for v in batch[0] if v.is_valid)
        example = next((v.as_py() for v in values), None)
        raise DataError(
            f"{table.path}: column {name_list(bad)} not numeric (first value {example!r}); "
            "encode as numbers, or list under data.exclude."
        )


@dataclass(frozen=True)
class Block:
    """Some rows of some columns of an input.

    Attributes:
        row: Number of its first row in the table.
        column: Number of its first column in the input.
        values: Shape (rows, columns); float32, or int64 or float64 for codes.
        batch: What they were made of.
    """

    row: int
    column: int
    values: NDArray[Any]
    batch: pa.RecordBatch


def blocks(read: Reader, piece: RowGroup, columns: Sequence[str], dtype: Dtype) -> Iterator[Block]:
    """Yield a piece in tiles, some columns after others."""
    for start in range(0, len(columns), COLUMNS_AT_ONCE):
        row = piece.start
        for batch in read(piece, columns[start : start + COLUMNS_AT_ONCE]):
            yield Block(row, start, numbers(batch, dtype), batch)
            row += batch.num_rows


def numbers(batch: pa.RecordBatch, dtype: Dtype) -> NDArray[Any]:
    """Numeric columns as a matrix, shape (rows, columns), NaN where empty.

    Returns:
        float32; for codes int64, exactly, or float64 where a column holds anything else.
    """
    kind, columns = pa.float32(), None
    if dtype == "int":
        kind, columns = pa.int64(), whole(batch)
        if columns is None:
            kind = pa.float64()
    if columns is None:
        # values too large for the type become Inf, or are rounded: what is not finite is refused
        columns = [c if c.type == kind else c.cast(kind, safe=False) for c in batch.columns]
    alike = pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
    # to give NaN for null, Arrow makes floating-point numbers of whole ones
    return alike.to_tensor(null_to_nan=kind != pa.int64(), row_major=True).to_numpy()


def whole(batch: pa.RecordBatch) -> list[pa.Array] | None:
    """Columns as int64; None where a value is empty or no whole number below 2^63."""
    try:
        columns = [c.cast(pa.int64()) for c in batch.columns]
    except pa.ArrowInvalid:
        return None
    return None if any(c.null_count for c in columns) else columns


def coded(values: NDArray[Any], dtype: Dtype) -> NDArray[Any]:
    """Checked numbers as the network takes them: float32, or int64 for codes."""
    return values if dtype == "float" else values.astype(np.int64, copy=False)


class ColumnChecker:
    """The defects a pass over the columns of one input finds; every tile is shown once.

    Args:
        columns: The input's columns.
        dtype: What they are read as.
    """

    def __init__(self, columns: Sequence[str], dtype: Dtype) -> None:
        self.columns, self.dtype = columns, dtype
        self._defects = np.zeros(len(columns), dtype=np.int64)
        self._first = np.zeros(len(columns), dtype=np.int64)
        self._uncoded: tuple[int, int, float] | None = None
        self._past: tuple[int, int, pa.Scalar] | None = None
        self.flawed = False

    def check(self, tile: Block) -> NDArray[Any]:
        """Note the defects of a tile; its values as the network takes them, where there are none."""
        self._check_exact(tile)
        if tile.values.dtype.kind == "f":
            finite = np.isfinite(tile.values)
            if not finite.all():
                self._note(tile, finite)
            elif self.dtype == "int":
                self._check_codes(tile)
        return tile.values if self.flawed else coded(tile.values, self.dtype)

    def _note(self, tile: Block, finite: NDArray[np.bool_]) -> None:
        """Count what is not finite, and remember the first row of each column."""
        span = slice(tile.column, tile.column + finite.shape[1])
        counts = (~finite).sum(axis=0)
        fresh = (counts > 0) & (self._defects[span] == 0)
        self._first[span][fresh] = tile.row + np.argmin(finite, axis=0)[fresh]
        self._defects[span] += counts
        self.flawed = True

    def _check_exact(self, tile: Block) -> None:
        """Remember the first number of the first column that was merged with its neighbours, or will be."""
        suspected = pa.types.is_integer if self.dtype == "float" else pa.types.is_floating
        for number, column in enumerate(tile.batch.columns):
            row = first_inexact(column) if suspected(column.type) else None
            if row is not None and np.isfinite(tile.values[row, number]):
                found = (tile.column + number, tile.row + row, column[row])
                self._past = min(self._past or found, found, key=lambda place: place[:2])
                self.flawed = True
                return

    def _check_codes(self, tile: Block) -> None:
        """Remember the first value of the first column that is no whole number."""
        for number in range(tile.batch.num_columns):
            if whole(tile.batch.select([number])) is None:
                values = tile.values[:, number]
                wrong = (np.trunc(values) != values) | (np.abs(values) >= 2.0**63)
                row = int(np.argmax(wrong))
                found = (tile.column + number, tile.row + row, float(values[row]))
                self._uncoded = min(self._uncoded or found, found)
                self.flawed = True
                return

    def refuse_defects(self, table: Table) -> None:
        """Say what was wrong with the columns, once all rows were seen.

        Raises:
            DataError: With column, count and first row.
        """
        wrong = np.flatnonzero(self._defects).tolist()
        if wrong:
            names, first = [self.columns[w] for w in wrong], wrong[0]
            raise DataError(
                f"{table.path}: column {name_list(names)} not finite: {self._defects[first]} empty, NaN or Inf "
                f"in {names[0]!r}, first in {table.place(int(self._first[first]))}; fill or drop them."
            )
        if self._uncoded is not None:
            column, row, value = self._uncoded
            raise DataError(
                f"{table.path}: column {self.columns[column]!r} feeds an input of dtype: int and holds "
                f"{value:g} in {table.place(row)}; encode as whole numbers below 2^63."
            )
        if self._past is not None:
            column, row, value = self._past
            mend = _SCALE if self.dtype == "float" else _WHOLE
            raise DataError(inexact_message(table, self.columns[column], row, value, mend))


class RunningMoments:
    """Extremes, mean and spread of columns, gathered tile by tile.

    References:
        Chan, Golub and LeVeque (1983), "Algorithms for computing the sample variance", Am. Stat. 37(3).
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = columns
        self._count = np.zeros(len(columns))
        self._mean, self._squares = np.zeros(len(columns)), np.zeros(len(columns))
        self._low, self._high = np.full(len(columns), np.inf), np.full(len(columns), -np.inf)

    def add(self, column: int, values: NDArray[Any]) -> None:
        """Take in some rows of the columns from ``column`` on."""
        if not len(values):
            return
        span = slice(column, column + values.shape[1])
        self._low[span] = np.minimum(self._low[span], values.min(axis=0))
        self._high[span] = np.maximum(self._high[span], values.max(axis=0))
        before, new = self._count[span], len(values)
        mean = values.mean(axis=0, dtype=np.float64)
        gap = mean - self._mean[span]
        self._squares[span] += ((values - mean) ** 2).sum(axis=0) + gap**2 * before * new / (before + new)
        self._mean[span] += gap * new / (before + new)
        self._count[span] = before + new

    @property
    def constant(self) -> list[str]:
        """Columns of one value."""
        return [self.columns[n] for n in np.flatnonzero(self._low == self._high).tolist()]

    def standardization(self) -> Standardization:
        """Mean and standard deviation of every column."""
        std = np.sqrt(self._squares / self._count)
        return Standardization(torch.from_numpy(self._mean.copy()), torch.from_numpy(std))


def constant_notes(recipe: Recipe, moments: RunningMoments, dtype: Dtype) -> list[str]:
    """What the user should know of columns that never vary on the training rows.

    Raises:
        DataError: They are to be standardised.
    """
    constant = moments.constant
    if not constant:
        return []
    if recipe.data.standardize == "train" and dtype == "float":
        raise DataError(
            f"column {name_list(constant)} constant on the training rows, so it cannot be standardised; "
            "list under data.exclude."
        )
    return [f"column {name_list(constant)} constant on the training rows."]
