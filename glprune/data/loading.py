"""Load the data of a recipe: into memory, or as splits that are streamed from their files."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from glprune.data.dataloader import load_loader
from glprune.data.records import Data, Standardization
from glprune.data.splits import Split, TensorSplit
from glprune.data.streaming import StreamedSplit, StreamPlan, plan_stream, stream_note
from glprune.schema.column_names import lookalikes, spelled_out
from glprune.tables.columns import standardized_columns
from glprune.tables.protected import read_protected
from glprune.tables.reading import FilePlan, SplitBuffer, plan_files, read_inputs
from glprune.tables.splitting import Part, split_rows
from glprune.tables.table import header_hint
from glprune.tables.targets import read_targets
from glprune.tables.validation import RunningMoments, constant_notes

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
    plan = plan_files(recipe)
    stream = plan_stream(recipe, plan.tables, plan.inputs)
    return _assemble(recipe, plan, _read_files(recipe, plan, stream), stream)


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


def _read_files(recipe: Recipe, plan: FilePlan, stream: StreamPlan | None) -> _ReadRows:
    """Read the targets, split the rows, and pass once over the inputs."""
    classes, targets = read_targets(recipe, plan.tables)
    parts = split_rows(recipe, plan.tables, targets, classes)
    if stream is not None:
        moments = read_inputs(plan, parts, {})
        streamed = {name: StreamedSplit.from_plan(part, stream) for name, part in parts.items()}
        return _ReadRows(classes, parts, streamed, moments)
    buffers = {name: SplitBuffer(part, plan) for name, part in parts.items()}
    moments = read_inputs(plan, parts, buffers)
    return _ReadRows(classes, parts, {name: _in_memory(b) for name, b in buffers.items()}, moments)


def _standardization(moments: RunningMoments, columns: Collection[str]) -> Standardization:
    """Return mean and standard deviation of some columns; 0 and 1 of the others."""
    chosen = torch.tensor([name in columns for name in moments.columns])
    mean, std = torch.from_numpy(moments.mean), torch.from_numpy(moments.std)
    return Standardization(torch.where(chosen, mean, 0.0), torch.where(chosen, std, 1.0))


def _in_memory(buffer: SplitBuffer) -> TensorSplit:
    """Return the rows of a buffer as a split."""
    return TensorSplit(tuple(map(torch.from_numpy, buffer.arrays)), torch.from_numpy(buffer.part.target))


def _assemble(recipe: Recipe, plan: FilePlan, rows: _ReadRows, stream: StreamPlan | None) -> Data:
    """Put together what the rest of the package needs to know of the data."""
    standardized = standardized_columns(recipe, plan.inputs, plan.first.names)
    digests = {key: table.digest() for key, table in plan.tables.items()}
    constants = [note for moments in rows.moments for note in constant_notes(moments, standardized)]
    return Data(
        source=", ".join(plan.names),
        inputs=plan.inputs,
        features=plan.features,
        classes=rows.classes,
        standardization=tuple(
            _standardization(moments, standardized) if standardized and dtype == "float" else None
            for moments, dtype in zip(rows.moments, plan.dtypes, strict=True)
        ),
        digests=digests,
        notes=(*constants, *_notes(recipe, plan, rows, stream), *_same_files(digests)),
        outside=tuple(sorted(set(plan.first.names) - set(plan.columns))),
        protected=read_protected(
            recipe, plan.tables, plan.feature_columns, {name: p.chosen for name, p in rows.parts.items()}
        ),
        train=rows.splits["train"],
        valid=rows.splits["valid"],
        test=rows.splits["test"],
    )


def _notes(recipe: Recipe, plan: FilePlan, rows: _ReadRows, stream: StreamPlan | None) -> list[str]:
    """Collect what the user should know of the data."""
    notes = []
    if rows.classes is not None and recipe.data.classes is None:
        notes.append(f"data.classes is not given; the sorted labels are used: {', '.join(rows.classes)}.")
    if recipe.data.target is None and (hint := header_hint(plan.first.names)):
        notes.append(f"{plan.names[0]}:{hint}")
    if stream is not None:
        notes.append(stream_note(stream, plan.tables))
    return notes


def _same_files(digests: Mapping[str, str]) -> list[str]:
    """Return a note for every two splits with the same rows."""
    return [
        f"data.{a} and data.{b} are the same file; what is measured on {b} is not held out."
        for a, b in itertools.combinations(digests, 2)
        if digests[a] == digests[b]
    ]
