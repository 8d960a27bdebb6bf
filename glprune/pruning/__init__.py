"""Plan which weights belong to which unit, check the plan, cut units whose weights are zero.

- ``ids``, ``units``, ``groups``: the numberings, the records of a plan, groups of weights and their norms.
- ``trace``, ``tracer``, ``tracing_rules``, ``labels``: follow units through one run of the network.
- ``candidates``: find the unit sets in a trace.
- ``verification``: compare outputs to check that cutting units equals zeroing them.
- ``dependency_graph``: the plan of torch-pruning, to compare with.
- ``planner``: bring these together.
- ``surgery``, ``removal``: cut a network by a plan; cut zero groups and certify every cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glprune._lazy import lazy_names

if TYPE_CHECKING:
    from glprune.pruning.groups import GroupSet
    from glprune.pruning.planner import plan_units
    from glprune.pruning.removal import RemovalResult, remove
    from glprune.pruning.surgery import PruningPlan
    from glprune.pruning.units import UnitSet

__all__ = [
    "GroupSet",
    "PruningPlan",
    "RemovalResult",
    "UnitSet",
    "plan_units",
    "remove",
]

__getattr__ = lazy_names(
    __name__,
    {
        "GroupSet": "groups",
        "PruningPlan": "surgery",
        "RemovalResult": "removal",
        "UnitSet": "units",
        "plan_units": "planner",
        "remove": "removal",
    },
)
