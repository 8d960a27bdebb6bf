"""The regularisation path: growing lambda with warm starts, and the point the target picks.

References:
    Friedman, Hastie and Tibshirani (2010), "Regularization paths for generalized linear models
    via coordinate descent", J. Stat. Softw. 33(1): geometric grid below lambda_max, warm starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from glprune.errors import TargetError
from glprune.groups import GroupSet, group_norms, support
from glprune.objective import Objective, lambda_max
from glprune.recipe import TargetSpec, TrainSpec
from glprune.task import gain
from glprune.train import PointSolver

State = dict[str, Tensor]
_BISECTIONS = 8


@dataclass
class Point:
    """One solved lambda: its measurements and the weights to start again from.

    Attributes:
        lam: The lambda.
        loss: Mean training loss.
        penalty: The penalty.
        kkt_zero: Largest KKT residual over zero groups.
        kkt_active: Largest KKT residual over non-zero groups.
        fields: Number of input fields with a non-zero group.
        columns: Number of input columns in those fields.
        hidden: Number of hidden units with a non-zero group.
        norms: Group norms of all input fields, float64.
        metric: The selection metric on the validation split.
        state: A copy of the network's tensors.
        refit_metric: The metric after a refit, once one was made.
    """

    lam: float
    loss: float
    penalty: float
    kkt_zero: float
    kkt_active: float
    fields: int
    columns: int
    hidden: int
    norms: tuple[float, ...]
    metric: float
    state: State
    refit_metric: float | None = None


class RegularisationPath:
    """Solve one lambda after another and find the point that meets a target.

    Args:
        objective: The penalised objective, at the trained network.
        groups: Every group set of the network, penalised or not.
        spec: How each point is trained and the grid.
        seed: Seed of the shuffling.
        metric: Measures the selection metric of the network on the validation split.
        done: Told every finished point.
    """

    def __init__(
        self,
        objective: Objective,
        groups: list[GroupSet],
        spec: TrainSpec,
        seed: int,
        metric: Callable[[], float],
        done: Callable[[Point], None],
    ) -> None:
        self.objective, self.groups, self.spec = objective, groups, spec
        self.solver = PointSolver(objective, spec, seed)
        self.metric, self.done = metric, done
        self.largest = lambda_max(objective)
        self.points: list[Point] = []

    def solve(self, lam: float, start: State | None = None) -> Point:
        """Solve one lambda, from ``start`` or from where the network stands."""
        if start is not None:
            self.objective.network.load_state_dict(start)
        self.solver.solve(lam)
        point = self._measure(lam)
        self.points.append(point)
        self.points.sort(key=lambda p: p.lam)
        self.done(point)
        return point

    def grid(self, scale: float = 1.0) -> Iterator[float]:
        """Lambdas from ``scale * lambda_min_ratio * lambda_max`` up, past lambda_max where need be."""
        first = scale * self.largest * self.spec.lambda_min_ratio
        factor = self.spec.lambda_min_ratio ** (-1.0 / max(1, self.spec.points - 1))
        for step in range(3 * self.spec.points):
            yield first * factor**step

    @property
    def inputs(self) -> list[GroupSet]:
        """The group sets of the inputs."""
        return [g for g in self.groups if g.kind == "input"]

    @property
    def hidden(self) -> list[GroupSet]:
        """The group sets of hidden units that can be cut."""
        return [g for g in self.groups if g.kind == "hidden" and not g.units.refused]

    def blind(self, point: Point) -> bool:
        """Whether the network reads none of its fields any more."""
        return bool(self.inputs) and point.fields == 0

    def emptied(self, point: Point) -> bool:
        """Whether no group under the penalty is left."""
        if all(s.kind == "hidden" for s in self.objective.sets):
            units = sum(len(s.labels) for s in self.objective.sets)
            return point.hidden <= sum(len(g.labels) for g in self.hidden) - units
        stay = sum(len(g.labels) for g in self.inputs if g.units.refused)
        return stay < sum(len(g.labels) for g in self.inputs) and point.fields <= stay

    def fields_kept(self, point: Point) -> int:
        """Fields a removal leaves: those alive, and one of an input that none is alive of.

        An input of no columns could not be fed, so its first column stays.
        """
        if point.fields == 0:
            return 0
        norms = iter(point.norms)
        own = [[next(norms) for _ in g.labels] for g in self.inputs]
        idle = [not any(n) and not g.units.refused for n, g in zip(own, self.inputs, strict=True)]
        return point.fields + sum(idle)

    def grow(self, enough: Callable[[Point], bool]) -> None:
        """Solve the grid upwards until a point is enough or no group is left.

        A path whose first point already overshoots began too high: it is begun again lower,
        from the trained weights.
        """
        trained = {name: t.detach().clone() for name, t in self.objective.network.state_dict().items()}
        for scale in (1.0, 0.1, 0.01):
            for lam in self.grid(scale):
                point = self.solve(lam)
                if self.emptied(point) or enough(point):
                    break
            if len(self.points) > 1 or scale == 0.01:
                return
            self.objective.network.load_state_dict(trained)
            self.points.clear()

    def _measure(self, lam: float) -> Point:
        loss, zero, active = self.objective.optimality(lam)
        state = {name: t.detach().clone() for name, t in self.objective.network.state_dict().items()}
        alive = [support(state, g) for g in self.inputs]
        hidden = [support(state, g) for g in self.hidden]
        return Point(
            lam=lam,
            loss=loss,
            penalty=self.objective.penalty(lam),
            kkt_zero=zero,
            kkt_active=active,
            fields=sum(int(a.sum()) for a in alive),
            columns=sum(int(a[g.group].sum()) for a, g in zip(alive, self.inputs, strict=True)),
            hidden=sum(int(h.sum()) for h in hidden),
            norms=tuple(float(n) for g in self.inputs for n in group_norms(state, g)),
            metric=self.metric(),
            state=state,
        )


def choose(
    path: RegularisationPath,
    target: TargetSpec,
    reference: float,
    after_refit: Callable[[Point], float],
) -> Point:
    """Run as much of the path as the target needs and return the point it picks.

    Args:
        path: A path with no points yet.
        target: The recipe's target.
        reference: The metric of the original network on the validation split.
        after_refit: Removes and refits a point's network and returns its validation metric.

    Raises:
        TargetError: No point meets the target; the message says how near the path came.
    """
    if target.lam is not None:
        return _at_lambda(path, target.lam)
    if target.max_features is not None:
        return _at_most(path, target.max_features, "max_features", path.fields_kept)
    if target.max_drop is None:
        assert target.max_hidden is not None  # the recipe holds a target
        return choose_hidden(path, target.max_hidden)
    return _within_drop(path, target.max_drop.metric, target.max_drop.amount, reference, after_refit)


def choose_hidden(path: RegularisationPath, limit: int) -> Point:
    """Run a path over hidden units and return the first point that keeps at most ``limit``.

    Raises:
        TargetError: The path cannot reach the limit.
    """
    return _at_most(path, limit, "max_hidden", lambda point: point.hidden)


def _at_lambda(path: RegularisationPath, lam: float) -> Point:
    for step in path.grid():
        if step >= lam or lam == 0:
            break
        if path.blind(path.solve(step)):
            break
    point = path.points[-1] if path.points and path.blind(path.points[-1]) else path.solve(lam)
    if path.blind(point):
        last = max((p.lam for p in path.points if p.fields), default=0.0)
        raise TargetError(
            f"target.lambda: {lam:g} removes every input (so does {point.lam:.3g}); "
            f"the largest lambda tried that keeps any is {last:.3g}."
        )
    return point


def _at_most(path: RegularisationPath, limit: int, key: str, count: Callable[[Point], int]) -> Point:
    path.grow(lambda point: count(point) <= limit)
    below = next((p for p in path.points if count(p) <= limit), None)
    if below is None:
        fewest = min(count(p) for p in path.points)
        raise TargetError(
            f"target.{key}: {limit} was not reached; the path ended at lambda "
            f"{path.points[-1].lam:.3g} with {fewest}. Raise train.points or the penalty's strength."
        )
    above = max((p for p in path.points if p.lam < below.lam), key=lambda p: p.lam, default=None)
    for _ in range(_BISECTIONS):
        if count(below) == limit or above is None or below.lam / above.lam < 1.005:
            break
        middle = path.solve((above.lam * below.lam) ** 0.5, above.state)
        above, below = (above, middle) if count(middle) <= limit else (middle, below)
    below = max((p for p in path.points if count(p) <= limit), key=lambda p: (count(p), p.metric))
    if count(below) == 0:
        raise TargetError(
            f"target.{key}: {limit} cannot be met: the groups leave together, "
            f"from {count(above) if above else 0} to none at lambda {below.lam:.4g}."
        )
    return below


def _within_drop(
    path: RegularisationPath,
    metric: str,
    amount: float,
    reference: float,
    after_refit: Callable[[Point], float],
) -> Point:
    path.grow(lambda point: False)
    candidates = [p for p in path.points if not path.blind(p)]

    def holds(point: Point) -> bool:
        if point.refit_metric is None:
            point.refit_metric = after_refit(point)
        return gain(metric, reference, point.refit_metric) >= -amount

    # fewer inputs hold less: the sparsest point that holds is found by bisection
    low, high = -1, len(candidates)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(candidates[middle]) else (low, middle)
    held = [p for p in candidates if p.refit_metric is not None and holds(p)]
    if not held:
        tried = [p.refit_metric for p in candidates if p.refit_metric is not None]
        best = max(tried, key=lambda value: gain(metric, reference, value), default=float("nan"))
        raise TargetError(
            f"target.max_drop: no point of the path keeps {metric} within {amount:g} of {reference:.4f} "
            f"on the validation split; the best after a refit is {best:.4f}. Allow a larger amount or "
            "lower train.lambda_min_ratio."
        )
    return held[-1]


def exits(points: list[Point]) -> list[float | None]:
    """For every field, the smallest lambda at which its group was exactly zero, or None."""
    norms = torch.tensor([p.norms for p in points], dtype=torch.float64)
    return [
        next((p.lam for p, norm in zip(points, column, strict=True) if norm == 0), None)
        for column in norms.T.tolist()
    ]
