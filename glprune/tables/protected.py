"""Read protected attributes: columns by whose values metrics are reported, used by the model or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from glprune._wording import number_text, number_texts, range_labels
from glprune.errors import DataError, RecipeError, did_you_mean
from glprune.schema.report import EDGES, MISSING, QUARTILES, VALUES
from glprune.tables.remedies import PROTECT_COLUMN
from glprune.tables.table import refuse_inexact

if TYPE_CHECKING:
    from glprune.schema.recipe import Recipe
    from glprune.tables.table import Table

_MAX_NUMBERS, _MAX_LABELS = 6, 50  # distinct values that get a segment each


@dataclass(frozen=True)
class Attribute:
    """A protected attribute of every row.

    Attributes:
        name: A column of the file, or a one-hot feature.
        values: Split -> values, shape (rows,): float64 with NaN for empty ones, or indices of ``labels``.
        columns: The columns that hold it.
        labels: Its distinct texts, sorted; None if its values are numbers.
    """

    name: str
    values: Mapping[str, NDArray[Any]]
    columns: tuple[str, ...]
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Segmentation:
    """Rows divided by an attribute.

    Attributes:
        labels: Names of the segments, in order.
        by: What divides them, for the report.
        number: Split -> index of the segment of each row, shape (rows,), int64.
        edges: Ascending edges of the ranges; None where each value is a segment.
    """

    labels: tuple[str, ...]
    by: str
    number: Mapping[str, NDArray[np.int64]]
    edges: tuple[float, ...] | None = None


def read_protected(
    recipe: Recipe,
    tables: Mapping[str, Table],
    features: Mapping[str, Sequence[str]],
    chosen: Mapping[str, NDArray[np.bool_]],
) -> tuple[Attribute, ...]:
    """Read the protected attributes of the recipe's policy.

    Args:
        recipe: The recipe.
        tables: ``file``, or one for each split.
        features: The network's features and their columns.
        chosen: Split -> mask of the rows of its table.

    Raises:
        RecipeError: A column or feature does not exist, or bins are given for text.
        DataError: A feature is not one-hot, or text has too many values.
    """
    if recipe.policy is None:
        return ()
    found = []
    for name in recipe.policy.protected:
        columns = {key: _column(recipe, table, name, features) for key, table in tables.items()}
        texts = [labels for labels, _ in columns.values() if labels is not None]
        if texts and len(texts) < len(columns):
            raise DataError(f"{recipe.where('policy', 'protected')}: {name!r} is text in one file only.")
        labels = tuple(sorted({label for text in texts for label in text})) if texts else None
        coded = {key: _recode(text, values, labels) for key, (text, values) in columns.items()}
        values = {s: coded["file" if "file" in coded else s][rows] for s, rows in chosen.items()}
        sources = (name,) if name in next(iter(tables.values())).names else tuple(features[name])
        attribute = Attribute(name, values, sources, labels)
        _check_values(recipe, attribute)
        found.append(attribute)
    return tuple(found)


def _recode(
    table_labels: Sequence[str] | None, values: NDArray[Any], labels: Sequence[str] | None
) -> NDArray[Any]:
    """Replace indices of one table's labels by indices of the labels of all tables."""
    if table_labels is None or labels is None:
        return values
    index = {label: n for n, label in enumerate(labels)}
    recoded: NDArray[np.int32] = np.array([index[label] for label in table_labels], dtype=np.int32)[values]
    return recoded


def _column(
    recipe: Recipe, table: Table, name: str, features: Mapping[str, Sequence[str]]
) -> tuple[list[str] | None, NDArray[Any]]:
    """Return the labels of a column or one-hot feature, None for numbers, and each row's index or value."""
    if name not in table.names:
        if name not in features:
            guess = did_you_mean(name, [*table.names, *features])
            raise RecipeError(f"{recipe.where('policy', 'protected')}: no column or feature {name!r}.{guess}")
        return _one_hot(table, name, features[name])
    column = table.column(name)
    dtype = column.type
    if pa.types.is_integer(dtype) or pa.types.is_floating(dtype) or pa.types.is_decimal(dtype):
        if pa.types.is_integer(dtype):
            refuse_inexact(table, name, column, "write them as text")
        values: NDArray[np.float64] = column.cast(pa.float64(), safe=False).to_numpy().astype(np.float64)
        return None, values
    found = pc.unique(column).to_pylist()
    numbers = pc.index_in(column, pa.array(found, dtype)).combine_chunks().to_numpy()
    return [MISSING if v is None or not str(v).strip() else str(v) for v in found], numbers


