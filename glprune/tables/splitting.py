"""Split rows into train, valid and test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glprune._wording import counted
from glprune.errors import DataError
from glprune.tables.features import SPLITS
from glprune.tables.targets import dictionary, empty_rows

if TYPE_CHECKING:
    from glprune.schema.recipe import Recipe
    from glprune.tables.table import Table


@dataclass(frozen=True)
class Part:
    """The rows of one split.

    Attributes:
        table: The table that holds them.
        chosen: Mask of the table's rows, bool, shape (table.rows,).
        target: Their targets, shape (rows, ...).
    """

    table: Table
    chosen: NDArray[np.bool_]
    target: NDArray[Any]


def split_rows(
    recipe: Recipe,
    tables: Mapping[str, Table],
    targets: Mapping[str, NDArray[Any]],
    classes: tuple[str, ...] | None,
) -> dict[str, Part]:
    """Split the rows of one table, or take the table of each split.

    Args:
        recipe: The recipe.
        tables: ``file``, or one for each split.
        targets: The targets of each table, shape (table.rows, ...).
        classes: Class labels.

    Raises:
        DataError: A split has too few rows or only one class, or the split column has other values.
    """
    if "file" in tables:
        table, target = tables["file"], targets["file"]
        index = split_numbers(recipe, table, target)
        masks = {name: index == n for n, name in enumerate(SPLITS)}
        parts = {name: Part(table, chosen, target[chosen]) for name, chosen in masks.items()}
    else:
        parts = {s: Part(t, np.ones(t.rows, dtype=np.bool_), targets[s]) for s, t in tables.items()}
    _check_parts(recipe, parts, classes)
    return parts


def split_numbers(recipe: Recipe, table: Table, target: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the index in ``SPLITS`` of the split of every row of a table, shape (rows,).

    Raises:
        DataError: The split column has other values.
    """
    spec = recipe.data.split
    if spec is not None and spec.column is not None:
        return _split_column(table, spec.column)
    shares = spec.shares if spec is not None else (0.6, 0.2, 0.2)
    by_class = recipe.task in ("binary", "multiclass") and (spec is None or spec.stratify is not False)
    rng = np.random.default_rng(recipe.seed)
    strata = (
        (np.flatnonzero(target == c) for c in np.unique(target)) if by_class else [np.arange(len(target))]
    )
    index = np.empty(len(target), dtype=np.uint8)
    for rows in strata:
        shuffled = rng.permutation(rows)
        ends = np.rint(np.cumsum(shares) * len(shuffled)).astype(int)
        for split, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            index[shuffled[start:end]] = split
    return index


def _split_column(table: Table, name: str) -> NDArray[np.uint8]:
    """Return the index in ``SPLITS`` of every row's split, which a column names."""
    column = table.column(name)
    values, indices = dictionary(column)
    numbers = {str(v): n for n, v in enumerate(values) if v is not None}
    known = np.isin(indices, [numbers[s] for s in SPLITS if s in numbers])
    if not known.all():
        row = int(np.argmin(known))
        missing = empty_rows(column)[row]
        found = "is empty" if missing else f"holds {str(column[row].as_py())!r}"
        raise DataError(
            f"{table.path}: split column {name!r} {found} in {table.place(row)}; use train, valid and test."
        )
    return np.array([SPLITS.index(str(v)) if v is not None else 0 for v in values], dtype=np.uint8)[indices]


def _check_parts(recipe: Recipe, parts: Mapping[str, Part], classes: tuple[str, ...] | None) -> None:
    """Refuse splits that are too small to train or measure on."""
    for name, part in parts.items():
        if len(part.target) < 2:
            raise DataError(
                f"{recipe.where('data')}: the {name} split has {counted(len(part.target), 'row')}; it needs "
                "at least 2."
            )
        if classes is not None and bool((part.target == part.target[0]).all()):
            only = classes[int(part.target[0])]
            raise DataError(
                f"{recipe.where('data')}: the {name} split holds only class {only!r}; "
                "nothing can be measured."
            )
