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

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glprune.pruning.groups import GroupSet
    from glprune.pruning.planner import plan_units
    from glprune.pruning.removal import RemovalResult, remove
    from glprune.pruning.surgery import PruningPlan
    from glprune.pruning.units import UnitSet

# imported on first use: a module of this package does not load all others
_MODULE_OF = {
    "GroupSet": "glprune.pruning.groups",
    "PruningPlan": "glprune.pruning.surgery",
    "RemovalResult": "glprune.pruning.removal",
    "UnitSet": "glprune.pruning.units",
    "plan_units": "glprune.pruning.planner",
    "remove": "glprune.pruning.removal",
}
__all__ = [
    "GroupSet",
    "PruningPlan",
    "RemovalResult",
    "UnitSet",
    "plan_units",
    "remove",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)
