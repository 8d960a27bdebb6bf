"""Rows of a CSV or Parquet file: the file of the run, its test file, or the auditor's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from glprune._wording import counted
from glprune.audit.evaluation.divisions import divided
from glprune.audit.evaluation.rows import Division, Rows, in_chunks
from glprune.errors import DataError, GlpruneError, RecipeError
from glprune.tables.columns import file_inputs
from glprune.tables.features import SPLITS, InputColumns
from glprune.tables.files import open_table
from glprune.tables.protected import Attribute, read_protected, segmented
from glprune.tables.reading import FilePlan, SplitBuffer, read_inputs
from glprune.tables.remedies import for_auditor
from glprune.tables.splitting import Part, split_numbers
from glprune.tables.targets import read_targets
from glprune.tables.validation import check_columns

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from glprune.audit.evaluation.rows import Array, SplitName
    from glprune.audit.evaluation.subject import Subject
    from glprune.schema.plan import InputPlan
    from glprune.schema.recipe import Recipe
    from glprune.tables.table import Table

_WHICH = {name: f"its {name} rows, split as its recipe says" for name in SPLITS} | {"all": "all of its rows"}
_AS_MANY = (
    "the file has as many rows as train, valid and test of the report together, and another SHA-256: it "
    "may be the same in another format, or changed, or the report's digest is wrong. The rows that the "
    "network was trained on make figures better; --split test takes the test rows."
)


def read_file(subject: Subject, path: Path, split: SplitName | None = None) -> Rows:
    """Read the rows of a file.

    If it is the data file of the run, as its digest shows, its test rows are taken, by the split of the
    recipe. If it is the run's test file, all of its rows are. Of another file with the recipe's split column
    the test rows are taken too, of any other all rows.

    Args:
        subject: The bundle.
        path: The file.
        split: Rows to take instead.

    Raises:
        DataError: The file, a column or a value cannot be used.
    """
    try:
        return _read(subject, open_table(path), split)
    except DataError as error:
        raise DataError(for_auditor(str(error))) from None


def _read(subject: Subject, table: Table, split: SplitName | None) -> Rows:
    recipe = subject.recipe
    source = _Source(subject, table)
    _, targets = read_targets(recipe, {"file": table})
    target = targets["file"]
    taken = source.take(split, target)
    plan, held, names = _plan(subject, table)
    part = Part(table, taken.chosen, target[taken.chosen])
    buffer = SplitBuffer(part, plan)
    read_inputs(plan, {"test": part}, {"test": buffer})
    divisions, undivided = _divisions(subject, table, taken)
    numbers = np.flatnonzero(taken.chosen)
    return Rows(
        source=str(table.path),
        kind="test rows" if taken.is_test else "own rows",
        evidence=taken.evidence,
        batches=in_chunks(
            [x.astype(p.dtype, copy=False) for x, p in zip(buffer.arrays, subject.plan.inputs, strict=True)]
        ),
        held=held,
        target=part.target,
        divisions=divisions,
        missing=tuple(_missing(subject, plan)),
        undivided=undivided,
        names=names,
        place=lambda row: table.place(int(numbers[row])),
        notes=taken.notes,
    )


@dataclass(frozen=True)
class _Taken:
    """The rows that are taken of a file.

    Attributes:
        chosen: Mask of the rows, shape (table.rows,).
        is_test: Whether they are the test rows of the report.
        evidence: How that is known.
        splits: Split -> mask, where segments follow from all rows of the run; else None.
        notes: What the auditor should know of the choice.
    """

    chosen: NDArray[np.bool_]
    is_test: bool
    evidence: str
    splits: Mapping[str, NDArray[np.bool_]] | None = None
    notes: tuple[str, ...] = ()


class _Source:
    """A file, and which rows of it are evaluated."""

    def __init__(self, subject: Subject, table: Table) -> None:
        self._recipe, self._table = subject.recipe, table
        self._splits = {name: facts.rows for name, facts in subject.report.data.splits.items()}
        stated, digest = subject.report.digests.data, table.digest()
        self._whole = subject.recipe.data.file is not None and stated.get("file") == digest
        self._known = next((name for name in reversed(SPLITS) if stated.get(name) == digest), None)
        spec = subject.recipe.data.split
        self._column = spec.column if spec is not None and spec.column in table.names else None

    def take(self, split: SplitName | None, target: Array) -> _Taken:
        """Choose the rows.

        Args:
            split: The rows that the auditor asks for; None: the default.
            target: The targets of all rows.
        """
        is_divided = self._whole or self._column is not None
        if split == "all" or (split is None and not is_divided):
            return self._all()
        if self._known is not None and not self._whole and split in (None, self._known):
            return self._all()
        name = split or "test"
        try:
            splits = self._divide(name, target, is_divided)
        except DataError:
            if split is not None or self._whole:
                raise
            return self._all(
                f"its column {self._column!r} does not tell test rows from others, so all rows are taken."
            )
        if self._whole:
            is_test = name == "test"
            return _Taken(splits[name], is_test, self._evidence(name), splits if is_test else None)
        notes = () if split is not None else self._note(int(splits[name].sum()))
        return _Taken(splits[name], False, self._evidence(name), notes=notes)

    def _divide(self, name: SplitName, target: Array, is_divided: bool) -> dict[str, NDArray[np.bool_]]:
        """Return split -> mask; there are rows of the named one."""
        path = self._table.path
        if not is_divided and not self._as_many():
            raise DataError(
                f"{path}: --split {name} needs the data file of the report, or one with the column that the "
                "recipe splits by; leave --split out to take all rows."
            )
        numbers = split_numbers(self._recipe, self._table, target)
        splits = {known: numbers == n for n, known in enumerate(SPLITS)}
        if not splits[name].any():
            raise DataError(
                f"{path}: its column {self._column!r} calls no row {name}; take others with --split."
            )
        return splits

    def _all(self, *notes: str) -> _Taken:
        everything = np.ones(self._table.rows, dtype=np.bool_)
        if self._known is None and self._as_many():
            notes = (*notes, _AS_MANY)
        return _Taken(
            everything, self._known == "test" and not self._whole, self._evidence("all"), notes=notes
        )

    def _note(self, chosen: int) -> tuple[str, ...]:
        return (
            f"of {counted(self._table.rows, 'row')}, the {chosen:,} are taken that the column "
            f"{self._column!r} calls test, as in the recipe; --split all takes all.",
        )

    def _as_many(self) -> bool:
        """Whether the file has as many rows as the run's: it may be the same in another format."""
        return self._recipe.data.file is not None and self._table.rows == sum(self._splits.values())

    def _evidence(self, name: str) -> str:
        """Say what the digest of the file shows."""
        if self._whole:
            return f"the file is the one of the report (SHA-256), {_WHICH[name]}"
        if self._known is not None:
            return f"the file is the {self._known} file of the report (SHA-256)"
        return "its SHA-256 is none of the report's"


