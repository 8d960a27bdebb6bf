"""Rows of a CSV or Parquet file: the file of the run, its test file, or the auditor's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from glprune.audit.evaluation.rows import Division, Rows, in_chunks
from glprune.errors import DataError, GlpruneError, RecipeError
from glprune.schema.report import VALUES
from glprune.tables.columns import file_inputs
from glprune.tables.features import SPLITS, InputColumns
from glprune.tables.files import open_table
from glprune.tables.protected import assigned, read_protected, segmented
from glprune.tables.reading import FilePlan, SplitBuffer, read_inputs
from glprune.tables.splitting import Part, split_rows
from glprune.tables.targets import read_targets
from glprune.tables.validation import check_columns

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from glprune.audit.evaluation.subject import Subject
    from glprune.schema.plan import InputPlan
    from glprune.schema.recipe import Recipe
    from glprune.tables.table import Table


def read_file(subject: Subject, path: Path) -> Rows:
    """Read the rows of a file.

    If it is the data file of the run, as its digest shows, its test rows are taken, by the split of the
    recipe. If it is the run's test file, all of its rows are.

    Raises:
        DataError: The file, a column or a value cannot be used.
    """
    table = open_table(path)
    recipe, stated, digest = subject.recipe, subject.report.digests.data, table.digest()
    whole = recipe.data.file is not None and stated.get("file") == digest
    known = next((split for split in reversed(SPLITS) if stated.get(split) == digest), None)
    classes, targets = read_targets(recipe, {"file": table})
    parts = (
        split_rows(recipe, {"file": table}, targets, classes)
        if whole
        else {"test": Part(table, np.ones(table.rows, dtype=np.bool_), targets["file"])}
    )
    plan, held = _plan(subject, table)
    buffer = SplitBuffer(parts["test"], plan)
    read_inputs(plan, {"test": parts["test"]}, {"test": buffer})
    return Rows(
        source=str(path),
        kind="test rows" if whole or known == "test" else "own rows",
        evidence=_evidence(whole, known),
        batches=in_chunks(
            [x.astype(p.dtype, copy=False) for x, p in zip(buffer.arrays, subject.plan.inputs, strict=True)]
        ),
        held=held,
        target=parts["test"].target,
        divisions=_divisions(subject, table, {name: part.chosen for name, part in parts.items()}),
        missing=tuple(_missing(subject, plan)),
    )


def _evidence(whole: bool, known: str | None) -> str:
    """Say what the digest of a file shows; ``known`` is the split whose file has it."""
    if whole:
        return "the file is the one of the report (SHA-256), split as its recipe says"
    if known is None:
        return "its SHA-256 is none of the report's"
    return f"the file is the {known} file of the report (SHA-256)"


def _plan(subject: Subject, table: Table) -> tuple[FilePlan, tuple[NDArray[np.int64] | None, ...]]:
    """Choose the columns to read: all that the file has of the original's, at least those kept."""
    orders = original_columns(subject, table.names)
    present = set(table.names)
    inputs: list[InputColumns] = []
    held: list[NDArray[np.int64] | None] = []
    for part, order in zip(subject.plan.inputs, orders, strict=True):
        if part.axis is None:
            inputs.append(InputColumns(part.name, None, tuple(part.columns)))
            held.append(None)
            continue
        places = [n for n, name in order.items() if name in present or n in set(part.kept)]
        inputs.append(InputColumns(part.name, part.axis, tuple(order[n] for n in places)))
        held.append(np.array(places, dtype=np.int64))
    specs = {spec.name: spec.dtype for spec in subject.recipe.model.inputs}
    plan = FilePlan(
        tables={"file": table},
        names=(str(table.path),),
        inputs=tuple(inputs),
        dtypes=tuple(specs.get(part.name, "float") for part in inputs),
        features=(),
    )
    check_columns(table, plan.columns)
    return plan, tuple(held)


def _missing(subject: Subject, plan: FilePlan) -> list[str]:
    """Name the columns of the original that are not read."""
    read = set(plan.columns)
    return [name for f in subject.report.features for name in f.columns if name not in read]


def original_columns(subject: Subject, names: Sequence[str]) -> list[dict[int, str]]:
    """Return for each input of the original: position -> column; of the kept ones alone if no more is known.

    Reports of glprune 0.2.0 do not state the columns. They list features in the order of their first column;
    where features of several columns leave the order open, the recipe tells it from the names in the file.

    Args:
        subject: The bundle.
        names: Columns of the auditor's file.
    """
    by_recipe, stated = _by_recipe(subject.recipe, names), subject.report.data.columns or {}
    found = []
    for part in subject.plan.inputs:
        features = (f for f in subject.report.features if f.input == part.name)
        by_report = [name for feature in features for name in feature.columns]
        kept = dict(zip(part.kept, part.columns, strict=False))
        orders = (stated.get(part.name, ()), by_report, by_recipe.get(part.name, ()))
        found.append(next((dict(enumerate(order)) for order in orders if _fits(order, part)), kept))
    return found


def _fits(order: Sequence[str], part: InputPlan) -> bool:
    """Whether an order of columns has the size of an input and the kept columns at their positions."""
    return len(order) == part.size and [order[n] for n in part.kept] == part.columns


def _by_recipe(recipe: Recipe, names: Sequence[str]) -> Mapping[str, Sequence[str]]:
    try:
        return {part.name: part.columns for part in file_inputs(recipe, names)}
    except RecipeError:  # the file lacks columns that the recipe names, such as removed ones
        return {}


def _divisions(
    subject: Subject, table: Table, chosen: Mapping[str, NDArray[np.bool_]]
) -> dict[str, Division]:
    """Divide the test rows by every protected attribute that the file has."""
    recipe, report = subject.recipe, subject.report
    if recipe.policy is None or report.segments is None:
        return {}
    features = {f.name: f.columns for f in report.features}
    found = {}
    for stated in report.segments.attributes:
        if stated.name not in table.names and not set(features.get(stated.name, ["\0"])) <= set(table.names):
            continue
        policy = recipe.policy.model_copy(update={"protected": [stated.name]})
        own = recipe.model_copy(update={"policy": policy})
        try:
            (attribute,) = read_protected(own, {"file": table}, features, chosen)
        except GlpruneError as error:
            raise DataError(str(error)) from None
        if "train" in chosen:  # nothing need be taken from the report
            parts = segmented(attribute, policy.bins.get(stated.name))
            found[stated.name] = Division(parts.labels, parts.number["test"])
        elif stated.by == VALUES or stated.edges is not None:
            labels = tuple(segment.value for segment in stated.segments)
            found[stated.name] = Division(labels, assigned(attribute, labels, stated.edges))
    return found
