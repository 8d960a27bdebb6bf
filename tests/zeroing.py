"""Groups of single units, and what a removal of zeroed units must cut."""

from __future__ import annotations

from collections.abc import Mapping

from glprune.groups import GroupSet, hidden_groups, input_groups
from glprune.units import UnitSet


def grouped(sets: list[UnitSet]) -> list[GroupSet]:
    return [
        input_groups(s, [(str(i), (i,)) for i in range(s.count)]) if s.kind == "input" else hidden_groups(s)
        for s in sets
    ]


def cuttable(sets: list[UnitSet], dead: Mapping[str, int]) -> dict[str, int]:
    """Units that go: all that are dead, but the same number in every set of a family."""
    expected = dict(dead)
    for s in sets:
        if s.family:
            least = min(dead.get(other.name, 0) for other in sets if other.family == s.family)
            expected[s.name] = least
    return {name: units for name, units in expected.items() if units}
