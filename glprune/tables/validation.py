"""Convert columns to numbers, check every value, and measure extremes, mean and spread."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from glprune.errors import SIMILAR, DataError, name_list
from glprune.tables.remedies import or_list
from glprune.tables.table import (
    NUMBER,
    Reader,
    RowGroup,
    Table,
    beyond_float32,
    first_inexact,
    inexact_message,
    unknown_column_hint,
)

Dtype = Literal["float", "int"]
TYPES = {"float": np.float32, "int": np.int64}
_SCALE = f"scale or encode them otherwise{or_list('exclude', 'it')}"
_WHOLE = "write them as whole numbers"
MISSING_TEXTS = {
    "",
    "?",
    "nan",
    "-nan",
    "NaN",
    "-NaN",
    "NA",
    "N/A",
    "n/a",
    "#NA",
    "#N/A",
    "<NA>",
    "NaT",
    "null",
} | {
    "NULL",
    "None",
}
"""Texts that other programs write for a missing value."""
_ADVICE = (
    (r"[+-]?\d[\d.' ]*,\d+|[+-]?\d{1,3}(,\d{3})+(\.\d*)?", "write decimal points, and no other commas"),
    (r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}.*", f"encode dates as numbers{or_list('exclude')}"),
    (NUMBER, "write the texts as numbers"),
)
_ENCODE = f"encode as numbers{or_list('exclude')}"
_MOST_MISSING, _MOST_HINTS = 30, 5
COLUMNS_AT_ONCE = 1024  # of a row group; a reader holds a buffer for each


def is_numeric(dtype: pa.DataType) -> bool:
    """Whether values of an Arrow type can be used as features without encoding."""
    return bool(
        pa.types.is_integer(dtype)
        or pa.types.is_floating(dtype)
        or pa.types.is_boolean(dtype)
        or pa.types.is_decimal(dtype)
    )


def check_columns(table: Table, columns: Sequence[str]) -> None:
    """Refuse columns that are missing or not numeric.

    Raises:
        DataError: With the names, and a value of the first.
    """
    missing = sorted(set(columns) - set(table.names))
    if missing:
        raise DataError(
            f"{table.path}: column {name_list(missing, _MOST_MISSING)} missing."
            f"{_missing_hint(missing, [name for name in table.names if name not in set(columns)])}"
        )
    refuse_nameless(table, columns)
    types = dict(zip(table.schema.names, table.schema.types, strict=True))
    bad = [name for name in columns if not is_numeric(types[name])]
    if bad:
        raise DataError(f"{table.path}: column {name_list(bad)} not numeric{first_bad_value(table, bad[0])}.")


def _missing_hint(missing: Sequence[str], unused: Sequence[str]) -> str:
    """Return the end of a message on missing columns: similar unused names, or what the header lacks."""
    hints = {name: unknown_column_hint(name, unused) for name in missing[:_MOST_HINTS]}
    similar = {name: hint for name, hint in hints.items() if SIMILAR in hint}
    if len(similar) > 1:
        pairs = [f"{hint.split(SIMILAR)[1].rstrip('?')} for {name!r}" for name, hint in similar.items()]
        return f"{SIMILAR}{', '.join(pairs)}?"
    return next(iter(similar.values()), hints[missing[0]])


def refuse_nameless(table: Table, columns: Sequence[str]) -> None:
    """Refuse a column without a name, such as the index that pandas writes.

    Raises:
        DataError: With its number.
    """
    number = next((table.names.index(n) + 1 for n in columns if not n.strip()), None)
    if number is not None:
        raise DataError(
            f"{table.path}: column {number} has no name; if it numbers the rows, remove it, else name it."
        )


def first_bad_value(table: Table, name: str) -> str:
    """Return the end of a message on a column that is not numeric: its first such value, its row, a fix."""
    row, value = _first_bad(table, name)
    if row is None:
        return f" ({name!r} is empty); fill it{or_list('exclude')}"
    shown = repr(value) if isinstance(value, str | bytes | list | dict) else str(value)
    return f" ({name!r} holds {shown[:60]} in {table.place(row)}); {_advice(value)}"


def _first_bad(table: Table, name: str) -> tuple[int | None, object]:
    """Return row and value of the first text that is neither empty nor a number, or else of any value."""
    start, other = 0, None
    for batch in table.batches([name]):
        column = batch[0]
        if pa.types.is_string(column.type):
            trimmed = pc.utf8_trim_whitespace(column)
            good = pc.or_(pc.match_substring_regex(column, f"^({NUMBER})$"), pc.equal(trimmed, ""))
            row = pc.index(good, False).as_py()
            if row >= 0:
                return start + row, column[row].as_py()
        row = pc.index(pc.is_valid(column), True).as_py()
        if other is None and row >= 0:
            other = start + row, column[row].as_py()
        start += len(column)
    return other or (None, None)


def _advice(value: object) -> str:
    """Return what to do about a value that is no number."""
    if not isinstance(value, str):
        return _ENCODE
    if value.strip() in MISSING_TEXTS:
        return "fill or drop what is missing"
    return next((fix for pattern, fix in _ADVICE if re.fullmatch(pattern, value.strip())), _ENCODE)


@dataclass(frozen=True)
class Block:
    """Some rows of some columns of an input.

    Attributes:
        row: Index of its first row in the table.
        column: Index of its first column in the input.
        values: Shape (rows, columns); float32, or int64 or float64 for codes.
        batch: The values as they were read.
    """

    row: int
    column: int
    values: NDArray[Any]
    batch: pa.RecordBatch


def blocks(read: Reader, row_group: RowGroup, columns: Sequence[str], dtype: Dtype) -> Iterator[Block]:
    """Yield a row group in blocks: all rows of some columns, then of the next columns."""
    for start in range(0, len(columns), COLUMNS_AT_ONCE):
        row = row_group.start
        for batch in read(row_group, columns[start : start + COLUMNS_AT_ONCE]):
            yield Block(row, start, numbers(batch, dtype), batch)
            row += batch.num_rows


def numbers(batch: pa.RecordBatch, dtype: Dtype) -> NDArray[Any]:
    """Return numeric columns as a matrix, shape (rows, columns), with NaN for empty values.

    Returns:
        float32; for codes int64 without rounding, or float64 if a column holds anything else.
    """
    arrow_type, columns = pa.float32(), None
    if dtype == "int":
        arrow_type, columns = pa.int64(), whole(batch)
        if columns is None:
            arrow_type = pa.float64()
    if columns is None:
        # values that are too large become Inf, which is refused later
        columns = [c if c.type == arrow_type else c.cast(arrow_type, safe=False) for c in batch.columns]
    converted = pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
    # null_to_nan would convert integers to floating point
    values: NDArray[Any] = converted.to_tensor(
        null_to_nan=arrow_type != pa.int64(), row_major=True
    ).to_numpy()
    return values


def whole(batch: pa.RecordBatch) -> list[pa.Array] | None:
    """Return columns as int64; None if a value is empty or not a whole number below 2^63."""
    try:
        columns = [c.cast(pa.int64()) for c in batch.columns]
    except pa.ArrowInvalid:
        return None
    return None if any(c.null_count for c in columns) else columns


def coded(values: NDArray[Any], dtype: Dtype) -> NDArray[Any]:
    """Return checked numbers as the network takes them: float32, or int64 for codes."""
    return values if dtype == "float" else values.astype(np.int64, copy=False)


class ColumnChecker:
    """Find the defects in the columns of one input; every block must be checked once.

    Args:
        columns: The input's columns.
        dtype: The type they are read as.

    Attributes:
        flawed: Whether a defect was found.
    """

    def __init__(self, columns: Sequence[str], dtype: Dtype) -> None:
        self.columns, self.dtype = columns, dtype
        self._defects = np.zeros(len(columns), dtype=np.int64)
        self._first_row = np.zeros(len(columns), dtype=np.int64)
        self._first_non_integer: tuple[int, int, float] | None = None
        self._first_inexact: tuple[int, int, pa.Scalar] | None = None
        self._first_beyond: tuple[int, int, float] | None = None
        self.flawed = False

    def check(self, block: Block) -> NDArray[Any]:
        """Record the defects of a block; return its values, as the network takes them if there are none."""
        self._check_exact(block)
        if block.values.dtype.kind == "f":
            finite = np.isfinite(block.values)
            if not finite.all():
                self._record_not_finite(block, finite)
            elif self.dtype == "int":
                self._check_codes(block)
        return block.values if self.flawed else coded(block.values, self.dtype)

    def _record_not_finite(self, block: Block, finite: NDArray[np.bool_]) -> None:
        """Count the values that are not finite, and record the first row of each column."""
        span = slice(block.column, block.column + finite.shape[1])
        finite = finite | self._beyond(block, finite)
        counts = (~finite).sum(axis=0)
        fresh = (counts > 0) & (self._defects[span] == 0)
        self._first_row[span][fresh] = block.row + np.argmin(finite, axis=0)[fresh]
        self._defects[span] += counts
        self.flawed = True

    def _beyond(self, block: Block, finite: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which values are finite and too large for the input's type; record the first."""
        beyond = np.zeros_like(finite)
        for index in np.flatnonzero(~finite.all(axis=0)).tolist():
            exact = block.batch.column(index).cast(pa.float64(), safe=False)
            values = exact.to_numpy(zero_copy_only=False)
            beyond[:, index] = ~finite[:, index] & np.isfinite(values)
            if beyond[:, index].any():
                row = int(np.argmax(beyond[:, index]))
                found = (block.column + index, block.row + row, float(values[row]))
                self._first_beyond = min(self._first_beyond or found, found)
        return beyond

    def _check_exact(self, block: Block) -> None:
        """Record the first number of the first column beyond the range in which whole numbers are exact."""
        suspected = pa.types.is_integer if self.dtype == "float" else pa.types.is_floating
        for index, column in enumerate(block.batch.columns):
            row = first_inexact(column) if suspected(column.type) else None
            if row is not None and np.isfinite(block.values[row, index]):
                found = (block.column + index, block.row + row, column[row])
                self._first_inexact = min(self._first_inexact or found, found, key=lambda place: place[:2])
                self.flawed = True
                return

    def _check_codes(self, block: Block) -> None:
        """Record the first value of the first column that is not a whole number."""
        for index in range(block.batch.num_columns):
            if whole(block.batch.select([index])) is None:
                values = block.values[:, index]
                wrong = (np.trunc(values) != values) | (np.abs(values) >= 2.0**63)
                row = int(np.argmax(wrong))
                found = (block.column + index, block.row + row, float(values[row]))
                self._first_non_integer = min(self._first_non_integer or found, found)
                self.flawed = True
                return

    def refuse_defects(self, table: Table) -> None:
        """Refuse the columns if a defect was found; call it after all blocks were checked.

        Raises:
            DataError: With column, count and first row.
        """
        wrong = np.flatnonzero(self._defects).tolist()
        if wrong:
            names, first = [self.columns[w] for w in wrong], wrong[0]
            raise DataError(
                f"{table.path}: column {name_list(names)} not finite: {self._defects[first]} empty, NaN or "
                f"Inf in {names[0]!r}, first in {table.place(int(self._first_row[first]))}; "
                "fill or drop them."
            )
        if self._first_beyond is not None:
            column, row, value = self._first_beyond
            place = table.place(row)
            raise DataError(
                f"{table.path}: column {self.columns[column]!r} {beyond_float32(value, place)}; scale the "
                f"column{or_list('exclude', 'it')}."
            )
        if self._first_non_integer is not None:
            column, row, value = self._first_non_integer
            raise DataError(
                f"{table.path}: column {self.columns[column]!r} feeds an input of dtype: int and holds "
                f"{value:g} in {table.place(row)}; encode as whole numbers below 2^63."
            )
        if self._first_inexact is not None:
            column, row, value = self._first_inexact
            fix = _SCALE if self.dtype == "float" else _WHOLE
            raise DataError(inexact_message(table, self.columns[column], row, value, fix))


