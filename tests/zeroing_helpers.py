"""Groups of single units, and what a removal of zeroed units must cut."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from glprune.pruning.groups import GroupSet, hidden_groups, input_groups, support
from glprune.pruning.units import UnitSet


def grouped(sets: list[UnitSet]) -> list[GroupSet]:
    return [
        input_groups(s, [(str(i), (i,)) for i in range(s.count)]) if s.kind == "input" else hidden_groups(s)
        for s in sets
    ]


def dead_units(network: nn.Module, sets: list[UnitSet]) -> dict[str, int]:
    """Units of each planned set that no weight leaves: those zeroed and those nobody ever read."""
    state = dict(network.state_dict())
    return {g.name: int((~support(state, g)).sum()) for g in grouped(sets) if not g.units.refused}


def cuttable(sets: list[UnitSet], dead: Mapping[str, int]) -> dict[str, int]:
    """Units that go: all that are dead but one, and the same number in every set of a family."""
    dead = {s.name: min(dead[s.name], s.count - 1) for s in sets if not s.refused}
    families = {s.family for s in sets if s.family}
    least = {f: min(dead.get(s.name, 0) for s in sets if s.family == f) for f in families}
    expected = {s.name: least.get(s.family, dead[s.name]) for s in sets if not s.refused}
    return {name: units for name, units in expected.items() if units}
