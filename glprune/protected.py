"""Protected attributes: columns by whose values a model is looked at, whether it reads them or not."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from glprune.errors import DataError, RecipeError, did_you_mean
from glprune.recipe import Recipe

MISSING = "missing"
_FEW_VALUES, _MANY_VALUES = 6, 50


@dataclass(frozen=True)
class Attribute:
    """A protected attribute of every row.

    Attributes:
        name: A column of the file, or a one-hot field.
        values: Split -> values, shape (rows,); float64 with NaN where empty, or text.
        columns: The columns it lies in.
    """

    name: str
    values: Mapping[str, NDArray[Any]]
    columns: tuple[str, ...]

    @property
    def numeric(self) -> bool:
        """Whether its values are numbers."""
        return next(iter(self.values.values())).dtype.kind == "f"


@dataclass(frozen=True)
class Segmentation:
    """Rows divided by an attribute.

    Attributes:
        labels: Names of the segments, in order.
        by: How they were made, in words.
        number: Split -> the segment of each row, shape (rows,), int64.
    """

    labels: tuple[str, ...]
    by: str
    number: Mapping[str, NDArray[np.int64]]


def read_protected(
    recipe: Recipe,
    tables: Mapping[str, pa.Table],
    paths: Mapping[str, Path],
    fields: Mapping[str, Sequence[str]],
    rows: Mapping[str, NDArray[np.int64]] | None,
) -> tuple[Attribute, ...]:
    """Read the attributes the recipe's policy names.

    Args:
        recipe: The recipe.
        tables: The file, or one for each split.
        paths: Where they are from, for messages.
        fields: The network's fields and their columns.
        rows: Split -> its rows of the only table; None where each split has its own.

    Raises:
        RecipeError: There is no such column or field, or bins are given for text.
        DataError: A field is not one-hot, or text has too many values.
    """
    if recipe.policy is None:
        return ()
    found = []
    for name in recipe.policy.protected:
        whole = {key: _values(recipe, table, name, fields, paths[key]) for key, table in tables.items()}
        kinds = {values.dtype.kind for values in whole.values()}
        if len(kinds) > 1:
            raise DataError(f"{recipe.where('policy', 'protected')}: {name!r} is text in one file only.")
        values = whole if rows is None else {s: whole["file"][own] for s, own in rows.items()}
        columns = (name,) if name in next(iter(tables.values())).column_names else tuple(fields[name])
        attribute = Attribute(name, values, columns)
        _check_values(recipe, attribute)
        found.append(attribute)
    return tuple(found)


def _values(
    recipe: Recipe, table: pa.Table, name: str, fields: Mapping[str, Sequence[str]], path: Path
) -> NDArray[Any]:
    if name in table.column_names:
        return _column(table[name])
    if name not in fields:
        guess = did_you_mean(name, [*table.column_names, *fields])
        raise RecipeError(f"{recipe.where('policy', 'protected')}: no column or field {name!r}.{guess}")
    hot = np.stack([table[c].cast(pa.float64()).to_numpy() for c in fields[name]], axis=1) != 0
    several = np.flatnonzero(hot.sum(axis=1) > 1)
    if len(several):
        raise DataError(
            f"{path}: field {name!r} is not one-hot: row {several[0] + 1} has several columns that are not "
            "0; name a column under policy.protected instead."
        )
    labels = np.array([*(c.removeprefix(f"{name}=") for c in fields[name]), "none of its columns"])
    return labels[np.where(hot.any(axis=1), hot.argmax(axis=1), len(labels) - 1)]


def _column(column: pa.ChunkedArray) -> NDArray[Any]:
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return column.cast(pa.float64()).to_numpy().astype(np.float64)
    return np.array([MISSING if v is None else str(v) for v in column.to_pylist()])


def _check_values(recipe: Recipe, attribute: Attribute) -> None:
    bins = recipe.policy.bins if recipe.policy else {}
    if attribute.numeric:
        return
    if attribute.name in bins:
        raise RecipeError(
            f"{recipe.where('policy', 'bins', attribute.name)}: its values are text, which has no "
            "edges; remove it."
        )
    count = len(np.unique(np.concatenate(list(attribute.values.values()))))
    if count > _MANY_VALUES:
        raise DataError(
            f"{recipe.where('policy', 'protected')}: {attribute.name!r} has {count} values; name a column "
            f"of at most {_MANY_VALUES}."
        )


def segmented(attribute: Attribute, bins: Sequence[float] | None) -> Segmentation:
    """Divide rows by the values of an attribute, or by ranges of numbers.

    Args:
        attribute: The attribute.
        bins: Ascending edges; None takes the values, or quartiles where there are many numbers.
    """
    if not attribute.numeric:
        labels = sorted({str(v) for values in attribute.values.values() for v in values})
        place = {label: n for n, label in enumerate(labels)}
        number = {s: _int64([place[str(v)] for v in own]) for s, own in attribute.values.items()}
        return Segmentation(tuple(labels), "values", number)
    distinct = np.unique(np.concatenate([v[np.isfinite(v)] for v in attribute.values.values()]))
    if bins is None and len(distinct) <= _FEW_VALUES:
        number = {s: np.searchsorted(distinct, v) for s, v in attribute.values.items()}
        return _with_missing([f"{v:g}" for v in distinct], "values", number, attribute)
    by = "edges of the recipe"
    if bins is None:
        train = attribute.values["train"]
        known = train[np.isfinite(train)]
        bins = np.unique(np.quantile(known if len(known) else distinct, [0.25, 0.5, 0.75])).tolist()
        by = "quartiles of the training rows"
    middle = [f"{a:g} to below {b:g}" for a, b in itertools.pairwise(bins)]
    labels = [f"below {bins[0]:g}", *middle, f"{bins[-1]:g} and above"]
    number = {s: np.searchsorted(bins, v, side="right") for s, v in attribute.values.items()}
    return _with_missing(labels, by, number, attribute)


def _with_missing(
    labels: list[str], by: str, number: Mapping[str, NDArray[np.int64]], attribute: Attribute
) -> Segmentation:
    """Give rows without a number a segment of their own, where there are any."""
    empty = {s: ~np.isfinite(v) for s, v in attribute.values.items()}
    if any(e.any() for e in empty.values()):
        labels = [*labels, MISSING]
    own = {s: np.where(empty[s], len(labels) - 1, n).astype(np.int64) for s, n in number.items()}
    return Segmentation(tuple(labels), by, own)


def _int64(values: Sequence[int]) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)
