"""C7: every column of every input has one owner, and the recipe, the plan and the export agree on it."""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from glprune._files import unreadable_reason
from glprune._wording import counted
from glprune.audit.findings import Finding, Found, check_equal
from glprune.errors import UsageError
from glprune.schema import bundle as bundles
from glprune.schema.column_names import nfc, spelled_out
from glprune.schema.column_table import ColumnTable, columns_digest
from glprune.schema.strict_json import StrictError, read_json

if TYPE_CHECKING:
    from glprune.schema.plan import Plan
    from glprune.schema.recipe import InputSpec, Recipe
    from glprune.schema.report import Report

_DTYPES = {"float": ("float32",), "int": ("int64", "bool")}
_MAX_SHOWN = 60
_MAX_BYTES = 1 << 24


def check_columns(
    report: Report, plan: Plan | None, recipe: Recipe | None, tables: Sequence[ColumnTable]
) -> list[Finding]:
    """Check the list of columns itself, and what recipe, report and plan say of it.

    Args:
        report: The report.
        plan: The plan; None if it cannot be read.
        recipe: The recipe; None if it cannot be read.
        tables: The list that follows from report and plan.
    """
    found = [*_owners(tables), *_header(report, tables), *_features(report, tables)]
    if recipe is not None:
        found += [
            *_inputs(report, recipe),
            *_recipe_columns(recipe, tables),
            *_groups(report, recipe, tables),
        ]
    findings = [Finding(bundles.REPORT, where, what) for where, what in found]
    if plan is not None:
        findings += [Finding(bundles.PLAN, where, what) for where, what in _plan(report, plan, tables)]
    if plan is not None and recipe is not None:
        findings += [Finding(bundles.PLAN, where, what) for where, what in _factory(plan, recipe)]
    return findings


def check_expected_columns(
    report: Report, tables: Sequence[ColumnTable], expected: Sequence[str], source: str
) -> list[Finding]:
    """Compare the columns of all inputs with the auditor's list: the same names in the same order.

    Args:
        report: The report; columns of the list that it calls outside of the network may be there too.
        tables: The columns.
        expected: Names in the order of the trained network, over all inputs.
        source: Where the list comes from, for the findings.
    """
    listed = [column for table in tables for column in table.columns]
    outside = {*names_outside(report, tables, expected)}
    wanted = [name for name in expected if name not in outside]
    for n, (ours, theirs) in enumerate(zip(wanted, listed, strict=False)):
        if ours != theirs:
            what = f"is {_shown(ours)}; the report has {_shown(theirs)} there"
            return [Finding(source, f"column {n}", what)]
    if len(wanted) != len(listed):
        what = f"lists {counted(len(wanted), 'column')}; the network takes {len(listed)}"
        return [Finding(source, "", what)]
    return []


def names_outside(report: Report, tables: Sequence[ColumnTable], expected: Sequence[str]) -> list[str]:
    """Return the names of the auditor's list that, by the report, no input of the network takes."""
    listed = {column for table in tables for column in table.columns}
    return [name for name in expected if name in report.data.outside and name not in listed]


def read_columns(path: Path) -> list[str]:
    """Read the auditor's list of columns: a JSON list, the first line of a CSV file, or one name a line.

    Raises:
        UsageError: The file cannot be read, or lists no names.
    """
    reason = unreadable_reason(path)
    if reason is not None:
        raise UsageError(f"{path} {reason}; name a file that lists the columns.")
    text = path.read_bytes()[:_MAX_BYTES].decode("utf-8-sig", errors="replace")
    if text.lstrip().startswith("["):
        try:
            names = read_json(text.encode())
        except StrictError as error:
            raise UsageError(f"{path}: {error}.") from None
    else:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        is_header = bool(lines) and (len(lines) == 1 or "," in lines[0])
        names = next(csv.reader(lines[:1])) if is_header else lines
    if not names or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{path} lists no names; give a CSV header, a JSON list, or one name a line.")
    return [nfc(name) for name in names]


