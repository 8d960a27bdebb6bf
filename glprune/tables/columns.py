"""Match the columns of a file with the inputs and the features of a recipe."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from glprune.errors import RecipeError, name_list
from glprune.tables.features import ColumnId, Feature, InputColumns
from glprune.tables.table import unknown_column_hint

if TYPE_CHECKING:
    from glprune.schema.recipe import InputSpec, Recipe

Names = Mapping[str, object]  # ordered names as keys, for fast look-up


def _feature_columns(recipe: Recipe, columns: Sequence[str]) -> tuple[str, ...]:
    """Return the feature columns in order; patterns expand in file order."""
    spec = recipe.data
    split_column = spec.split.column if spec.split else None
    for key, name in (("target", spec.target), ("split", split_column)):
        if name is not None and name not in columns:
            raise RecipeError(
                f"{recipe.where('data', key)}: no column {name!r}.{unknown_column_hint(name, columns)}"
            )
    reserved = {spec.target, split_column}
    names = dict.fromkeys(columns)
    excluded = set(_expand(recipe, "exclude", spec.exclude, names))
    if spec.features is None:
        chosen = [c for c in columns if c not in reserved and c not in excluded]
    else:
        named = _expand(recipe, "features", spec.features, names)
        chosen = [c for c in named if c not in excluded]
        taken = [c for c in chosen if c in reserved]
        if taken:
            raise RecipeError(
                f"{recipe.where('data', 'features')}: {taken[0]!r} is the target or split column."
            )
    if not chosen:
        raise RecipeError(f"{recipe.where('data', 'features')}: no feature column is left.")
    return tuple(chosen)


def file_inputs(recipe: Recipe, columns: Sequence[str]) -> tuple[InputColumns, ...]:
    """Return the columns that feed each input; a single input takes all features by default."""
    chosen = _feature_columns(recipe, columns)
    where = recipe.where("model", "inputs")
    inputs, owner = [], dict[str, str]()
    for spec in recipe.model.inputs:
        fed = chosen if spec.columns is None else tuple(_listed_columns(recipe, spec, chosen, columns))
        for column in fed:
            if column in owner:
                raise RecipeError(
                    f"{where}: column {column!r} feeds {owner[column]!r} and {spec.name!r}; "
                    "a column belongs to one input."
                )
            owner[column] = spec.name
        inputs.append(InputColumns(spec.name, spec.axis, fed))
    unused = [c for c in chosen if c not in owner] if recipe.data.features is not None else []
    if unused:
        raise RecipeError(
            f"{recipe.where('data', 'features')}: column {name_list(unused)} in no input's columns; "
            "add to model.inputs, or remove here."
        )
    return tuple(inputs)


def standardized_columns(
    recipe: Recipe, inputs: Sequence[InputColumns], columns: Sequence[str]
) -> frozenset[str]:
    """Return the columns that ``data.standardize`` names; codes of embeddings are never standardised.

    Args:
        recipe: The recipe.
        inputs: The columns of each input.
        columns: All columns of the file.

    Raises:
        RecipeError: A listed column feeds no input, or an input of codes.
    """
    dtypes = {part.name: spec.dtype for part, spec in zip(inputs, recipe.model.inputs, strict=True)}
    dtype = {column: dtypes[part.name] for part in inputs for column in part.columns}
    wanted = recipe.data.standardize
    if isinstance(wanted, str):
        return frozenset(c for c in dtype if wanted == "train" and dtype[c] == "float")
    where = recipe.where("data", "standardize")
    unused = [c for c in wanted if c in {*columns} - {*dtype}]
    if unused:
        raise RecipeError(f"{where}: {unused[0]!r} feeds no input of the network; leave it out.")
    listed = _matching(where, wanted, dtype)
    codes = [column for column in listed if dtype[column] != "float"]
    if codes:
        raise RecipeError(
            f"{where}: column {codes[0]!r} feeds an input of dtype: int, whose "
            "codes cannot be standardised; leave it out."
        )
    return frozenset(listed)


def _listed_columns(
    recipe: Recipe, spec: InputSpec, chosen: Sequence[str], columns: Sequence[str]
) -> Iterable[str]:
    """Return the feature columns that an input lists."""
    place = f"{recipe.where('model', 'inputs')}: columns of {spec.name!r}"
    excluded = {*columns} - {*chosen}
    refused = [c for c in spec.columns or () if c in excluded]
    if refused:
        raise RecipeError(f"{place}: {refused[0]!r} is the target, the split column or excluded.")
    return _matching(place, spec.columns or (), dict.fromkeys(chosen))


def _expand(recipe: Recipe, key: str, patterns: Iterable[str], columns: Names) -> list[str]:
    """Replace the names and patterns of a key of ``data`` by columns, each once."""
    return _matching(recipe.where("data", key), patterns, columns)


def _matching(where: str, patterns: Iterable[str], columns: Names) -> list[str]:
    """Replace names and patterns by columns, each once."""
    found = dict[str, None]()
    for pattern in patterns:
        if pattern in columns:
            found[pattern] = None
            continue
        matches = fnmatch.filter(columns, pattern) if any(c in pattern for c in "*?[") else []
        if not matches:
            raise RecipeError(f"{where}: no column {pattern!r}.{unknown_column_hint(pattern, list(columns))}")
        found.update(dict.fromkeys(matches))
    return list(found)


def make_features(recipe: Recipe, inputs: Sequence[InputColumns]) -> tuple[Feature, ...]:
    """Join columns into features; a column outside every group is a feature by itself."""
    columns = [name for part in inputs for name in part.prunable_columns]
    owner = _group_of_columns(recipe, inputs)
    joined: dict[str, list[int]] = {}
    for index, column in enumerate(columns):
        if column not in owner and column in recipe.data.feature_groups:
            raise RecipeError(
                f"{recipe.where('data', 'feature_groups', column)}: a column outside the "
                "group has this name; rename the group."
            )
        joined.setdefault(owner.get(column, column), []).append(index)
    return tuple(Feature(name, tuple(map(ColumnId, indices))) for name, indices in joined.items())


def _group_of_columns(recipe: Recipe, inputs: Sequence[InputColumns]) -> dict[str, str]:
    """Return column -> the feature group that lists it."""
    source = {name: part.name for part in inputs for name in part.prunable_columns}
    owner: dict[str, str] = {}
    for feature, patterns in recipe.data.feature_groups.items():
        where = recipe.where("data", "feature_groups", feature)
        columns = _matching(where, [patterns] if isinstance(patterns, str) else patterns, source)
        for column in columns:
            if column in owner:
                raise RecipeError(
                    f"{where}: column {column!r} is also in {owner[column]!r}; "
                    "a column belongs to one feature."
                )
            if source[column] != source[columns[0]]:
                raise RecipeError(
                    f"{where}: {columns[0]!r} feeds input {source[columns[0]]!r}, {column!r} feeds "
                    f"{source[column]!r}; the columns of a feature must feed one input."
                )
            owner[column] = feature
    return owner
