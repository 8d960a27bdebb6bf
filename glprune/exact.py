"""Numbers so large that neighbours become one when they are read as floating-point numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from glprune.errors import DataError

if TYPE_CHECKING:
    from glprune.data.tables import Table

EXACT = 2**53
"""Up to here float64 holds every whole number."""


def first_past(column: pa.Array | pa.ChunkedArray) -> int | None:
    """The row of a column's first number beyond what its type, or float64, counts to; None where none is."""
    if pa.types.is_integer(column.type) and column.type.bit_width < 64:
        return None
    limit = pa.scalar(2 ** _digits(column.type), pa.int64()).cast(column.type)
    ends = pc.min_max(column)
    if not any(e.is_valid and abs(e.as_py()) > limit.as_py() for e in ends.values()):
        return None
    past = pc.greater(column, limit)
    if not pa.types.is_unsigned_integer(column.type):
        past = pc.or_(past, pc.less(column, pc.negate(limit)))
    return int(pc.index(past, True).as_py())


def _digits(kind: pa.DataType) -> int:
    """Binary digits of the whole numbers that a type, or float64, holds without a gap."""
    return {pa.float16(): 11, pa.float32(): 24}.get(kind, 53)


def past_exact(table: Table, name: str, row: int, value: pa.Scalar, mend: str) -> str:
    """What is wrong with a number that is merged with its neighbours."""
    return (
        f"{table.path}: column {name!r} holds {value.as_py()} in {table.place(row)}; past "
        f"2^{_digits(value.type)} neighbouring numbers become one; {mend}."
    )


def refuse_past_exact(table: Table, name: str, column: pa.ChunkedArray, mend: str) -> None:
    """Refuse a column of whole or floating-point numbers with one that is merged with its neighbours.

    Raises:
        DataError: With its row and the mend.
    """
    row = first_past(column)
    if row is not None:
        raise DataError(past_exact(table, name, row, column[row], mend))
