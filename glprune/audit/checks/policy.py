"""C11: features that must be dropped or kept, and what is derived from them.

Rules hold for everything that the file can read: inputs, columns, features, and what they derive from. Names
are compared in Unicode's normal form C.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from glprune.audit.findings import Finding, Found
from glprune.errors import UsageError, did_you_mean
from glprune.schema import bundle as bundles
from glprune.schema.column_names import lookalikes, nfc, spelled_out
from glprune.schema.report import Feature, Policy, Report
from glprune.schema.strict_yaml import nearest_line, parse, read_text

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from glprune.schema.column_table import ColumnTable
    from glprune.schema.recipe import Recipe


def read_policy(path: Path) -> Policy:
    """Read rules of the auditor, YAML or JSON with the keys of the report's ``policy``.

    Raises:
        UsageError: The file cannot be read or is not a policy.
    """
    tree, lines = parse(read_text(path), str(path))
    parents = tree.get("derived_from")
    if isinstance(parents, dict):  # as in a recipe, a single name may stand for itself
        single = {name: [value] for name, value in parents.items() if isinstance(value, str)}
        tree = tree | {"derived_from": parents | single}
    try:
        return Policy.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        line = nearest_line(lines, first["loc"])
        raise UsageError(f"{path}{f':{line}' if line else ''}: {_mistake(first)}") from None


def _mistake(error: ErrorDetails) -> str:
    """Describe a mistake in a file of rules, and its remedy."""
    where, given = ".".join(map(str, error["loc"])), error["input"]
    if error["type"] == "extra_forbidden":
        keys = [*Policy.model_fields]
        return f"{where} is not a key.{did_you_mean(where, keys)} Keys: {', '.join(keys)}."
    if error["type"] == "list_type":
        example = f", such as [{given[:40]}]" if isinstance(given, str) else ""
        return f"{where} should be a list{example}."
    if error["type"] == "string_type":
        return f"{where} should be a name; put it in quotes."
    if error["type"] == "dict_type":
        return f"{where} should map names to lists, such as {{age_band: [age]}}."
    return f"{where}: {error['msg']}."


@dataclass(frozen=True)
class Readable:
    """The names of what the shipped file can read, and all names that a rule may use.

    Attributes:
        read: Name of an input, column or feature that is read -> the feature or input it is of.
        others: Names that are known and not read: removed features and columns, columns of the data files.
    """

    read: Mapping[str, str]
    others: frozenset[str]


def readable_names(report: Report, tables: Sequence[ColumnTable], recipe: Recipe | None) -> Readable:
    """List what the file can read.

    Args:
        report: The report; C6 and C7 check that the model reads its kept columns.
        tables: Its columns.
        recipe: The recipe, whose target and excluded columns a rule may name; None if it cannot be read.
    """
    read: dict[str, str] = {}
    for table in tables:
        owners = {table.columns[k]: next(iter(table.owners[k]), table.name) for k in table.kept}
        read |= {nfc(name): owner for name, owner in owners.items()}
        read |= {nfc(owner): owner for owner in owners.values()}
        if table.axis is None or table.kept:
            read.setdefault(nfc(table.name), table.name)
    others = {name for f in report.features for name in (f.name, *f.columns)} | {*report.data.outside}
    if recipe is not None:
        split = recipe.data.split.column if recipe.data.split is not None else None
        others |= {name for name in (recipe.data.target, split, *recipe.data.exclude) if name is not None}
    return Readable(read, frozenset(map(nfc, others)) - read.keys())


def check_policy(names: Readable, policy: Policy, source: str) -> list[Finding]:
    """Check what the file can read against rules.

    Args:
        names: What it can read.
        policy: The rules.
        source: The file with the rules, for the findings.
    """
    rules = _normalised(policy)
    found = itertools.chain(
        _drops(names, rules), _keeps(names, rules), _unknown(names, rules), _alike(names, rules)
    )
    place = "/policy" if source == bundles.REPORT else ""
    return [Finding(source, place + where, what) for where, what in dict.fromkeys(found)]


def protected_kept(names: Readable, policy: Policy) -> list[str]:
    """Return what is read and is, or is derived from, a protected attribute."""
    rules = _normalised(policy)
    wanted = set(rules.protected)
    return sorted({owner for name, owner in names.read.items() if _origins(name, rules).keys() & wanted})


def _normalised(policy: Policy) -> Policy:
    def all_nfc(values: Iterable[str]) -> list[str]:
        return [nfc(value) for value in values]

    return Policy(
        must_drop=all_nfc(policy.must_drop),
        must_keep=all_nfc(policy.must_keep),
        protected=all_nfc(policy.protected),
        derived_from={nfc(name): all_nfc(parents) for name, parents in policy.derived_from.items()},
    )


def _origins(name: str, policy: Policy) -> dict[str, str]:
    """Map everything a name is derived from, itself included, to the step before it."""
    found, waiting = {name: ""}, [name]
    while waiting:
        current = waiting.pop()
        for parent in policy.derived_from.get(current, []):
            if parent not in found:
                found[parent] = current
                waiting.append(parent)
    return found


def ancestors(feature: Feature, policy: Policy) -> dict[str, str]:
    """Map everything a feature is derived from, including itself and its columns, to the step before it."""
    found = {feature.name: ""} | {column: feature.name for column in feature.columns}
    for name in [*found]:
        found = _origins(name, policy) | found
    return found


def _drops(names: Readable, policy: Policy) -> Iterator[Found]:
    """Require that nothing is read which is, or is derived from, a name in must_drop."""
    forbidden = set(policy.must_drop)
    for name, owner in names.read.items():
        for origin in sorted(_origins(name, policy).keys() & forbidden):
            of = "" if name == owner else f" of {spelled_out(owner)}"
            via = "" if origin == name else f", derived from {spelled_out(origin)}"
            yield (
                f"/must_drop/{policy.must_drop.index(origin)}",
                f"must_drop lists {spelled_out(origin)}; the file reads {spelled_out(name)}{of}{via}",
            )


def _keeps(names: Readable, policy: Policy) -> Iterator[Found]:
    present = {origin for name in names.read for origin in _origins(name, policy)}
    for n, name in enumerate(policy.must_keep):
        if name not in present:
            yield (
                f"/must_keep/{n}",
                f"must_keep lists {spelled_out(name)}, but nothing that is read is it or is derived from it",
            )


def _unknown(names: Readable, policy: Policy) -> Iterator[Found]:
    """Require that every rule is of something: a misspelt one would never fail."""
    known = {*names.read, *names.others}
    origins = {parent for parents in policy.derived_from.values() for parent in parents}
    rules = (
        ("must_drop", policy.must_drop, known | origins | policy.derived_from.keys()),
        ("protected", policy.protected, known | origins | policy.derived_from.keys()),
        ("derived_from", list(policy.derived_from), known | origins),
    )
    for key, listed, allowed in rules:
        for n, name in enumerate(listed):
            if name not in allowed:
                yield (
                    f"/{key}/{n if key != 'derived_from' else name}",
                    f"{spelled_out(name)} is no feature, column or input, nor what one is derived from: the "
                    f"rule has no effect.{did_you_mean(name, sorted(known))}",
                )


def _alike(names: Readable, policy: Policy) -> Iterator[Found]:
    """Require that nothing is read whose name looks like one in must_drop, but is another."""
    forbidden = dict.fromkeys(policy.must_drop)
    read = [name for name in names.read if name not in forbidden]
    for listed, name in lookalikes([*forbidden, *read]):
        if listed in forbidden and name not in forbidden:
            yield (
                f"/must_drop/{policy.must_drop.index(listed)}",
                f"must_drop lists {spelled_out(listed)}; the file reads {spelled_out(name)}, whose name "
                "looks like it",
            )
