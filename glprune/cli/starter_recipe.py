"""Write a first recipe for a data file; every guess is marked by a comment."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from glprune._escaping import escape_for_terminal
from glprune._wording import counted
from glprune.cli.column_roles import guess_roles
from glprune.errors import UsageError
from glprune.tables.files import open_table
from glprune.tables.table import unknown_column_hint

_METRICS = {"binary": "auroc", "multiclass": "accuracy", "regression": "r2"}


def starter_recipe(data: Path, folder: Path, target: str | None = None) -> str:
    """Write a commented recipe for a data file; it loads without changes.

    Args:
        data: CSV or Parquet.
        folder: The folder of the recipe; paths in it are relative to this folder.
        target: The column to predict; None: guessed.

    Raises:
        DataError: The file cannot be read or has fewer than two columns.
        UsageError: There is no such target.
    """
    table = open_table(data)
    if target is not None and target not in table.names:
        raise UsageError(
            f"--target: {data} has no column {target!r}.{unknown_column_hint(target, table.names)}"
        )
    roles = guess_roles(table, target)
    environment = Environment(
        loader=PackageLoader("glprune.cli"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # JSON is valid YAML, and quotes and escapes everything
    environment.filters["yaml"] = lambda value: escape_for_terminal(json.dumps(value, ensure_ascii=False))
    environment.filters["comment"] = lambda text: escape_for_terminal(" ".join(str(text).split()))
    environment.filters["counted"] = counted
    return environment.get_template("starter.yaml.j2").render(
        path=Path(os.path.relpath(data.resolve(), folder.resolve())).as_posix(),
        rows=table.rows,
        roles=roles,
        groups=_patterns(roles.groups, table.names),
        metric=_METRICS[roles.task],
        target_is_given=target is not None,
    )


def _patterns(groups: Mapping[str, Sequence[str]], columns: Sequence[str]) -> dict[str, str | list[str]]:
    """Return for each group a pattern that matches exactly its columns, or else their names."""
    patterns = {name: f"{name}{group[0][len(name)]}*" for name, group in groups.items()}
    return {
        name: patterns[name] if fnmatch.filter(columns, patterns[name]) == list(group) else list(group)
        for name, group in groups.items()
    }
