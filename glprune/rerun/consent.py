"""Whether code that a bundle names may run.

Only code that a recipe of the caller's names too may, or code that the caller allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glprune._escaping import escape_for_terminal
from glprune.errors import UsageError
from glprune.schema.recipe_loading import load_recipe

if TYPE_CHECKING:
    from glprune.schema.recipe import Recipe


def consented(resolved: Recipe, given: Path | None, allowed: Sequence[str] | None, bundle: Path) -> Recipe:
    """Return the recipe of a bundle, limited to the code that may run.

    Args:
        resolved: The recipe in the bundle; whoever made the bundle decides what it names.
        given: A recipe of the caller's, whose code may run with the arguments that stand there.
        allowed: Packages, modules and .py files that the caller allows.
        bundle: The folder of the bundle.

    Raises:
        UsageError: The caller gives neither, a recipe that names other code, or one inside the bundle.
    """
    if allowed is not None:
        return resolved.allowing(allowed)
    code, places = _code(resolved), " ".join(f"--allow-factory {place}" for place in _places(resolved))
    if given is None:
        raise UsageError(
            f"{bundle} names the code {_shown(code['model.factory'])}, which runs only if you allow it; "
            f"review it, then give --recipe with your recipe, or {escape_for_terminal(places)}."
        )
    if given.resolve().is_relative_to(bundle.resolve()):
        raise UsageError(
            f"{given} lies in {bundle}, which decides on no code that runs; give your own --recipe."
        )
    for key, mine in _code(load_recipe(given)).items():
        if code[key] != mine:
            raise UsageError(
                f"{bundle} has {key}: {_shown(code[key])}, and {given} has {_shown(mine)}; if the run had it "
                f"from --set, review it and give {escape_for_terminal(places)}."
            )
    return resolved


def _code(recipe: Recipe) -> dict[str, Any]:
    """Return what decides on the code that a run of a recipe imports and calls, by key."""
    return {
        "model.factory": recipe.model.factory,
        "model.arguments": recipe.model.arguments,
        "model.loader": recipe.model.loader,
        "data.loader": recipe.data.loader,
        "data.source": recipe.data.source,
        "data.arguments": recipe.data.arguments,
        "penalty.plugin": recipe.penalty.plugin,
        "penalty.arguments": recipe.penalty.arguments,
        "export.plugins": recipe.export.plugins,
    }


def _places(recipe: Recipe) -> list[str]:
    """Return the modules and files of a recipe's code; those of plugins are in their packages."""
    named = [recipe.model.factory, *([recipe.data.loader] if recipe.data.loader is not None else [])]
    return list(dict.fromkeys(reference.rpartition(":")[0] for reference in named))


def _shown(value: object) -> str:
    return escape_for_terminal(repr(value)[:200])