def _owners(tables: Sequence[ColumnTable]) -> Iterator[Found]:
    """Require one feature for every column of an input with features, and none for the others."""
    counts = Counter(column for table in tables for column in table.columns)
    for name, count in counts.items():
        if count > 1:
            yield "/data/columns", f"names {_shown(name)} {count} times"
    for table in tables:
        for column, owners in zip(table.columns, table.owners, strict=True):
            where = f"/data/columns/{table.name}"
            if table.axis is None and owners:
                yield (
                    where,
                    f"{_shown(column)} is of an input without features and feature {owners[0]!r} lists it",
                )
            elif table.axis is not None and len(owners) != 1:
                listed = f"features {', '.join(map(_shown, owners))} list" if owners else "no feature lists"
                yield where, f"{listed} column {_shown(column)}; it needs exactly one"


def _header(report: Report, tables: Sequence[ColumnTable]) -> Iterator[Found]:
    stated = report.data.columns
    if stated is None:
        return
    yield from check_equal("/data/columns", [*stated], [t.name for t in tables], "the exported inputs are")
    yield from check_equal("/digests/columns", report.digests.columns, columns_digest(stated), "they give")


def _features(report: Report, tables: Sequence[ColumnTable]) -> Iterator[Found]:
    """Require that features list columns of their input in its order, at the exported positions."""
    by_name = {table.name: table for table in tables}
    first_columns = []
    for n, feature in enumerate(report.features):
        where, table = f"/features/{n}", by_name.get(feature.input)
        if table is None or table.axis is None:
            yield f"{where}/input", f"no input {feature.input!r} with features is exported"
            continue
        place = {column: position for position, column in enumerate(table.columns)}
        unknown = next((column for column in feature.columns if column not in place), None)
        if unknown is not None:
            yield f"{where}/columns", f"{_shown(unknown)} is no column of input {feature.input!r}"
            continue
        positions = [place[column] for column in feature.columns]
        if not positions or positions != sorted(set(positions)):
            yield f"{where}/columns", "are not in the order of the input"
            continue
        first_columns.append((list(by_name).index(feature.input), positions[0]))
        if feature.status == "kept":
            read = [column for column in feature.columns if place[column] in table.kept]
            stated = feature.columns if table.whole else read
            wanted = table.exported_positions(stated)
            yield from check_equal(f"{where}/input_columns", feature.input_columns, wanted, "the export has")
    if first_columns != sorted(first_columns):
        yield "/features", "are not in the order of their first columns"


def _inputs(report: Report, recipe: Recipe) -> Iterator[Found]:
    """Require the inputs of the recipe: which have features, along which axis, of which type."""
    specs = {spec.name: spec for spec in recipe.model.inputs}
    for n, given in enumerate(report.export.inputs):
        spec = specs.get(given.name)
        if spec is None:
            continue  # C5 compares the names
        where, says = f"/export/inputs/{n}", f"{bundles.RECIPE} says"
        yield from check_equal(f"{where}/axis", given.axis, spec.axis, says)
        if given.dtype not in _DTYPES[spec.dtype]:
            yield f"{where}/dtype", f"is {given.dtype}, but {says} {spec.dtype}"


def _recipe_columns(recipe: Recipe, tables: Sequence[ColumnTable]) -> Iterator[Found]:
    """Require the columns that the recipe lists, in its order; a pattern stands for any it matches."""
    for spec, table in zip(recipe.model.inputs, tables, strict=False):
        where = f"/data/columns/{table.name}"
        if not recipe.data.yields:
            patterns = spec.columns if spec.columns is not None else recipe.data.features
            if patterns is not None:
                yield from _matches(where, table.columns, patterns, recipe.data.exclude)
            yield from _not_excluded(where, table.columns, recipe)
    if recipe.data.yields:
        names = [column for table in tables for column in table.columns]
        wanted = recipe.data.features or _numbered(recipe.model.inputs, tables)
        yield from _sequence("/data/columns", names, wanted)


def _numbered(specs: Sequence[InputSpec], tables: Sequence[ColumnTable]) -> list[str]:
    """Return the names of columns that a loader yields without names."""
    stems = [f"{spec.name}." if len(specs) > 1 else "x" for spec in specs]
    return [f"{s}{n}" for s, table in zip(stems, tables, strict=False) for n in range(len(table.columns))]


def _matches(
    where: str, columns: Sequence[str], patterns: Sequence[str], left_out: Iterable[str]
) -> Iterator[Found]:
    """Require that columns match patterns in their order, and that every plain name is there."""
    last = 0
    for column in columns:
        number = next((n for n, pattern in enumerate(patterns) if _fits(column, pattern)), None)
        if number is None:
            yield where, f"{_shown(column)} matches nothing that {bundles.RECIPE} lists"
            return
        if number < last:
            yield where, f"{_shown(column)} comes later than in {bundles.RECIPE}"
            return
        last = number
    present = {*columns}
    for pattern in patterns:
        plain = not any(c in pattern for c in "*?[")
        if plain and pattern not in present and not any(_fits(pattern, other) for other in left_out):
            yield where, f"{_shown(pattern)} is missing, which {bundles.RECIPE} lists"


