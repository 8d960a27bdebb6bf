"""Write a first recipe for a data file: guesses, each with a comment saying it is one."""

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
from glprune.data.tables import Table, open_table
from glprune.data.validation import is_numeric, numbers
from glprune.errors import DataError

_TARGETS = ("target", "label", "class", "y", "default", "outcome", "diagnosis", "credit")
_SPLITS: set[str | None] = {"train", "valid", "test"}


@dataclass(frozen=True)
class _Guess:
    """What a data file looks like."""

    target: str
    task: str
    classes: tuple[str | int, ...]
    split: str | None
    excluded: tuple[str, ...]
    groups: dict[str, str | list[str]]
    features: int


def starter_recipe(data: Path, folder: Path) -> str:
    """A commented recipe for a data file, which loads as it is.

    Args:
        data: CSV or Parquet.
        folder: Where the recipe will lie; paths in it are relative to that.

    Raises:
        DataError: The file cannot be read or has no column to predict from.
    """
    table = open_table(data)
    if sum(not pa.types.is_nested(kind) for kind in table.schema.types) < 2:
        raise DataError(f"{data}: one column only; a recipe needs features and a target.")
    environment = Environment(
        loader=PackageLoader("glprune.cli"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # JSON text is YAML text, with every quote and escape in place
    environment.filters["yaml"] = lambda value: escape_for_terminal(json.dumps(value, ensure_ascii=False))
    template = environment.get_template("starter.yaml.j2")
    path = Path(os.path.relpath(data.resolve(), folder.resolve())).as_posix()
    return template.render(path=path, rows=table.rows, g=_guess(table))


def _guess(table: Table) -> _Guess:
    names, kinds = table.names, dict(zip(table.schema.names, table.schema.types, strict=True))
    flat = [n for n in names if not pa.types.is_nested(kinds[n])]
    target = next((n for wanted in _TARGETS for n in flat if n.lower() == wanted), flat[-1])
    labels = pc.unique(table.column(target).drop_null()).to_pylist()
    continuous = pa.types.is_floating(kinds[target]) and len(labels) > 10
    task = "binary" if len(labels) == 2 else "regression" if continuous or len(labels) > 50 else "multiclass"
    if task == "regression" and not is_numeric(kinds[target]):
        task = "multiclass"
    texts = [n for n in names if n != target and pa.types.is_string(kinds[n])]
    split = next((n for n in texts if _is_split(table, n)), None)
    columns = [n for n in names if n not in (target, split)]
    excluded = tuple(n for n in columns if not is_numeric(kinds[n]))
    features = [n for n in columns if n not in excluded]
    return _Guess(
        target=target,
        task=task,
        classes=_labels(labels) if task == "binary" else (),
        split=split,
        excluded=excluded,
        groups=_one_hot_groups(table, features),
        features=len(features),
    )


def _is_split(table: Table, name: str) -> bool:
    found: set[str | None] = set()
    for batch in table.batches([name]):
        found |= set(pc.unique(batch[0]).to_pylist())
        if not found <= _SPLITS:
            return False
    return found == _SPLITS


def _labels(values: Sequence[object]) -> tuple[str | int, ...]:
    whole = [int(v) if isinstance(v, float) and v.is_integer() else v for v in values]
    kept = [v if isinstance(v, int) and not isinstance(v, bool) else str(v) for v in whole]
    return tuple(sorted(kept, key=lambda v: (isinstance(v, str), v)))


def _one_hot_groups(table: Table, features: Sequence[str]) -> dict[str, str | list[str]]:
    """Columns of 0 and 1 with a common beginning that add up to 1 in every row."""
    groups: dict[str, list[str]] = {}
    for separator in ("=", "__", "_", ":", "."):
        for name in features:
            prefix, found, _ = name.rpartition(separator) if separator == "_" else name.partition(separator)
            taken = any(name in members for members in groups.values())
            if found and prefix and not taken:
                groups.setdefault(prefix + separator, []).append(name)
        groups = {key: members for key, members in groups.items() if _is_one_hot(table, members)}
    return {
        key.rstrip("=_:."): _pattern(key, members, table.names)
        for key, members in groups.items()
        if key.rstrip("=_:.") not in features
    }


def _pattern(prefix: str, members: Sequence[str], columns: Sequence[str]) -> str | list[str]:
    """A pattern that matches just these columns, or their names."""
    pattern = f"{prefix}*"
    return pattern if fnmatch.filter(columns, pattern) == list(members) else list(members)


def _is_one_hot(table: Table, members: Sequence[str]) -> bool:
    """Whether every row says so; most columns are ruled out by the first rows that are read."""
    if len(members) < 2:
        return False
    values = (numbers(batch, "float") for batch in table.batches(members))
    return all(bool(np.isin(x, (0.0, 1.0)).all() and (x.sum(axis=1) == 1.0).all()) for x in values)
