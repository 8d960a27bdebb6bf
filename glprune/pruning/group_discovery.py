"""Find every group set of a network: plan the units from a trace, group input columns by feature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from glprune.model.standardize import StandardizedNetwork
from glprune.pruning.groups import GroupSet, hidden_groups, input_groups
from glprune.pruning.planner import plan_units
from glprune.pruning.units import UnitSet

if TYPE_CHECKING:
    from torch import nn

    from glprune.data.records import Data, InputColumns
    from glprune.data.splits import InputPosition, Inputs
    from glprune.schema.recipe import Recipe


def find_groups(network: nn.Module, recipe: Recipe, data: Data, probe: Inputs) -> list[GroupSet]:
    """Plan every group set of a network from a trace and verify it numerically.

    Args:
        network: The network, in evaluation mode.
        recipe: States the axes and names of the inputs and which inexact cuts are allowed.
        data: States the features; its columns are those the network takes.
        probe: Real and random rows to run the network on.

    Returns:
        The group sets of the inputs with an axis in their order, then those of the hidden units.
    """
    axes = [spec.axis for spec in recipe.model.inputs]
    names = [spec.name for spec in recipe.model.inputs]
    example = tuple(torch.cat([x[:4], x[-4:]]) for x in probe)
    sets = _add_refused_inputs(plan_units(network, example, axes, names, recipe.allow_inexact), data)
    if isinstance(network, StandardizedNetwork):  # layers keep the names the user gave them
        sets = [_without_wrapper_name(s) for s in sets]
    features = _features_by_input(data)
    return [input_groups(s, features[s.name]) if s.kind == "input" else hidden_groups(s) for s in sets]


def _without_wrapper_name(units: UnitSet) -> UnitSet:
    """A unit set named as in the network behind the standardisation."""
    refused = units.refused and units.refused.replace("'network.", "'")
    return replace(units, name=units.name.removeprefix("network."), refused=refused)


def _add_refused_inputs(sets: list[UnitSet], data: Data) -> list[UnitSet]:
    """Add a refused set for each unplanned input with an axis; inputs come first, in order."""
    found = {s.name: s for s in sets if s.kind == "input"}
    inputs = [
        found.get(part.name)
        or UnitSet(part.name, "input", len(part.prunable_columns), (), _refusal_reason(part))
        for part in data.inputs
        if part.axis is not None
    ]
    return [*inputs, *(s for s in sets if s.kind == "hidden")]


def _refusal_reason(part: InputColumns) -> str:
    """Why the plan has no set for an input."""
    if len(part.prunable_columns) == 1:
        return "there is one only, and an input needs one"
    return "the plan has no layer that reads them"


def _features_by_input(data: Data) -> Mapping[str, list[tuple[str, tuple[InputPosition, ...]]]]:
    """Input name -> name and positions of each of its features."""
    features: dict[str, list[tuple[str, tuple[InputPosition, ...]]]] = {p.name: [] for p in data.inputs}
    for feature in data.features:
        features[data.inputs[data.input_of(feature)].name].append((feature.name, data.positions(feature)))
    return features
