"""Resolve the rules of ``policy`` in a recipe against the features of a network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from glprune._wording import counted
from glprune.errors import RecipeError, did_you_mean

if TYPE_CHECKING:
    from glprune.data.records import Data
    from glprune.schema.recipe import PolicySpec, Recipe

MUST_DROP, MUST_KEEP = "must_drop", "must_keep"


@dataclass(frozen=True)
class Rules:
    """The features that the policy decides on, and what else it states.

    Attributes:
        forbidden: Feature to remove -> the reason: ``must_drop`` or ``derived_from <name>``.
        required: Features that are kept and not penalised.
        codes: Reason code -> the features it cites.
        adverse: Numbers of the adverse classes; None where the policy states none.
    """

    forbidden: Mapping[str, str]
    required: frozenset[str]
    codes: Mapping[str, tuple[str, ...]]
    adverse: frozenset[int] | None

    def free(self, feature: str) -> bool:
        """Whether the penalty decides on a feature."""
        return feature not in self.forbidden and feature not in self.required

    def rank(self, feature: str) -> int:
        """Return the rank by which any selection sorts first: 0 forbidden, 1 free, 2 required."""
        return 2 if feature in self.required else int(feature not in self.forbidden)

    def sentences(self) -> list[str]:
        """Return notes for the user on the features that the policy decides."""
        dropped = [f"{name} ({why.replace('_', ' ', 1)})" for name, why in self.forbidden.items()]
        found = {"dropped": dropped, "kept": sorted(self.required)}
        return [
            f"The policy has features {verb}: {', '.join(names)}." for verb, names in found.items() if names
        ]


NO_RULES = Rules({}, frozenset(), {}, None)


def resolve(recipe: Recipe, data: Data) -> Rules:
    """Find the forbidden features, with all that are derived from them, and the required ones.

    The name of a column stands for its feature: its columns are kept or removed together.

    Raises:
        RecipeError: A name is unknown, rules contradict each other, or a feature is derived from itself.
    """
    spec = recipe.policy
    if spec is None:
        return NO_RULES
    names = _Names(recipe, spec, data)
    names.check()
    parents = _parents(recipe, spec, names.owner)
    dropped = {names.owner.get(name, name): name for name in spec.must_drop}
    forbidden = {
        feature.name: why
        for feature in data.features
        if (why := _origin(feature.name, dropped, parents)) is not None
    }
    required = [names.owner[name] for name in spec.must_keep]
    _check_conflicts(recipe, spec, required, forbidden)
    _check_choice(recipe, data, frozenset(required), forbidden)
    codes: dict[str, tuple[str, ...]] = {}
    for name, cited in spec.reason_codes.items():
        for code in listed_names(cited):
            codes[code] = tuple(dict.fromkeys((*codes.get(code, ()), names.owner[name])))
    return Rules(forbidden, frozenset(required), codes, _adverse(recipe, spec, data))


def _adverse(recipe: Recipe, spec: PolicySpec, data: Data) -> frozenset[int] | None:
    """Return the numbers of the adverse classes."""
    if spec.adverse is None:
        return None
    classes, where = list(data.classes or ()), recipe.where("policy", "adverse")
    unknown = next((str(c) for c in spec.adverse if str(c) not in classes), None)
    if unknown is not None:
        raise RecipeError(f"{where}: no class {unknown!r}; the classes are {', '.join(classes)}.")
    found = frozenset(classes.index(str(c)) for c in spec.adverse)
    if len(found) == len(classes):
        raise RecipeError(f"{where} lists every class; leave out those that are not adverse.")
    return found


def listed_names(names: str | Sequence[str]) -> list[str]:
    """Return a name or a list of names as a list."""
    return [names] if isinstance(names, str) else list(names)


class _Names:
    """The names a policy may use; ``owner`` maps each feature and each column to its feature."""

    def __init__(self, recipe: Recipe, spec: PolicySpec, data: Data) -> None:
        self.recipe, self.spec, self.outside = recipe, spec, set(data.outside)
        self.owner = {data.columns[c]: feature.name for feature in data.features for c in feature.columns}
        self.owner |= {feature.name: feature.name for feature in data.features}

    def check(self) -> None:
        """Check that every name is a feature, a column of the file or one of ``derived_from``."""
        spec = self.spec
        seen = {*self.owner, *self.outside}
        ancestors = {name for names in spec.derived_from.values() for name in listed_names(names)}
        self._check_names(spec.must_keep, set(self.owner), "must_keep")
        self._check_names(spec.reason_codes, set(self.owner), "reason_codes")
        self._check_names(spec.must_drop, seen | ancestors | set(spec.derived_from), "must_drop")
        self._check_names(spec.derived_from, seen | ancestors, "derived_from")
        known = {*seen, *spec.must_drop, *spec.derived_from}
        for name, names in spec.derived_from.items():
            self._check_names(listed_names(names), known, "derived_from", name)

    def _check_names(self, names: Iterable[str], known: set[str], *keys: str) -> None:
        for name in names:
            if name not in known:
                where = self.recipe.where("policy", *keys)
                raise RecipeError(
                    f"{where}: no feature or column {name!r}.{did_you_mean(name, sorted(known))}"
                )


def _parents(recipe: Recipe, spec: PolicySpec, owner: Mapping[str, str]) -> dict[str, list[str]]:
    """Map each feature to the features it is derived from; columns are replaced by their features."""
    parents: dict[str, list[str]] = {}
    for name, names in spec.derived_from.items():
        child = owner.get(name, name)
        # a column is derived from its own feature by nature
        found = [owner.get(a, a) for a in listed_names(names) if a == name or owner.get(a, a) != child]
        parents[child] = [*parents.get(child, []), *found]
    cycle = next(_cycles(parents), None)
    if cycle is not None:
        raise RecipeError(
            f"{recipe.where('policy', 'derived_from', cycle[0])}: {' <- '.join(cycle)} is a circle; "
            "remove one of them."
        )
    return parents


def _cycles(parents: Mapping[str, Sequence[str]]) -> Iterator[list[str]]:
    """Yield paths from a name back to itself."""
    for start in parents:
        trails, seen = [[start]], set[str]()
        while trails:
            trail = trails.pop()
            for parent in parents.get(trail[-1], ()):
                if parent == start:
                    yield [*trail, parent]
                elif parent not in seen:
                    seen.add(parent)
                    trails.append([*trail, parent])


def _origin(feature: str, dropped: Mapping[str, str], parents: Mapping[str, Sequence[str]]) -> str | None:
    """Return why a feature is forbidden: by its own name, or by that of its nearest ancestor."""
    if feature in dropped:
        return MUST_DROP
    queue, seen = list(parents.get(feature, ())), set[str]()
    while queue:
        name = queue.pop(0)
        if name in dropped:
            return f"derived_from {dropped[name]}"
        if name not in seen:
            seen.add(name)
            queue += parents.get(name, ())
    return None


def _check_conflicts(
    recipe: Recipe, spec: PolicySpec, required: Sequence[str], forbidden: Mapping[str, str]
) -> None:
    where = recipe.where("policy", "must_keep")
    for name, feature in zip(spec.must_keep, required, strict=True):
        if feature in forbidden:
            why = forbidden[feature]
            also = (
                "is in must_drop too" if why == MUST_DROP else f"is {why.replace('_', ' ', 1)}, in must_drop"
            )
            raise RecipeError(f"{where}: {name!r} {also}; remove it from one of them.")
    count = len(set(required))
    for key, most in _limits(recipe):
        if count > most:
            raise RecipeError(
                f"{where} lists {counted(count, 'feature')}, more than target.{key}: {most}; raise that, "
                "or keep fewer."
            )


def _limits(recipe: Recipe) -> list[tuple[str, int]]:
    """Return every number of features that the target names, with its key."""
    target = recipe.target
    found = [("max_features", target.max_features)] if target.max_features is not None else []
    sizes = target.frontier if isinstance(target.frontier, list) else []
    return [*found, *(("frontier", size) for size in sizes)]


def _check_choice(recipe: Recipe, data: Data, required: frozenset[str], forbidden: Mapping[str, str]) -> None:
    """Check that the rules leave a column in every input, and something to choose."""
    for part, span in zip(data.inputs, data.spans, strict=True):
        names = [feature.name for feature in data.features if feature.columns[0] in span]
        if names and all(name in forbidden for name in names):
            raise RecipeError(
                f"{recipe.where('policy', 'must_drop')}: every feature of input {part.name!r} goes, and an "
                "input needs one; leave the input out of the network instead."
            )
    if recipe.penalty.hidden is None and all(
        f.name in forbidden or f.name in required for f in data.features
    ):
        raise RecipeError(
            f"{recipe.where('policy', 'must_keep')}: with must_drop every feature is decided and nothing is "
            "left to choose; leave must_keep out, and set target: {lambda: 0} to drop no other."
        )