def _one_hot(table: Table, name: str, columns: Sequence[str]) -> tuple[list[str], NDArray[np.int32]]:
    """Return the labels of a one-hot feature, and the index of each row's label."""
    number = np.empty(table.rows, dtype=np.int32)
    row = 0
    for batch in table.batches(columns):
        values = [c.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False) for c in batch.columns]
        hot = np.stack(values, axis=1) != 0
        several = np.flatnonzero(hot.sum(axis=1) > 1)
        if len(several):
            raise DataError(
                f"{table.path}: feature {name!r} is not one-hot: {table.place(row + int(several[0]))} has "
                f"several columns that are not 0; {PROTECT_COLUMN}."
            )
        number[row : row + len(hot)] = np.where(hot.any(axis=1), hot.argmax(axis=1), len(columns))
        row += len(hot)
    return [*(c.removeprefix(f"{name}=") for c in columns), "none of its columns"], number


def _check_values(recipe: Recipe, attribute: Attribute) -> None:
    """Refuse bins for text, and text with too many values."""
    bins = recipe.policy.bins if recipe.policy else {}
    if attribute.labels is None:
        return
    if attribute.name in bins:
        raise RecipeError(
            f"{recipe.where('policy', 'bins', attribute.name)}: its values are text, and bins are for "
            "numbers; remove it."
        )
    if len(attribute.labels) > _MAX_LABELS:
        raise DataError(
            f"{recipe.where('policy', 'protected')}: {attribute.name!r} has {len(attribute.labels)} values; "
            f"use a column of at most {_MAX_LABELS}."
        )


def segmented(attribute: Attribute, bins: Sequence[float] | None) -> Segmentation:
    """Divide rows into segments by the values of an attribute, or by ranges of numbers.

    Args:
        attribute: The attribute.
        bins: Ascending edges; None: one segment for each value, or quartiles for many numbers.
    """
    if attribute.labels is not None:
        used = np.unique(np.concatenate([np.unique(v) for v in attribute.values.values()]))
        number = {s: np.searchsorted(used, v) for s, v in attribute.values.items()}
        return Segmentation(tuple(attribute.labels[n] for n in used.tolist()), VALUES, number)
    distinct = np.unique(np.concatenate([v[np.isfinite(v)] for v in attribute.values.values()]))
    if bins is None and len(distinct) <= _MAX_NUMBERS:
        number = {s: np.searchsorted(distinct, v) for s, v in attribute.values.items()}
        return _label_missing(Segmentation(number_texts(distinct.tolist()), VALUES, number), attribute)
    by = EDGES
    if bins is None:
        train = attribute.values["train"]
        known = train[np.isfinite(train)]
        bins = np.unique(np.quantile(known if len(known) else distinct, [0.25, 0.5, 0.75])).tolist()
        by = QUARTILES
    labels = range_labels([float(edge) for edge in bins])
    number = {s: np.searchsorted(bins, v, side="right") for s, v in attribute.values.items()}
    return _label_missing(Segmentation(labels, by, number, tuple(map(float, bins))), attribute)


def assigned(attribute: Attribute, labels: Sequence[str], edges: Sequence[float] | None) -> NDArray[np.int64]:
    """Return the segment of each test row among those of a report, shape (rows,); -1 where it has none.

    Args:
        attribute: The attribute of the rows.
        labels: Names of the segments, as ``segmented`` gives them.
        edges: Edges of ranges; None where each value is a segment.
    """
    values = attribute.values["test"]
    known = {label: number for number, label in enumerate(labels)}
    if attribute.labels is not None:
        numbers = np.array([known.get(label, -1) for label in attribute.labels], dtype=np.int64)
        of_texts: NDArray[np.int64] = numbers[values]
        return of_texts
    finite = np.isfinite(values)
    found = np.full(len(values), known.get(MISSING, -1), dtype=np.int64)
    if edges is not None:
        found[finite] = np.searchsorted(edges, values[finite], side="right")
        return found
    distinct, index = np.unique(values[finite], return_inverse=True)
    texts = [[repr(v), number_text(v)] for v in distinct.tolist()]
    of_values = [next((known[t] for t in pair if t in known), -1) for pair in texts]
    found[finite] = np.array(of_values, dtype=np.int64)[index]
    return found


def _label_missing(found: Segmentation, attribute: Attribute) -> Segmentation:
    """Add a segment for the rows without a number, if there are any."""
    empty = {s: ~np.isfinite(v) for s, v in attribute.values.items()}
    labels = (*found.labels, *([MISSING] if any(e.any() for e in empty.values()) else []))
    number = {s: np.where(empty[s], len(labels) - 1, n).astype(np.int64) for s, n in found.number.items()}
    return replace(found, labels=labels, number=number)
