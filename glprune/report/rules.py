"""The rules by which a network is chosen, in words: a search states them, an auditor derives them."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from glprune._wording import counted
from glprune.schema.metrics import HIGHER_IS_BETTER

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from glprune.schema.recipe import MaxDrop, Recipe

PATH, ONE_PATH = "path in stages", "single path"
ELIMINATION, MAGNITUDE = "backward elimination", "group magnitude"
PATH_ALONE = "the regularisation path"
FOUND_BY = (PATH, ONE_PATH, ELIMINATION, MAGNITUDE)
"""Ways to find a set of features; that of the regularisation path is the first."""
MARGIN = 2.0
"""Standard errors by which another set must be better than that of the path."""
CHOICE = (
    "the set of the path in stages, unless the metric of another is better by more than two standard "
    "errors of the paired difference"
)
CROSSED = "; only the best other set on the validation split was cross-validated beside it"
_DENSEST = "of the points that keep no more, the one that keeps most"
_FILLED = ", with removed groups back as far as the limit allows"
_ON_THE_WAY = "on the way to at most "
_ONE_STANDARD_ERROR = (
    "the smallest size that is worse than the best one on the validation split by at most one standard error "
    "of the difference"
)
_GIVEN = "the size that target.max_features gives"
_COUNT = re.compile(r"\d[\d,]*")


def lambda_rule(lam: float) -> str:
    """Describe the choice of a given lambda."""
    return f"lambda {lam:g} as the recipe states"


def limit_rule(limit: float, unit: str) -> str:
    """Describe the choice of the largest network within a limit; ``unit`` in the singular."""
    return f"at most {counted(limit, unit)}: {_DENSEST}"


def filled_rule(limit: float, unit: str) -> str:
    """Describe ``limit_rule`` where removed groups came back as far as they fitted."""
    return limit_rule(limit, unit) + _FILLED


def on_the_way_rule(limit: float, unit: str) -> str:
    """Describe the choice of a stage before the last one."""
    return _ON_THE_WAY + counted(limit, unit)


def drop_rule(drop: MaxDrop) -> str:
    """Describe the choice of a stage that may lose some of a metric."""
    return f"{drop.metric} after the refit at most {drop.amount:g} worse than the original network's"


def only_kept_rule(found_by: str) -> str:
    """Describe a stage that removes what a compared set of features does not have."""
    return f"removing the features that the {found_by} does not keep"


def shipping_rule(size: int | None) -> str:
    """Describe which network of a frontier ships; ``size`` is ``target.max_features``."""
    return _ONE_STANDARD_ERROR if size is None else _GIVEN


def selection_rule(recipe: Recipe) -> str:
    """Describe the target of a recipe."""
    target = recipe.target
    if target.frontier is not None:
        return f"networks of several sizes; {shipping_rule(target.max_features)} ships"
    if target.max_features is not None:
        return limit_rule(target.max_features, "input feature")
    if target.max_drop is not None:
        return _max_drop(recipe, target.max_drop)
    if target.lam is not None:
        return lambda_rule(target.lam)
    if target.latency is not None:
        is_share = isinstance(target.latency, str)
        limit = f"{target.latency} of the original's" if is_share else f"{target.latency:g} ms"
        return f"latency at batch {target.batch} at most {limit}"
    for name, budget in (("parameters", target.parameters), ("multiply-accumulates", target.macs)):
        if budget is not None:
            limit = budget if isinstance(budget, str) else format(budget, ",.0f")
            return f"at most {limit} {name}: {_DENSEST}"
    assert target.max_hidden is not None  # the recipe has a target
    return limit_rule(target.max_hidden, "hidden unit")


def _max_drop(recipe: Recipe, drop: MaxDrop) -> str:
    higher_is_better = HIGHER_IS_BETTER[drop.metric]
    change = f"at most {drop.amount:g} {'lower' if higher_is_better else 'higher'} than"
    if recipe.task == "distillation":
        return f"{drop.metric} of agreement after the refit {change} {1 if higher_is_better else 0}"
    return f"{drop.metric} after the refit {change} the original network's"


def is_stage_rule(rule: str, recipe: Recipe, sizes: Collection[int]) -> bool:
    """Whether a recipe can lead to a stage of this rule.

    Args:
        rule: The rule of the stage.
        recipe: The recipe.
        sizes: Numbers of features of the frontier.
    """
    target = recipe.target
    if target.lam is not None and rule == lambda_rule(target.lam):
        return True
    if target.max_drop is not None and rule == drop_rule(target.max_drop):
        return True
    return (
        any(rule == only_kept_rule(name) for name in FOUND_BY)
        or any(rule == make(n, unit) for n, unit in _counts(recipe, sizes) for make in _LIMITS)
        or any(_is_with_some_count(rule, make, unit) for unit in _measured(recipe) for make in _LIMITS)
    )


def _counts(recipe: Recipe, sizes: Collection[int]) -> list[tuple[float, str]]:
    """Return the limits that a recipe states as numbers, with their units."""
    target = recipe.target
    limits = [
        (target.max_hidden, "hidden unit"),
        (target.parameters, "parameter"),
        (target.macs, "multiply-accumulate"),
        *((size, "input feature") for size in (target.max_features, *sizes)),
    ]
    return [(math.floor(n), unit) for n, unit in limits if n is not None and not isinstance(n, str)]


def _measured(recipe: Recipe) -> list[str]:
    """Return the units of limits that depend on measurements of the original network."""
    target = recipe.target
    return [
        *(["parameter"] if isinstance(target.parameters, str) else []),
        *(["multiply-accumulate"] if isinstance(target.macs, str) or target.latency is not None else []),
    ]


def _is_with_some_count(rule: str, make: Callable[[float, str], str], unit: str) -> bool:
    found = _COUNT.search(rule)
    return found is not None and rule == make(float(found.group().replace(",", "")), unit)


_LIMITS = (limit_rule, filled_rule, on_the_way_rule)
