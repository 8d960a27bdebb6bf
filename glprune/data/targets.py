"""Read the target column: class labels or values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from glprune.data.tables import Table, refuse_inexact
from glprune.data.validation import is_numeric
from glprune.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from glprune.schema.recipe import Recipe


def read_targets(
    recipe: Recipe, tables: Mapping[str, Table]
) -> tuple[tuple[str, ...] | None, dict[str, NDArray[Any]]]:
    """Read the target column of every table.

    Returns:
        The class labels, None without classes; and for each table class numbers int64 or values float32,
        shape (rows,), or (rows, 0) without labels.

    Raises:
        DataError: A target is missing, empty, not finite, or not one of the classes.
    """
    if recipe.task == "distillation":
        return None, {key: np.empty((t.rows, 0), dtype=np.float32) for key, t in tables.items()}
    raw = {key: _target_column(recipe, table) for key, table in tables.items()}
    for key, column in raw.items():
        if recipe.task != "regression" and pa.types.is_floating(column.type):
            fix = "write the classes as whole numbers below 2^63 or as text"
            refuse_inexact(tables[key], str(recipe.data.target), column, fix)
    classes = _classes(recipe, raw, next(iter(tables.values())))
    return classes, {key: _encode(recipe, raw.pop(key), classes, tables[key]) for key in tables}


def _target_column(recipe: Recipe, table: Table) -> pa.ChunkedArray:
    """Read a target column without empty values."""
    name = str(recipe.data.target)
    if name not in table.names:
        raise DataError(f"{table.path}: target column {name!r} is missing.{did_you_mean(name, table.names)}")
    column = table.column(name)
    if column.null_count:
        place = table.place(pc.index(column.is_null(), True).as_py())
        raise DataError(
            f"{table.path}: target {name!r} is empty in {column.null_count} rows, first in {place}; "
            "drop them."
        )
    return column


def _classes(recipe: Recipe, raw: Mapping[str, pa.ChunkedArray], first: Table) -> tuple[str, ...] | None:
    """Return the class labels: those of the recipe, or the sorted values of the target."""
    if recipe.task == "regression":
        return None
    if recipe.data.classes is not None:
        return tuple(str(c) for c in recipe.data.classes)
    values = sorted({v for column in raw.values() for v in dictionary(column)[0]}, key=_sort_key)
    if recipe.task == "binary" and len(values) != 2:
        raise DataError(
            f"{first.path}: target {recipe.data.target!r} has {len(values)} values; task: binary needs two."
        )
    if len(values) > 1000:
        raise DataError(
            f"{first.path}: target {recipe.data.target!r} has {len(values)} values; is the task regression?"
        )
    return tuple(_label(v) for v in values)


def _encode(
    recipe: Recipe, column: pa.ChunkedArray, classes: tuple[str, ...] | None, table: Table
) -> NDArray[Any]:
    """Return class numbers int64, or values float32."""
    name = str(recipe.data.target)
    return _values(name, column, table) if classes is None else _class_numbers(name, column, classes, table)


def _values(name: str, column: pa.ChunkedArray, table: Table) -> NDArray[np.float32]:
    if not is_numeric(column.type):
        raise DataError(f"{table.path}: target {name!r} is not numeric; a regression target must be.")
    if pa.types.is_integer(column.type):
        refuse_inexact(table, name, column, "scale the target")
    values: NDArray[np.float64] = column.cast(pa.float64(), safe=False).to_numpy()
    finite = np.isfinite(values)
    if not finite.all():
        place = table.place(int(np.argmin(finite)))
        raise DataError(f"{table.path}: target {name!r} is not finite in {place}.")
    with np.errstate(over="ignore"):  # values too large for float32 become Inf, which a run refuses
        return values.astype(np.float32)


def _class_numbers(
    name: str, column: pa.ChunkedArray, classes: tuple[str, ...], table: Table
) -> NDArray[np.int64]:
    index = {label: n for n, label in enumerate(classes)}
    found, indices = dictionary(column)
    labels = [_label(v) for v in found]
    unknown = next((label for label in labels if label not in index), None)
    if unknown is not None:
        row = int(np.flatnonzero(indices == labels.index(unknown))[0])
        raise DataError(
            f"{table.path}: target {name!r} holds {unknown!r} ({table.place(row)}), which data.classes does "
            f"not list ({', '.join(classes)})."
        )
    return np.array([index[label] for label in labels], dtype=np.int64)[indices]


def dictionary(column: pa.ChunkedArray) -> tuple[list[Any], NDArray[np.int32]]:
    """Return the distinct values of a column, with None for empty ones, and each row's index among them."""
    if pa.types.is_float16(column.type):  # Arrow does not encode it
        column = column.cast(pa.float32())
    encoded = column.dictionary_encode("encode").combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def _label(value: object) -> str:
    """Return a class label as text; 1, 1.0 and '1' are the same label."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _sort_key(value: object) -> tuple[bool, Any]:
    """Sort numbers before text."""
    return (isinstance(value, str), value)
