"""The columns of every input in one list: their order, the feature that owns each, and which are read.

Report, plan, input schema and ONNX file each state a part of it; ``glprune verify`` derives all parts from
this one list and compares.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glprune.schema.plan import Plan
    from glprune.schema.report import Feature, Report


@dataclass(frozen=True)
class ColumnTable:
    """The columns of one input of the trained network.

    Attributes:
        name: The input.
        axis: Axis of the columns; None for an input without features, which is kept whole.
        columns: Names in the order in which the trained network takes them; empty where they have none.
        owners: For each column the features that list it: exactly one, or none without an axis.
        kept: Positions of the columns that the shipped network reads.
        whole: Whether the shipped file takes all columns and reads those of ``kept``.
    """

    name: str
    axis: int | None
    columns: tuple[str, ...]
    owners: tuple[tuple[str, ...], ...]
    kept: tuple[int, ...]
    whole: bool

    @property
    def read(self) -> list[str]:
        """Names of the columns that the shipped network reads."""
        return [self.columns[position] for position in self.kept]

    @property
    def exported(self) -> list[str]:
        """Names of the columns of the shipped file, in its order."""
        return list(self.columns) if self.whole else self.read

    def exported_positions(self, columns: Sequence[str]) -> list[int]:
        """Return the positions of those of some columns that the shipped file has."""
        place = {name: position for position, name in enumerate(self.exported)}
        return [place[name] for name in columns if name in place]


def column_tables(report: Report, plan: Plan | None) -> list[ColumnTable]:
    """Derive the columns of every input from a report.

    Args:
        report: The report. One of glprune 0.2.0 does not state the order; there it is that of the features.
        plan: The plan, which says whether an input keeps one column of its last feature; None if unknown.
    """
    stated = report.data.columns
    planned = {part.name: part.kept for part in plan.inputs} if plan is not None else {}
    tables = []
    for given in report.export.inputs:
        features = [f for f in report.features if f.input == given.name]
        listed = [c for f in features for c in f.columns] if given.axis is not None else given.columns
        columns = tuple(listed if stated is None else stated.get(given.name, []))
        owners = _owners(columns, features)
        keeps_all = given.axis is None
        tables.append(
            ColumnTable(
                name=given.name,
                axis=given.axis,
                columns=columns,
                owners=owners,
                kept=tuple(range(len(columns)))
                if keeps_all
                else _kept(columns, features, planned.get(given.name, [])),
                whole=keeps_all or report.export.signature == "original",
            )
        )
    return tables


def _owners(columns: Sequence[str], features: Sequence[Feature]) -> tuple[tuple[str, ...], ...]:
    owners: dict[str, list[str]] = {column: [] for column in columns}
    for feature in features:
        for column in feature.columns:
            owners.setdefault(column, []).append(feature.name)
    return tuple(tuple(owners[column]) for column in columns)


def _kept(columns: Sequence[str], features: Sequence[Feature], planned: Sequence[int]) -> tuple[int, ...]:
    """Return the positions of the columns of kept features.

    An input whose features all became zero keeps one column, even if its feature has several; which one, the
    plan says.
    """
    kept = [feature for feature in features if feature.status == "kept"]
    read = {column for feature in kept for column in feature.columns}
    positions = tuple(position for position, name in enumerate(columns) if name in read)
    single = len(kept) == 1 and len(planned) == 1 and planned[0] in positions
    return tuple(planned) if single else positions


def columns_digest(columns: Mapping[str, Sequence[str]]) -> str:
    """Return the digest of the columns of every input: SHA-256 of JSON in UTF-8 without spaces."""
    text = json.dumps(columns, ensure_ascii=False, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
