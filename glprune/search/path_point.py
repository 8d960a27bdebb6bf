"""One solved lambda of a regularisation path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from glprune.schema.report import PathPoint

if TYPE_CHECKING:
    from glprune.runtime.checkpoint import Step
    from glprune.search.job import Job

_MANY_FIELDS = 1000
State = dict[str, Tensor]


@dataclass(eq=False)
class Point:
    """One solved lambda: its measurements and the weights to start again from.

    Attributes:
        lam: The lambda.
        loss: Mean training loss.
        penalty: The penalty.
        kkt_zero: Largest KKT residual over zero groups.
        kkt_active: Largest KKT residual over non-zero groups.
        features: Number of input features with a non-zero group.
        columns: Number of input columns in those features.
        hidden: Number of hidden units with a non-zero group.
        norms: Group norms of all input features, float64.
        alive: For every group set, which groups are not zero, bool, shape (n_groups,).
        metric: The selection metric on the validation split.
        state: A copy of the network's tensors; empty once it is no longer needed.
        refit_metric: The metric after a refit, once one was made.
        halvings: How often the step size was halved on the way to it, since numbers were not finite.
        record: Where the run's journal keeps it.
    """

    lam: float
    loss: float
    penalty: float
    kkt_zero: float
    kkt_active: float
    features: int
    columns: int
    hidden: int
    norms: tuple[float, ...]
    alive: tuple[Tensor, ...]
    metric: float
    state: State
    refit_metric: float | None = None
    halvings: int = 0
    record: Step | None = field(default=None, repr=False)


Size = Callable[[Point], float]


def path_record(point: Point, stage: int, job: Job, original: Job, selected: bool = False) -> PathPoint:
    """A point of the path as the report states it, norms in the order of all features."""
    features = original.data.features
    norms = dict(zip((f.name for f in job.data.features), point.norms, strict=True))
    told = selected or len(features) <= _MANY_FIELDS
    return PathPoint(
        stage=stage,
        lam=point.lam,
        objective=point.loss + point.penalty,
        loss=point.loss,
        penalty=point.penalty,
        kkt_zero=point.kkt_zero,
        kkt_active=point.kkt_active,
        features=point.features,
        columns=point.columns,
        hidden=point.hidden,
        metric=point.metric,
        refit_metric=point.refit_metric,
        norms=[norms.get(f.name, 0.0) for f in features] if told else [],
        selected=selected,
    )
