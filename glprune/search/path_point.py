"""One solved lambda of a regularisation path: measurements, report record and checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glprune.schema.report import PathPoint

if TYPE_CHECKING:
    from glprune.runtime.checkpoint import Step
    from glprune.search.job import Job

_MANY_FEATURES = 1000
_SCALARS = (
    "lam",
    "loss",
    "penalty",
    "kkt_zero",
    "kkt_active",
    "features",
    "columns",
    "hidden",
    "metric",
    "refit_metric",
    "halvings",
)
STATE = "state/"
"""Prefix of a network's tensors in a checkpoint."""
_ALIVE, _NORMS = "alive/", "norms"
TensorDict = dict[str, Tensor]
Checkpoint = tuple[dict[str, Any], dict[str, Tensor]]
"""JSON values and named tensors, as the checkpoint log keeps them."""


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
        state: A copy of the network's tensors; empty once no later step needs it.
        refit_metric: The metric after a refit, once one was made.
        halvings: How often the step size was halved because numbers were not finite.
        record: The point's step in the checkpoint log.
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
    state: TensorDict
    refit_metric: float | None = None
    halvings: int = 0
    record: Step | None = field(default=None, repr=False)


Size = Callable[[Point], float]


def path_record(point: Point, stage: int, job: Job, original: Job, selected: bool = False) -> PathPoint:
    """Make the report's record of a point, with norms in the order of the original network's features."""
    features = original.data.features
    norms = dict(zip((f.name for f in job.data.features), point.norms, strict=True))
    with_norms = selected or len(features) <= _MANY_FEATURES
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
        norms=[norms.get(f.name, 0.0) for f in features] if with_norms else [],
        selected=selected,
    )


def save_point(point: Point) -> Checkpoint:
    """Return a point with its weights as values and tensors."""
    values = {name: getattr(point, name) for name in _SCALARS}
    marks = {f"{_ALIVE}{n}": alive for n, alive in enumerate(point.alive)}
    norms = torch.tensor(point.norms, dtype=torch.float64)
    return values, {_NORMS: norms, **marks, **add_prefix(STATE, point.state)}


def load_point(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Point:
    """Return the point that ``save_point`` saved."""
    alive = strip_prefix(_ALIVE, tensors)
    return Point(
        **{name: values[name] for name in _SCALARS},
        norms=tuple(tensors[_NORMS].tolist()),
        alive=tuple(alive[str(n)] for n in range(len(alive))),
        state=strip_prefix(STATE, tensors),
    )


def save_points(points: Sequence[Point]) -> Checkpoint:
    """Return several points as values and tensors."""
    values, tensors = [], dict[str, Tensor]()
    for number, point in enumerate(points):
        point_values, point_tensors = save_point(point)
        values.append(point_values)
        tensors |= add_prefix(f"{number}/", point_tensors)
    return {"points": values}, tensors


def load_points(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[Point]:
    """Return the points that ``save_points`` saved."""
    return [load_point(point, strip_prefix(f"{n}/", tensors)) for n, point in enumerate(values["points"])]


def add_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put a prefix before the names of tensors."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def strip_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names have a prefix, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
