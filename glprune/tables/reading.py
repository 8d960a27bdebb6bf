"""Open the files of a recipe, match their columns with its inputs, and read the rows of splits."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glprune.tables.columns import file_inputs, make_features
from glprune.tables.features import SPLITS, Feature, InputColumns
from glprune.tables.files import open_table
from glprune.tables.validation import TYPES, ColumnChecker, Dtype, RunningMoments, blocks, check_columns

if TYPE_CHECKING:
    from glprune.schema.recipe import Recipe
    from glprune.tables.splitting import Part
    from glprune.tables.table import Table


@dataclass(frozen=True)
class FilePlan:
    """What is known before rows are read.

    Attributes:
        tables: The open files: ``file``, or one for each split.
        names: Their names in the recipe.
        inputs: The columns of each input.
        dtypes: The type that each input is read as.
        features: The features.
    """

    tables: Mapping[str, Table]
    names: tuple[str, ...]
    inputs: tuple[InputColumns, ...]
    dtypes: tuple[Dtype, ...]
    features: tuple[Feature, ...]

    @property
    def first(self) -> Table:
        """The first table; it gives the order of the columns."""
        return next(iter(self.tables.values()))

    @property
    def columns(self) -> list[str]:
        """The columns of all inputs."""
        return [name for part in self.inputs for name in part.columns]

    @property
    def feature_columns(self) -> dict[str, list[str]]:
        """Feature -> names of its columns."""
        columns = [name for part in self.inputs for name in part.prunable_columns]
        return {feature.name: [columns[c] for c in feature.columns] for feature in self.features}


def plan_files(recipe: Recipe) -> FilePlan:
    """Open the files of a recipe and match columns, inputs and features.

    Raises:
        DataError: A file cannot be read, or a column is missing or not numeric.
        RecipeError: The recipe names columns that the files do not have.
    """
    spec = recipe.data
    names = {"file": spec.file} if spec.file else {s: getattr(spec, s) for s in SPLITS}
    tables = {key: open_table(recipe.path(str(name))) for key, name in names.items()}
    inputs = file_inputs(recipe, next(iter(tables.values())).names)
    plan = FilePlan(
        tables=tables,
        names=tuple(str(name) for name in names.values()),
        inputs=inputs,
        dtypes=tuple(part.dtype for part in recipe.model.inputs),
        features=make_features(recipe, inputs),
    )
    for table in tables.values():
        check_columns(table, plan.columns)
    return plan


class SplitBuffer:
    """Holds the rows of one split while they are read into memory.

    Args:
        part: The rows.
        plan: The files.

    Attributes:
        part: The rows.
        arrays: The inputs, shape (rows, n_columns) each.
    """

    def __init__(self, part: Part, plan: FilePlan) -> None:
        self.part = part
        self.arrays = [
            np.empty((len(part.target), len(own.columns)), TYPES[dtype])
            for own, dtype in zip(plan.inputs, plan.dtypes, strict=True)
        ]

    def put(self, index: int, row: int, column: int, values: NDArray[Any]) -> None:
        """Store the split's rows of a block of input ``index`` that begins at a row and column."""
        start = int(np.count_nonzero(self.part.chosen[:row]))
        rows, columns = values.shape
        self.arrays[index][start : start + rows, column : column + columns] = values


def read_inputs(
    plan: FilePlan, parts: Mapping[str, Part], buffers: Mapping[str, SplitBuffer]
) -> list[RunningMoments]:
    """Pass over all inputs: check every value, fill the buffers, measure the training rows.

    Args:
        plan: The files.
        parts: Split -> its rows.
        buffers: Split -> its buffer; splits without one are checked only.

    Returns:
        The moments of each input's columns on the training rows.

    Raises:
        DataError: A value is not finite, or not a code where the input has dtype int.
    """
    moments = [RunningMoments(own.columns) for own in plan.inputs]
    for table in plan.tables.values():
        parts_here = {split: part for split, part in parts.items() if part.table is table}
        for index, (own, dtype) in enumerate(zip(plan.inputs, plan.dtypes, strict=True)):
            checker, read = ColumnChecker(own.columns, dtype), table.reader()
            for block in itertools.chain.from_iterable(
                blocks(read, row_group, own.columns, dtype) for row_group in table.row_groups
            ):
                values = checker.check(block)
                if checker.flawed:
                    continue  # the rest is read only to find the other defects
                for split, part in parts_here.items():
                    rows = values[part.chosen[block.row : block.row + len(values)]]
                    if split in buffers:
                        buffers[split].put(index, block.row, block.column, rows)
                    if split == "train":
                        moments[index].add(block.column, rows)
            checker.refuse_defects(table)
    return moments