class RunningMoments:
    """Extremes, mean and spread of columns, updated block by block.

    References:
        Chan, Golub and LeVeque (1983), "Algorithms for computing the sample variance", Am. Stat. 37(3).
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = columns
        self._count = np.zeros(len(columns))
        self._mean, self._squares = np.zeros(len(columns)), np.zeros(len(columns))
        self._low, self._high = np.full(len(columns), np.inf), np.full(len(columns), -np.inf)

    def add(self, column: int, values: NDArray[Any]) -> None:
        """Update with some rows of the columns from ``column`` on."""
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
        """Columns with a single value."""
        return [self.columns[n] for n in np.flatnonzero(self._low == self._high).tolist()]

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of every column."""
        return self._mean.copy()

    @property
    def std(self) -> NDArray[np.float64]:
        """Standard deviation of every column."""
        spread: NDArray[np.float64] = np.sqrt(self._squares / self._count)
        return spread


def constant_notes(moments: RunningMoments, standardized: Collection[str]) -> list[str]:
    """Return a note on columns that are constant on the training rows.

    Raises:
        DataError: Such columns are to be standardised.
    """
    constant = moments.constant
    if not constant:
        return []
    refused = [name for name in constant if name in standardized]
    if refused:
        raise DataError(
            f"column {name_list(refused)} constant on the training rows, so it cannot be standardised; "
            "list under data.exclude."
        )
    return [f"column {name_list(constant)} constant on the training rows."]
