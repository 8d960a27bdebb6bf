"""Load the data of a recipe: into memory, or as splits that are streamed from their files."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from glprune.data.columns import file_inputs, make_features, standardized_columns
from glprune.data.dataloader import load_loader
from glprune.data.files import open_table
from glprune.data.protected import read_protected
from glprune.data.records import Data, Feature, InputColumns
from glprune.data.splits import SPLITS, Split, TensorSplit
from glprune.data.splitting import Part, split_rows
from glprune.data.streaming import StreamedSplit, StreamPlan, plan_stream, stream_note
from glprune.data.tables import Table, header_hint
from glprune.data.targets import read_targets
from glprune.data.validation import (
    TYPES,
    ColumnChecker,
    Dtype,
    RunningMoments,
    blocks,
    check_columns,
    constant_notes,
)
from glprune.schema.column_names import lookalikes, spelled_out

if TYPE_CHECKING:
    from glprune.schema.recipe import Recipe

_MAX_ALIKE = 3


def load_data(recipe: Recipe) -> Data:
    """Read, check and split the data of a recipe.

    Raises:
        DataError: A file or column cannot be used; the message names file, column, count and first row.
        RecipeError: The recipe names columns that the files do not have.
    """
    data = load_loader(recipe) if recipe.data.yields else load_files(recipe)
    names = dict.fromkeys((*data.outside, *(c for part in data.inputs for c in part.columns)))
    alike = [f"{spelled_out(a)} and {spelled_out(b)}" for a, b in lookalikes(names)]
    if not alike:
        return data
    more = f" and {len(alike) - _MAX_ALIKE} more pairs" if len(alike) > _MAX_ALIKE else ""
    note = f"Different columns have names that look alike: {', '.join(alike[:_MAX_ALIKE])}{more}."
    return replace(data, notes=(*data.notes, note))


def load_files(recipe: Recipe) -> Data:
    """Read, check and split the files of a recipe.

    Small columns are read first. One pass over the inputs then checks every value, measures the training
    rows and, unless rows are streamed, keeps the rows of each split.

    Raises:
        DataError: A file or column cannot be used; the message names file, column, count and first row.
        RecipeError: The recipe names columns that the files do not have.
    """
    plan = _plan_files(recipe)
    return _assemble(recipe, plan, _read_files(recipe, plan))


@dataclass(frozen=True)
class _FilePlan:
    """What is known before rows are read.

    Attributes:
        tables: The open files: ``file``, or one for each split.
        names: Their names in the recipe.
        inputs: The columns of each input.
        dtypes: The type that each input is read as.
        features: The features.
        standardized: The columns to standardise.
        stream: How rows are streamed; None: they are held in memory.
    """

    tables: Mapping[str, Table]
    names: tuple[str, ...]
    inputs: tuple[InputColumns, ...]
    dtypes: tuple[Dtype, ...]
    features: tuple[Feature, ...]
    standardized: frozenset[str]
    stream: StreamPlan | None

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


@dataclass(frozen=True)
class _ReadRows:
    """What reading the files gave.

    Attributes:
        classes: The class labels; None without classes.
        parts: Split -> its rows.
        splits: Split -> its rows as the network takes them.
        moments: Of each input's columns, on the training rows.
    """

    classes: tuple[str, ...] | None
    parts: Mapping[str, Part]
    splits: Mapping[str, Split]
    moments: Sequence[RunningMoments]


def _plan_files(recipe: Recipe) -> _FilePlan:
    """Open the files and match columns, inputs and features."""
    spec = recipe.data
    names = {"file": spec.file} if spec.file else {s: getattr(spec, s) for s in SPLITS}
    tables = {key: open_table(recipe.path(str(name))) for key, name in names.items()}
    columns = next(iter(tables.values())).names
    inputs = file_inputs(recipe, columns)
    plan = _FilePlan(
        tables=tables,
        names=tuple(str(name) for name in names.values()),
        inputs=inputs,
        dtypes=tuple(part.dtype for part in recipe.model.inputs),
        features=make_features(recipe, inputs),
        standardized=standardized_columns(recipe, inputs, columns),
        stream=plan_stream(recipe, tables, inputs),
    )
    for table in tables.values():
        check_columns(table, plan.columns)
    return plan


def _read_files(recipe: Recipe, plan: _FilePlan) -> _ReadRows:
    """Read the targets, split the rows, and pass once over the inputs."""
    classes, targets = read_targets(recipe, plan.tables)
    parts = split_rows(recipe, plan.tables, targets, classes)
    if plan.stream is not None:
        moments = _read_inputs(plan, parts, {})
        streamed = {name: StreamedSplit.from_plan(part, plan.stream) for name, part in parts.items()}
        return _ReadRows(classes, parts, streamed, moments)
    buffers = {name: _SplitBuffer(part, plan) for name, part in parts.items()}
    moments = _read_inputs(plan, parts, buffers)
    return _ReadRows(classes, parts, {name: b.split() for name, b in buffers.items()}, moments)


def _assemble(recipe: Recipe, plan: _FilePlan, rows: _ReadRows) -> Data:
    """Put together what the rest of the package needs to know of the data."""
    digests = {key: table.digest() for key, table in plan.tables.items()}
    return Data(
        source=", ".join(plan.names),
        inputs=plan.inputs,
        features=plan.features,
        classes=rows.classes,
        standardization=tuple(
            moments.standardization(plan.standardized) if plan.standardized and dtype == "float" else None
            for moments, dtype in zip(rows.moments, plan.dtypes, strict=True)
        ),
        digests=digests,
        notes=(*_notes(recipe, plan, rows), *_same_files(digests)),
        outside=tuple(sorted(set(plan.first.names) - set(plan.columns))),
        protected=read_protected(
            recipe, plan.tables, plan.feature_columns, {name: p.chosen for name, p in rows.parts.items()}
        ),
        train=rows.splits["train"],
        valid=rows.splits["valid"],
        test=rows.splits["test"],
    )


def _notes(recipe: Recipe, plan: _FilePlan, rows: _ReadRows) -> list[str]:
    """Collect what the user should know of the data."""
    notes = [note for moments in rows.moments for note in constant_notes(moments, plan.standardized)]
    if rows.classes is not None and recipe.data.classes is None:
        notes.append(f"data.classes is not given; the sorted labels are used: {', '.join(rows.classes)}.")
    if recipe.data.target is None and (hint := header_hint(plan.first.names)):
        notes.append(f"{plan.names[0]}:{hint}")
    if plan.stream is not None:
        notes.append(stream_note(plan.stream, plan.tables))
    return notes


def _same_files(digests: Mapping[str, str]) -> list[str]:
    """Return a note for every two splits with the same rows."""
    return [
        f"data.{a} and data.{b} are the same file; what is measured on {b} is not held out."
        for a, b in itertools.combinations(digests, 2)
        if digests[a] == digests[b]
    ]


class _SplitBuffer:
    """Holds the rows of one split while they are read into memory."""

    def __init__(self, part: Part, plan: _FilePlan) -> None:
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

    def split(self) -> TensorSplit:
        """Return the rows as a split."""
        return TensorSplit(tuple(map(torch.from_numpy, self.arrays)), torch.from_numpy(self.part.target))


def _read_inputs(
    plan: _FilePlan, parts: Mapping[str, Part], buffers: Mapping[str, _SplitBuffer]
) -> list[RunningMoments]:
    """Pass over all inputs: check every value, fill the buffers, measure the training rows.

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