def _fits(column: str, pattern: str) -> bool:
    return column == pattern or fnmatchcase(column, pattern)


def _not_excluded(where: str, columns: Sequence[str], recipe: Recipe) -> Iterator[Found]:
    """Require that no column is the target, the split column, or excluded."""
    split = recipe.data.split.column if recipe.data.split is not None else None
    for column in columns:
        if column in (recipe.data.target, split):
            yield where, f"{_shown(column)} is the target or the split column of {bundles.RECIPE}"
        if any(_fits(column, pattern) for pattern in recipe.data.exclude):
            yield where, f"{_shown(column)} is excluded by {bundles.RECIPE}"


def _groups(report: Report, recipe: Recipe, tables: Sequence[ColumnTable]) -> Iterator[Found]:
    """Require the features of the recipe: its groups of columns, and every other column by itself."""
    wanted = _wanted_features(recipe, tables)
    stated = {feature.name: feature.columns for feature in report.features}
    for n, feature in enumerate(report.features):
        if wanted.get(feature.name) != feature.columns:
            yield (
                f"/features/{n}/columns",
                f"of {_shown(feature.name)} are {_list(feature.columns)}, but by {bundles.RECIPE} they are "
                f"{_list(wanted.get(feature.name, []))}",
            )
    for name in wanted:
        if name not in stated:
            yield "/features", f"lack {_shown(name)}, which follows from the columns and {bundles.RECIPE}"


def _wanted_features(recipe: Recipe, tables: Sequence[ColumnTable]) -> dict[str, list[str]]:
    features: dict[str, list[str]] = {}
    for column in itertools.chain.from_iterable(t.columns for t in tables if t.axis is not None):
        features.setdefault(_group_of(column, recipe), []).append(column)
    return features


def _group_of(column: str, recipe: Recipe) -> str:
    """Return the feature of a column: the group that lists it, else itself."""
    for name, patterns in recipe.data.feature_groups.items():
        if any(_fits(column, p) for p in ([patterns] if isinstance(patterns, str) else patterns)):
            return name
    return column


def _plan(report: Report, plan: Plan, tables: Sequence[ColumnTable]) -> Iterator[Found]:
    """Require the inputs of the export in the plan, and in both the columns of the list."""
    stated = [(i.name, i.dtype, i.axis) for i in report.export.inputs]
    if [(p.name, p.dtype, p.axis) for p in plan.inputs] != stated:
        yield "/inputs", "are not those of the report's export"
        return
    for n, (part, given, table) in enumerate(zip(plan.inputs, report.export.inputs, tables, strict=True)):
        where = f"/inputs/{n}"
        if part.axis is not None:
            yield from check_equal(f"{where}/size", part.size, len(table.columns), "the report lists")
            yield from _sequence(f"{where}/kept", part.kept, table.kept)
        yield from _sequence(f"{where}/columns", part.columns, table.read)
        yield from _sequence(f"{where}/columns of the export", given.columns, table.exported)


def _factory(plan: Plan, recipe: Recipe) -> Iterator[Found]:
    if (plan.factory, plan.arguments) != (recipe.model.factory, recipe.model.arguments):
        yield "/factory", f"factory or arguments are not those of {bundles.RECIPE}"


def _sequence(where: str, found: Sequence[object], wanted: Sequence[object]) -> Iterator[Found]:
    """Yield the first place at which two lists differ."""
    for n, (a, b) in enumerate(zip(found, wanted, strict=False)):
        if a != b:
            yield where, f"has {_shown(a)} at position {n}, where {_shown(b)} belongs"
            return
    if len(found) != len(wanted):
        yield where, f"has {len(found)} entries, where {len(wanted)} belong"


def _shown(value: object) -> str:
    """Write a name so that lookalikes differ."""
    return spelled_out(value)[: _MAX_SHOWN + 2] if isinstance(value, str) else str(value)


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(_shown, names[:3])) + (", ..." if len(names) > 3 else "") if names else "none"
