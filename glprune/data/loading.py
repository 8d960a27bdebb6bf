"""Read data from files: into memory, or to be streamed from where they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from glprune.data.columns import file_inputs, make_features
from glprune.data.dataloader import load_loader
from glprune.data.protected import read_protected
from glprune.data.records import Data, InputColumns
from glprune.data.splits import SPLITS, Split, TensorSplit
from glprune.data.splitting import Part, split_rows
from glprune.data.streaming import StreamedSplit, plan_stream, stream_note
from glprune.data.tables import Table, open_table
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

if TYPE_CHECKING:
    from glprune.schema.recipe import Recipe


def load_data(recipe: Recipe) -> Data:
    """Read, check and split the data a recipe names.

    Raises:
        DataError: A file or column cannot be used; file, column, count and first row are named.
        RecipeError: The recipe asks for columns the files do not have.
    """
    return load_loader(recipe) if recipe.data.yields else load_files(recipe)


def load_files(recipe: Recipe) -> Data:
    """Read, check and divide the files a recipe names.

    Small columns are read first; then one pass over the inputs checks every value, gathers what is to be
    known of the training rows and, unless they are streamed, keeps the rows of each split.

    Raises:
        DataError: A file or column cannot be used; file, column, count and first row are named.
        RecipeError: The recipe asks for columns the files do not have.
    """
    spec = recipe.data
    names = {"file": spec.file} if spec.file else {s: getattr(spec, s) for s in SPLITS}
    tables = {key: open_table(recipe.path(str(name))) for key, name in names.items()}
    first = next(iter(tables.values()))
    inputs = file_inputs(recipe, first.names)
    features = make_features(recipe, inputs)
    plan = plan_stream(recipe, tables, inputs)
    for table in tables.values():
        check_columns(table, [name for part in inputs for name in part.columns])
    classes, targets = read_targets(recipe, tables)
    parts = split_rows(recipe, tables, targets, classes)
    dtypes = _dtypes(recipe)
    kept = {s: _Kept(part, inputs, dtypes) for s, part in parts.items()} if plan is None else {}
    moments = _read_rows(recipe, tables, inputs, parts, kept)
    notes = [
        n for own, dtype in zip(moments, dtypes, strict=True) for n in constant_notes(recipe, own, dtype)
    ]
    if classes is not None and spec.classes is None:
        notes.append(f"data.classes is not given; the order is {', '.join(classes)}, as the labels sort.")
    if plan is not None:
        notes.append(stream_note(plan, tables))
    splits: dict[str, Split] = {
        s: kept[s].split() if plan is None else StreamedSplit.from_plan(part, plan)
        for s, part in parts.items()
    }
    columns = [name for part in inputs for name in part.prunable_columns]
    members = {feature.name: [columns[c] for c in feature.columns] for feature in features}
    scaled = [spec.standardize == "train" and dtype == "float" for dtype in dtypes]
    return Data(
        source=", ".join(str(names[key]) for key in names),
        inputs=inputs,
        features=features,
        classes=classes,
        standardization=tuple(
            m.standardization() if asked else None for m, asked in zip(moments, scaled, strict=True)
        ),
        digests={key: table.digest() for key, table in tables.items()},
        notes=tuple(notes),
        outside=tuple(sorted(set(first.names) - {name for part in inputs for name in part.columns})),
        protected=read_protected(recipe, tables, members, {s: part.chosen for s, part in parts.items()}),
        **splits,
    )


def _dtypes(recipe: Recipe) -> list[Dtype]:
    return [spec.dtype for spec in recipe.model.inputs]


class _Kept:
    """The rows of one split as they are read into memory."""

    def __init__(self, part: Part, inputs: Sequence[InputColumns], dtypes: Sequence[Dtype]) -> None:
        self.part = part
        self.arrays = [
            np.empty((len(part.target), len(own.columns)), TYPES[dtype])
            for own, dtype in zip(inputs, dtypes, strict=True)
        ]

    def put(self, number: int, row: int, column: int, values: NDArray[Any]) -> None:
        """Take in the split's own rows of a tile of input ``number``."""
        start = int(np.count_nonzero(self.part.chosen[:row]))
        rows, columns = values.shape
        self.arrays[number][start : start + rows, column : column + columns] = values

    def split(self) -> TensorSplit:
        """The split."""
        return TensorSplit(tuple(map(torch.from_numpy, self.arrays)), torch.from_numpy(self.part.target))


def _read_rows(
    recipe: Recipe,
    tables: Mapping[str, Table],
    inputs: Sequence[InputColumns],
    parts: Mapping[str, Part],
    kept: Mapping[str, _Kept],
) -> list[RunningMoments]:
    """Pass over all inputs: check every value, keep rows where asked to, measure the training rows.

    Returns:
        The moments of each input's columns on the training rows.

    Raises:
        DataError: A value is not finite, or no code where codes are asked for.
    """
    moments = [RunningMoments(own.columns) for own in inputs]
    for table in tables.values():
        here = {split: part for split, part in parts.items() if part.table is table}
        for number, (own, dtype) in enumerate(zip(inputs, _dtypes(recipe), strict=True)):
            facts, read = ColumnChecker(own.columns, dtype), table.reader()
            for piece in table.pieces:
                for tile in blocks(read, piece, own.columns, dtype):
                    values = facts.check(tile)
                    if facts.flawed:
                        continue  # the rest is read for what else is wrong
                    for split, part in here.items():
                        rows = values[part.chosen[tile.row : tile.row + len(values)]]
                        if split in kept:
                            kept[split].put(number, tile.row, tile.column, rows)
                        if split == "train":
                            moments[number].add(tile.column, rows)
            facts.refuse_defects(table)
    return moments
