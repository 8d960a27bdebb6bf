"""One solved lambda of a regularisation path: measurements, report record and checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, TypeAdapter
from torch import Tensor, nn

from glprune.pruning.groups import support
from glprune.schema.report import PathPoint

if TYPE_CHECKING:
    from glprune.pruning.groups import GroupSet
    from glprune.runtime.checkpoint import Step
    from glprune.search.job import Job

_MANY_FEATURES = 1000
STATE = "state/"
"""Prefix of a network's tensors in a checkpoint."""
_ALIVE, _NORMS = "alive/", "norms"
TensorDict = dict[str, Tensor]
Checkpoint = tuple[dict[str, Any], dict[str, Tensor]]
"""JSON values and named tensors, as the checkpoint log keeps them."""


class _Values(BaseModel, strict=True):
    """The values of a point in a checkpoint."""

    lam: float
    loss: float
    penalty: float
    kkt_zero: float
    kkt_active: float
    features: int
    columns: int
    hidden: int
    metric: float
    refit_metric: float | None
    halvings: int


NUMBER = TypeAdapter(float)


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
    values = {name: getattr(point, name) for name in _Values.model_fields}
    marks = {f"{_ALIVE}{n}": alive for n, alive in enumerate(point.alive)}
    norms = torch.tensor(point.norms, dtype=torch.float64)
    return values, {_NORMS: norms, **marks, **add_prefix(STATE, point.state)}


def load_point(
    values: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    network: nn.Module,
    groups: Sequence[GroupSet],
    dropped: bool = False,
) -> Point:
    """Return the point that ``save_point`` saved.

    Args:
        values: Its values.
        tensors: Its tensors.
        network: A network of the point's shapes.
        groups: Every group set of the network.
        dropped: Whether its weights were dropped.

    Raises:
        ValueError: It is not a point of this network.
        KeyError: A tensor is missing.
    """
    marks = strip_prefix(_ALIVE, tensors)
    alive = tuple(marks[str(n)] for n in range(len(groups)))
    norms, state = tensors[_NORMS], strip_prefix(STATE, tensors)
    inputs = [mark for mark, g in zip(alive, groups, strict=True) if g.kind == "input"]
    point = Point(
        **_Values.model_validate(values).model_dump(), norms=tuple(norms.tolist()), alive=alive, state=state
    )
    if norms.shape != (sum(map(len, inputs)),) or point.features != sum(int(m.sum()) for m in inputs):
        raise ValueError("its features are not those of the network")
    if not dropped:
        check_state(state, network)
        if not all(torch.equal(support(state, g), mark) for g, mark in zip(groups, alive, strict=True)):
            raise ValueError("its weights are not those of its groups")
    return point


def check_state(state: Mapping[str, Tensor], network: nn.Module) -> None:
    """Compare names, shapes and types of stored tensors with those of a network.

    Raises:
        ValueError: They differ.
    """
    found, expected = ({n: (t.shape, t.dtype) for n, t in s.items()} for s in (state, network.state_dict()))
    if found != expected:
        different = sorted(n for n in {*found, *expected} if found.get(n) != expected.get(n))
        raise ValueError(f"its tensors are not those of the network: {different[0]}")


def save_points(points: Sequence[Point]) -> Checkpoint:
    """Return several points as values and tensors."""
    values, tensors = [], dict[str, Tensor]()
    for number, point in enumerate(points):
        point_values, point_tensors = save_point(point)
        values.append(point_values)
        tensors |= add_prefix(f"{number}/", point_tensors)
    return {"points": values}, tensors


def load_points(
    values: Mapping[str, Any], tensors: Mapping[str, Tensor], network: nn.Module, groups: Sequence[GroupSet]
) -> list[Point]:
    """Return the points that ``save_points`` saved; the selected one has its weights."""
    return [
        load_point(point, strip_prefix(f"{n}/", tensors), network, groups, n != values["selected"])
        for n, point in enumerate(values["points"])
    ]


def add_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put a prefix before the names of tensors."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def strip_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names have a prefix, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
