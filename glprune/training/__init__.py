"""Training with a penalty on groups of weights, and without it.

blocks: norms and scaling of all groups of a network at once.
penalties: values, proximal operators and optimality conditions; penalty_check and penalty_plugin: of plugins.
structured_penalties: on nested and overlapping sets; overlap: their scales; feature_groups: their names.
importance: how much the loss depends on each group, for its penalty weight.
proximal: proximal optimizers; objective: loss plus penalty; solver: minimises it at one lambda after another.
refit: training of the pruned network; distillation: the original network's outputs as targets.
epochs: batches of an epoch, and repeats with a halved step size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glprune._lazy import lazy_names

if TYPE_CHECKING:
    from glprune.training.objective import Objective, lambda_max
    from glprune.training.penalties import GroupLasso, GroupMCP, Penalty, SparseGroupLasso
    from glprune.training.proximal import BoundedPenalty
    from glprune.training.refit import Refit
    from glprune.training.solver import PointSolver
    from glprune.training.structured_penalties import LatentGroupLasso, TreeGroupLasso

__all__ = [
    "BoundedPenalty",
    "GroupLasso",
    "GroupMCP",
    "LatentGroupLasso",
    "Objective",
    "Penalty",
    "PointSolver",
    "Refit",
    "SparseGroupLasso",
    "TreeGroupLasso",
    "lambda_max",
]

__getattr__ = lazy_names(
    __name__,
    {
        "BoundedPenalty": "proximal",
        "GroupLasso": "penalties",
        "GroupMCP": "penalties",
        "LatentGroupLasso": "structured_penalties",
        "Objective": "objective",
        "Penalty": "penalties",
        "PointSolver": "solver",
        "Refit": "refit",
        "SparseGroupLasso": "penalties",
        "TreeGroupLasso": "structured_penalties",
        "lambda_max": "objective",
    },
)
