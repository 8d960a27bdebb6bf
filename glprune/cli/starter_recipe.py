"""Write a first recipe for a data file; every guess is marked by a comment."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, PackageLoader, StrictUndefined

from glprune._escaping import escape_for_terminal
from glprune.data.files import open_table
from glprune.data.tables import Table
from glprune.data.validation import is_numeric, numbers
from glprune.errors import DataError

_TARGETS = ("target", "label", "class", "y", "default", "outcome", "diagnosis", "credit")
_SPLITS: set[str | None] = {"train", "valid", "test"}


@dataclass(frozen=True)
class _Guess:
    """What the columns of a data file seem to be."""

    target: str
    task: str
    classes: tuple[str | int, ...]
    split: str | None
    excluded: tuple[str, ...]
    groups: dict[str, str | list[str]]
    features: int


def starter_recipe(data: Path, folder: Path) -> str:
    """Write a commented recipe for a data file; it loads without changes.

    Args:
        data: CSV or Parquet.
        folder: The folder of the recipe; paths in it are relative to this folder.

    Raises:
        DataError: The file cannot be read or has fewer than two columns.
    """
    table = open_table(data)
    if sum(not pa.types.is_nested(kind) for kind in table.schema.types) < 2:
        raise DataError(f"{data}: one column only; a recipe needs features and a target.")
    environment = Environment(
        loader=PackageLoader("glprune.cli"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # JSON is valid YAML, and quotes and escapes everything
    environment.filters["yaml"] = lambda value: escape_for_terminal(json.dumps(value, ensure_ascii=False))
    template = environment.get_template("starter.yaml.j2")
    path = Path(os.path.relpath(data.resolve(), folder.resolve())).as_posix()
    return template.render(path=path, rows=table.rows, g=_guess(table))


def _guess(table: Table) -> _Guess:
    types = dict(zip(table.schema.names, table.schema.types, strict=True))
    flat = [n for n in table.names if not pa.types.is_nested(types[n])]
    target = next((n for wanted in _TARGETS for n in flat if n.lower() == wanted), flat[-1])
    labels = pc.unique(table.column(target).drop_null()).to_pylist()
    task = _guess_task(types[target], len(labels))
    texts = [n for n in table.names if n != target and pa.types.is_string(types[n])]
    split = next((n for n in texts if _is_split(table, n)), None)
    columns = [n for n in table.names if n not in (target, split)]
    features = [n for n in columns if is_numeric(types[n])]
    return _Guess(
        target=target,
        task=task,
        classes=_labels(labels) if task == "binary" else (),
        split=split,
        excluded=tuple(n for n in columns if n not in features),
        groups=_one_hot_groups(table, features),
        features=len(features),
    )


def _guess_task(dtype: pa.DataType, labels: int) -> str:
    """Guess the task from the type of the target and its number of distinct values."""
    if labels == 2:
        return "binary"
    many = labels > 50 or (pa.types.is_floating(dtype) and labels > 10)
    return "regression" if many and is_numeric(dtype) else "multiclass"


def _is_split(table: Table, name: str) -> bool:
    """Whether a column holds train, valid and test and nothing else."""
    found: set[str | None] = set()
    for batch in table.batches([name]):
        found |= set(pc.unique(batch[0]).to_pylist())
        if not found <= _SPLITS:
            return False
    return found == _SPLITS


def _labels(values: Sequence[object]) -> tuple[str | int, ...]:
    """Sort labels; integers stay integers, everything else becomes text."""
    integers = [int(v) if isinstance(v, float) and v.is_integer() else v for v in values]
    kept = [v if isinstance(v, int) and not isinstance(v, bool) else str(v) for v in integers]
    return tuple(sorted(kept, key=lambda v: (isinstance(v, str), v)))


def _one_hot_groups(table: Table, features: Sequence[str]) -> dict[str, str | list[str]]:
    """Group columns of 0 and 1 with a common prefix that add up to 1 in every row."""
    groups: dict[str, list[str]] = {}
    for separator in ("=", "__", "_", ":", "."):
        for name in features:
            prefix, found, _ = name.rpartition(separator) if separator == "_" else name.partition(separator)
            taken = any(name in columns for columns in groups.values())
            if found and prefix and not taken:
                groups.setdefault(prefix + separator, []).append(name)
        groups = {key: columns for key, columns in groups.items() if _is_one_hot(table, columns)}
    return {
        key.rstrip("=_:."): _pattern(key, columns, table.names)
        for key, columns in groups.items()
        if key.rstrip("=_:.") not in features
    }


def _pattern(prefix: str, group: Sequence[str], columns: Sequence[str]) -> str | list[str]:
    """Return a pattern that matches exactly the group's columns, or else their names."""
    pattern = f"{prefix}*"
    return pattern if fnmatch.filter(columns, pattern) == list(group) else list(group)


def _is_one_hot(table: Table, columns: Sequence[str]) -> bool:
    """Whether exactly one of the columns is 1 and the others 0 in every row; stops at the first exception."""
    if len(columns) < 2:
        return False
    values = (numbers(batch, "float") for batch in table.batches(columns))
    return all(bool(np.isin(x, (0.0, 1.0)).all() and (x.sum(axis=1) == 1.0).all()) for x in values)
