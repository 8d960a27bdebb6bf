"""The sets of features that ``penalty.groups`` names: their members, and what is wrong with them."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from glprune.errors import RecipeError, did_you_mean

if TYPE_CHECKING:
    from glprune.schema.recipe import Names, PenaltySpec, Recipe


def members(groups: Mapping[str, Names], features: Sequence[str]) -> dict[str, list[str]]:
    """Return the features of every group, in their order.

    Args:
        groups: Name -> features, patterns of features and other groups; without a cycle.
        features: The features of the network. Names of others, which were removed, are skipped.
    """
    found = {name: _found(groups, name, features) for name in groups}
    return {name: [f for f in features if f in inside] for name, inside in found.items()}


def remaining_groups(
    penalty: PenaltySpec, features: Sequence[str], left: Collection[str]
) -> dict[str, list[str]]:
    """Return the groups of a network that has lost features.

    Of overlapping groups those that lost a feature have left, if the whole ones hold what is left of them:
    the kept features remain a union of whole groups over several stages.

    Args:
        penalty: The penalty.
        features: The features of the original network.
        left: Those of the present network.
    """
    found = members(penalty.groups, features)
    present = {name: [f for f in inside if f in left] for name, inside in found.items()}
    if penalty.kind != "latent_group_lasso":
        return present
    covered = {f for name, inside in found.items() if present[name] == inside for f in inside}
    return {
        name: inside
        for name, inside in present.items()
        if inside == found[name] or not covered.issuperset(inside)
    }


def whole_groups(penalty: PenaltySpec, features: Sequence[str], kept: Collection[str]) -> frozenset[str]:
    """Return the largest part of a set of features that the penalty could keep.

    Args:
        penalty: The penalty. A latent group LASSO keeps a union of its groups, and features in none of them.
        features: The features of the network.
        kept: The set.
    """
    if penalty.kind != "latent_group_lasso":
        return frozenset(kept)
    groups = [frozenset(inside) for inside in members(penalty.groups, features).values()]
    inside = frozenset[str]().union(*(group for group in groups if group.issubset(kept)))
    return inside | (frozenset(kept) - frozenset[str]().union(*groups))


def check_groups(recipe: Recipe, features: Sequence[str]) -> None:
    """Check the groups of a recipe against the features of its data.

    Raises:
        RecipeError: A name is unknown or stands for a feature and a group, or the groups are no tree.
    """
    groups = recipe.penalty.groups
    for name, parts in groups.items():
        where = recipe.where("penalty", "groups", name)
        if name in features:
            raise RecipeError(f"{where}: a feature has this name; rename the group.")
        for part in _listed(parts):
            if part not in groups and not _matching(part, features):
                names = sorted({*features, *groups})
                raise RecipeError(f"{where}: no feature or group {part!r}.{did_you_mean(part, names)}")
    if recipe.penalty.kind == "tree_group_lasso":
        _check_tree(recipe, members(groups, features))


def _check_tree(recipe: Recipe, nodes: Mapping[str, Sequence[str]]) -> None:
    """Check that every two groups are nested or disjoint."""
    smaller: list[tuple[str, set[str]]] = []
    for name, features in sorted(nodes.items(), key=lambda node: len(node[1])):
        for other, inside in smaller:
            shared = inside.intersection(features)
            if shared and shared != inside:
                feature = next(f for f in features if f in shared)
                raise RecipeError(
                    f"{recipe.where('penalty', 'groups', name)}: it shares {feature!r} with {other!r}, and "
                    "neither holds the other; nest or separate them, or use kind: latent_group_lasso."
                )
        smaller.append((name, set(features)))


def _found(groups: Mapping[str, Names], name: str, features: Sequence[str]) -> set[str]:
    """The features that a group, or the groups in it, name."""
    found = set[str]()
    for part in _listed(groups[name]):
        found |= _found(groups, part, features) if part in groups else _matching(part, features)
    return found


def _matching(pattern: str, features: Iterable[str]) -> set[str]:
    """The feature of a name, or the features that match a pattern."""
    exact = {pattern}.intersection(features)
    return exact or {f for f in features if fnmatch.fnmatchcase(f, pattern)}


def _listed(names: Names) -> list[str]:
    return [names] if isinstance(names, str) else list(names)
