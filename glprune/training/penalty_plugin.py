"""Load a penalty that another package provides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from glprune._plugins import PluginError, load_plugin
from glprune._user_code import user_code
from glprune.training.blocks import ParameterGroups
from glprune.training.penalties import MakePenalty, Penalty
from glprune.training.penalty_check import violations

if TYPE_CHECKING:
    from glprune.schema.recipe import Recipe


def load_penalty(recipe: Recipe) -> MakePenalty | None:
    """Load the recipe's penalty plugin and check it on random numbers; None if the recipe has none.

    Raises:
        RecipeError: See ``load_plugin``.
        PluginError: A method of the penalty is wrong or raises an error.
    """
    spec = recipe.penalty
    if spec.plugin is None:
        return None
    plugin = load_plugin("glprune.penalties", spec.plugin, recipe.where("penalty", "plugin"), recipe.allowed)

    def make(weights: Tensor, blocks: ParameterGroups) -> Penalty:
        penalty = plugin(weights, blocks, **spec.arguments)
        if not isinstance(penalty, Penalty):
            raise PluginError(
                f"{plugin.says} gave {type(penalty).__name__}, not a glprune.training.penalties.Penalty."
            )
        return penalty

    with user_code(PluginError, plugin.says):
        found = violations(make)
    if found:
        raise PluginError(f"{plugin.says} is refused, since its zeros could not be certified: {found[0]}.")
    return make