Held = tuple["NDArray[np.int64] | None", ...]


def _plan(subject: Subject, table: Table) -> tuple[FilePlan, Held, list[dict[int, str]]]:
    """Choose the columns to read: all that the file has of the original's, at least those kept.

    Returns:
        The plan; for each input the positions of its columns in the original, and their names by position.
    """
    orders = original_columns(subject, table.names)
    names: list[dict[int, str]] = []
    present = set(table.names)
    inputs: list[InputColumns] = []
    held: list[NDArray[np.int64] | None] = []
    for part, order in zip(subject.plan.inputs, orders, strict=True):
        names.append(order if part.axis is not None else dict(enumerate(part.columns)))
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
    return plan, tuple(held), names


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


def _divisions(subject: Subject, table: Table, taken: _Taken) -> tuple[dict[str, Division], dict[str, str]]:
    """Divide the rows by every protected attribute that the file has.

    Returns:
        The divisions, and for other attributes why there is none.
    """
    segments = subject.report.segments
    found: dict[str, Division] = {}
    reasons: dict[str, str] = {}
    if subject.recipe.policy is None or segments is None:
        return found, reasons
    features = {f.name: f.columns for f in subject.report.features}
    for stated in segments.attributes:
        if stated.name not in table.names and not set(features.get(stated.name, ["\0"])) <= set(table.names):
            continue
        attribute = _attribute(subject.recipe, table, stated.name, features, taken)
        if taken.splits is not None:  # nothing need be taken from the report
            parts = segmented(attribute, subject.recipe.policy.bins.get(stated.name))
            found[stated.name] = Division(parts.labels, parts.number["test"])
            continue
        division = divided(attribute, stated, is_test=taken.is_test)
        if isinstance(division, Division):
            found[stated.name] = division
        else:
            reasons[stated.name] = division
    return found, reasons


def _attribute(
    recipe: Recipe, table: Table, name: str, features: Mapping[str, Sequence[str]], taken: _Taken
) -> Attribute:
    """Read one protected attribute."""
    assert recipe.policy is not None
    policy = recipe.policy.model_copy(update={"protected": [name]})
    chosen = taken.splits if taken.splits is not None else {"test": taken.chosen}
    try:
        (attribute,) = read_protected(
            recipe.model_copy(update={"policy": policy}), {"file": table}, features, chosen
        )
    except GlpruneError as error:
        raise DataError(str(error)) from None
    return attribute
