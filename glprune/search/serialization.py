"""Points, refits and stages as the journal keeps them: JSON values and named tensors, and back."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from glprune.search.path_point import Point
from glprune.training.refit import RefitResult

Kept = tuple[dict[str, Any], dict[str, Tensor]]
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
_ALIVE, _NORMS = "alive/", "norms"


def save_point(point: Point) -> Kept:
    """A point with its weights."""
    facts = {name: getattr(point, name) for name in _SCALARS}
    marks = {f"{_ALIVE}{n}": alive for n, alive in enumerate(point.alive)}
    norms = torch.tensor(point.norms, dtype=torch.float64)
    return facts, {_NORMS: norms, **marks, **_with_prefix(STATE, point.state)}


def load_point(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Point:
    """The point that was kept."""
    alive = _without_prefix(_ALIVE, tensors)
    return Point(
        **{name: facts[name] for name in _SCALARS},
        norms=tuple(tensors[_NORMS].tolist()),
        alive=tuple(alive[str(n)] for n in range(len(alive))),
        state=_without_prefix(STATE, tensors),
    )


def save_points(points: list[Point]) -> Kept:
    """Points one after the other."""
    facts, tensors = [], dict[str, Tensor]()
    for number, point in enumerate(points):
        own, named = save_point(point)
        facts.append(own)
        tensors |= _with_prefix(f"{number}/", named)
    return {"points": facts}, tensors


def load_points(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[Point]:
    """The points that were kept."""
    return [load_point(own, _without_prefix(f"{n}/", tensors)) for n, own in enumerate(facts["points"])]


def save_refit(fitted: RefitResult) -> Kept:
    """A refit and its network's tensors."""
    facts = {
        "epochs": fitted.epochs,
        "best_epoch": fitted.best_epoch,
        "score": list(fitted.score),
        "halvings": fitted.halvings,
    }
    state = {name: tensor.detach().clone() for name, tensor in fitted.network.state_dict().items()}
    return facts, _with_prefix(STATE, state)


def load_refit(facts: Mapping[str, Any], tensors: Mapping[str, Tensor], slim: nn.Module) -> RefitResult:
    """The refit that was kept, of a slim network; the network is copied."""
    network = copy.deepcopy(slim)
    network.load_state_dict(_without_prefix(STATE, tensors))
    metric, loss = facts["score"]
    counts = (facts["epochs"], facts["best_epoch"], (metric, loss), facts["halvings"])
    return RefitResult(network.eval(), *counts)


def _with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
