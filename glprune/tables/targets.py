"""Read the target column: class labels or values."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from glprune._wording import counted
from glprune.errors import DataError
from glprune.tables.remedies import UNLISTED, or_list
from glprune.tables.table import Table, beyond_float32, refuse_inexact, unknown_column_hint
from glprune.tables.validation import MISSING_TEXTS, first_bad_value, is_numeric

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
        hint = unknown_column_hint(name, table.names)
        raise DataError(f"{table.path}: target column {name!r} is missing.{hint}")
    column = table.column(name)
    empty = empty_rows(column, {str(c) for c in recipe.data.classes or ()})
    if empty.any():
        is_class = recipe.task != "regression"
        raise DataError(f"{table.path}: target {name!r} is {empty_message(table, column, empty, is_class)}.")
    return column


def empty_rows(column: pa.ChunkedArray, labels: Collection[str] = ()) -> NDArray[np.bool_]:
    """Return the mask of a column's missing values, bool, shape (rows,).

    Args:
        column: Numbers or text; NaN, blanks and the texts that other programs write are missing.
        labels: Such texts that are labels all the same.
    """
    empty = pc.is_null(column, nan_is_null=True)
    if pa.types.is_string(column.type):
        texts = pa.array(sorted((MISSING_TEXTS - {label.strip() for label in labels}) | {""}))
        empty = pc.or_(empty, pc.is_in(pc.utf8_trim_whitespace(column), value_set=texts))
    mask: NDArray[np.bool_] = empty.to_numpy()
    return mask


def empty_message(table: Table, column: pa.ChunkedArray, empty: NDArray[np.bool_], is_class: bool) -> str:
    """Return the message on missing labels, with their number, the first row, and what to do.

    Args:
        table: The table.
        column: The target.
        empty: The mask of its missing values, of which there is one at least.
        is_class: Whether the texts that stand for a missing value may be classes.
    """
    count = counted(int(np.count_nonzero(empty)), "row")
    message = f"empty in {count}, first in {table.place(int(np.argmax(empty)))}"
    values = pc.unique(column.filter(pa.array(empty))).to_pylist()
    texts = [repr(v) for v in values if isinstance(v, str) and v.strip()]
    if not texts:
        return f"{message}; drop them"
    shown = " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))
    labels = or_list("classes", shown) if is_class else ""
    return f"{message} ({shown}); drop them{labels}"


def _classes(recipe: Recipe, raw: Mapping[str, pa.ChunkedArray], first: Table) -> tuple[str, ...] | None:
    """Return the class labels: those of the recipe, or the sorted values of the target."""
    if recipe.task == "regression":
        return None
    if recipe.data.classes is not None:
        return tuple(str(c) for c in recipe.data.classes)
    values = sorted({v for column in raw.values() for v in pc.unique(column).to_pylist()}, key=_sort_key)
    labels = tuple(dict.fromkeys(_label(v) for v in values))
    what = f"{first.path}: target {recipe.data.target!r} has {counted(len(labels), 'value')}"
    if recipe.task == "binary" and len(labels) != 2:
        shown = ", ".join(map(repr, labels[:5]))
        raise DataError(f"{what} ({shown}{', ...' if len(labels) > 5 else ''}); task: binary needs two.")
    if len(labels) > 1000:
        raise DataError(f"{what}; is the task regression?")
    return labels


def _encode(
    recipe: Recipe, column: pa.ChunkedArray, classes: tuple[str, ...] | None, table: Table
) -> NDArray[Any]:
    """Return class numbers int64, or values float32."""
    name = str(recipe.data.target)
    return _values(name, column, table) if classes is None else _class_numbers(name, column, classes, table)


def _values(name: str, column: pa.ChunkedArray, table: Table) -> NDArray[np.float32]:
    if not is_numeric(column.type):
        raise DataError(
            f"{table.path}: target {name!r} is not numeric{first_bad_value(table, name)}; a regression "
            "target holds numbers."
        )
    if pa.types.is_integer(column.type):
        refuse_inexact(table, name, column, "scale the target")
    values: NDArray[np.float64] = column.cast(pa.float64(), safe=False).to_numpy()
    finite = np.isfinite(values)
    if not finite.all():
        place = table.place(int(np.argmin(finite)))
        raise DataError(f"{table.path}: target {name!r} is not finite in {place}.")
    with np.errstate(over="ignore"):  # values too large for float32 become Inf
        narrow = values.astype(np.float32)
    if not np.isfinite(narrow).all():
        row = int(np.argmin(np.isfinite(narrow)))
        place = beyond_float32(float(values[row]), table.place(row))
        raise DataError(f"{table.path}: target {name!r} {place}; scale the target.")
    return narrow


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
            f"{table.path}: target {name!r} holds {unknown!r} ({table.place(row)}), {UNLISTED} "
            f"({', '.join(classes)})."
        )
    return np.array([index[label] for label in labels], dtype=np.int64)[indices]


def dictionary(column: pa.ChunkedArray) -> tuple[list[Any], NDArray[np.int32]]:
    """Return the distinct values of a column, with None for empty ones, and each row's index among them."""
    encoded = column.dictionary_encode("encode").combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def _label(value: object) -> str:
    """Return a class label as text; 1, 1.0 and '1' are the same label."""
    if isinstance(value, float | Decimal) and value % 1 == 0:
        return str(int(value))
    return str(value)


def _sort_key(value: object) -> tuple[bool, Any]:
    """Sort numbers before text and dates."""
    is_text = not isinstance(value, int | float | Decimal)
    return (is_text, str(value) if is_text else value)
