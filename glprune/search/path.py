"""The regularisation path: growing lambda with warm starts.

References:
    Friedman, Hastie and Tibshirani (2010), "Regularization paths for generalized linear models
    via coordinate descent", J. Stat. Softw. 33(1): geometric grid below lambda_max, warm starts.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import BaseModel

from glprune.model.diagnostics import check_tensors, tensor_shapes
from glprune.pruning.groups import GroupSet, group_norms, support
from glprune.runtime.checkpoint import UnusableStepError, reading
from glprune.search.path_point import (
    STATE,
    Checkpoint,
    Point,
    TensorDict,
    add_prefix,
    check_state,
    load_point,
    save_point,
    strip_prefix,
)
from glprune.training.objective import lambda_max

if TYPE_CHECKING:
    from torch import Tensor, nn

    from glprune.runtime.checkpoint import CheckpointLog, Step
    from glprune.training.solver import PointSolver

PointTest = Callable[[Point], bool]
_ROUND_OFF = 1e-6
RESTART_SCALE = 0.1
"""A path that overshoots with its first lambda starts again at this share of it."""


class _Stopped(BaseModel, strict=True):
    """The values of steps that ended early, in a checkpoint."""

    accepted: bool
    ended: bool


class RegularisationPath:
    """Solve one lambda after another and keep the points.

    Args:
        solver: Solves one lambda; its objective is at the trained network.
        groups: Every group set of the network, penalised or not.
        metric: Measures the selection metric of the network on the validation split.
        on_point: Called with every solved point of the grid.
        journal: Keeps the solved points; resumes those of a stopped run.
    """

    def __init__(
        self,
        solver: PointSolver,
        groups: list[GroupSet],
        metric: Callable[[], float],
        on_point: Callable[[Point], None],
        journal: CheckpointLog,
    ) -> None:
        self.solver, self.objective, self.spec = solver, solver.objective, solver.spec
        self.groups, self.metric, self.on_point, self.checkpoints = groups, metric, on_point, journal
        self.trained: TensorDict = _copied_state(self.objective.network)
        self._shapes = tensor_shapes(self.objective.network)
        self.largest = lambda_max(self.objective)
        self.points: list[Point] = []
        self._without_weights: Step | None = None  # the stored step whose weights the network should have

    @functools.cached_property
    def origin(self) -> Point:
        """The network the path began with, at lambda 0; the network then has its weights."""
        self.restart()
        return self.measure(0.0)

    def restart(self) -> None:
        """Give the network the weights that the path began with."""
        self.objective.network.load_state_dict(self.trained)
        self._without_weights = None

    def load(self, point: Point) -> None:
        """Give the network the weights of a point.

        Raises:
            UnusableStepError: The point was stored without them.
        """
        if point.record is not None and not point.state:
            raise UnusableStepError(point.record, "it has no weights")
        self.objective.network.load_state_dict(point.state)
        self._without_weights = None

    def solve(self, lam: float, start: Point | None = None) -> Point:
        """Solve one lambda, from the weights of ``start`` or from the present weights of the network."""
        if start is not None:
            self.load(start)
        point = self._solve_or_resume(
            "point", lam, lambda: self.measure(lam, self.solver.solve(lam, polish=self.spec.epochs == 0))
        )
        self.points.append(point)
        self.points.sort(key=lambda p: p.lam)
        self.on_point(point)
        return point

    def polish(
        self, point: Point, lam: float | None = None, accept: Callable[[Point], bool] | None = None
    ) -> Point:
        """Continue from a point by full-batch steps, which lower its KKT residuals; replace it in the path.

        Args:
            point: A point with its weights.
            lam: The lambda of the steps; default the point's own.
            accept: Ends the steps at the first point it accepts; default after all steps.
        """
        lam = point.lam if lam is None else lam
        self.load(point)

        def polish() -> Point:
            accepted: list[Point] = []

            def is_done() -> bool:
                found = self.measure(lam, point.halvings)
                if accept is not None and accept(found):
                    accepted.append(found)
                return bool(accepted)

            self.solver.polish(lam, is_done if accept is not None else None)
            return accepted[0] if accepted else self.measure(lam, point.halvings)

        polished = self._solve_or_resume("closing", lam, polish)
        self.replace_point(polished, point)
        return polished

    def solve_until(self, lam: float, is_small: PointTest, fits: PointTest) -> tuple[Point | None, bool]:
        """Train at one lambda from the present weights, no further than until the support is small enough.

        A lambda that removes many groups removes them one after another, so that there is a point on the way
        for almost every size.

        Args:
            lam: The lambda.
            is_small: Ends the steps; is given the support, without loss, metric and weights.
            fits: Whether a support is accepted; is given the same.

        Returns:
            The last accepted point, added to the path, and whether the steps were ended. Without an accepted
            point the network has the weights of the last step, else those of the point.
        """
        key = {"lam": lam}
        record = self.checkpoints.load_step("stopped", key)
        if record is None:
            self._check_weights()
            values, tensors = self._solve_until(lam, is_small, fits)
            solver_values, solver_tensors = self.solver.state_dict()
            tensors |= solver_tensors
            record = self.checkpoints.save_step("stopped", key, values | solver_values, tensors)
        with reading(record):
            flags = _Stopped.model_validate(record.values)
            point = self.stored_point(record) if flags.accepted else None
            state = strip_prefix(STATE, self.checkpoints.weights(record))
            self._continue_from(record, state)
        if point is None:
            return None, flags.ended
        for old in self.points[:-1]:
            self._drop_weights(old)
        self.points = sorted([*self.points, point], key=lambda p: p.lam)
        self.on_point(point)
        return point, flags.ended

    def _solve_until(self, lam: float, is_small: PointTest, fits: PointTest) -> Checkpoint:
        network, accepted, ended = self.objective.network, TensorDict(), False

        def is_done() -> bool:
            nonlocal accepted, ended
            found = self.outline(lam)
            if fits(found):
                accepted = self._state()
            ended = is_small(found)
            return ended

        halvings = self.solver.solve(lam, polish=False, is_done=is_done)
        if not accepted:
            return {"accepted": False, "ended": ended}, add_prefix(STATE, self._state())
        network.load_state_dict(accepted)
        values, tensors = save_point(self.measure(lam, halvings))
        return values | {"accepted": True, "ended": ended}, tensors

    def certify(self, point: Point) -> Point:
        """Measure a point at the smallest lambda at which its zero groups are optimal, and replace it.

        Steps that ended early may have set a group to zero that would have come back.
        """
        self.load(point)
        certified = self.measure(point.lam * (1 + point.kkt_zero) * (1 + _ROUND_OFF), point.halvings)
        self.replace_point(certified, point)
        return certified

    def replace_point(self, point: Point, old: Point) -> None:
        """Add a point to the path in place of an old one, which the path need not have any more."""
        self.points = sorted([*(p for p in self.points if p is not old), point], key=lambda p: p.lam)

    def grid(self, scale: float = 1.0) -> Iterator[float]:
        """Yield lambdas from ``scale * lambda_min_ratio * lambda_max`` up, beyond lambda_max if necessary."""
        first = scale * self.largest * self.spec.lambda_min_ratio
        factor = self.spec.lambda_min_ratio ** (-1.0 / max(1, self.spec.n_lambdas - 1))
        for step in range(3 * self.spec.n_lambdas):
            yield first * factor**step

    @property
    def inputs(self) -> list[GroupSet]:
        """The group sets of the inputs."""
        return [g for g in self.groups if g.kind == "input"]

    @property
    def hidden(self) -> list[GroupSet]:
        """The group sets of hidden units that can be removed."""
        return [g for g in self.groups if g.kind == "hidden" and not g.units.refused]

    def reads_no_input(self, point: Point) -> bool:
        """Whether the network at a point reads none of its features."""
        return bool(self.inputs) and point.features == 0

    def is_empty(self, point: Point) -> bool:
        """Whether every input group under the penalty is zero, or every hidden one where no input is."""
        inputs = [s for s in self.objective.sets if s.kind == "input"]
        penalised = sum(len(self.objective.penalised_ids(s)) for s in inputs or self.objective.sets)
        return penalised > 0 and self._penalised_left(point, inputs or self.objective.sets) == 0

    def penalised_left(self, point: Point) -> int:
        """Count the groups under the penalty that are not zero."""
        return self._penalised_left(point, self.objective.sets)

    def _penalised_left(self, point: Point, sets: Sequence[GroupSet]) -> int:
        left = 0
        for groups in sets:
            ids = self.objective.penalised_ids(groups)
            numbers = ids - self.objective.first_id(groups)
            left += int(self._alive(point, groups)[numbers].sum())
        return left

    def _alive(self, point: Point, groups: GroupSet) -> Tensor:
        return next(alive for g, alive in zip(self.groups, point.alive, strict=True) if g is groups)

    def features_kept(self, point: Point) -> int:
        """Count the features a removal leaves: the non-zero ones, and one of each input without any.

        A network cannot be called with an input of no columns, so that the first column stays.
        """
        if point.features == 0:
            return 0
        norms = iter(point.norms)
        norms_by_input = [[next(norms) for _ in g.labels] for g in self.inputs]
        zero = [not any(n) and not g.units.refused for n, g in zip(norms_by_input, self.inputs, strict=True)]
        return point.features + sum(zero)

    def solve_grid(self, stop: Callable[[Point], bool], overshoots: Callable[[Point], bool]) -> None:
        """Solve the grid upwards until ``stop`` accepts a point or no group is left.

        A path whose first point already overshoots starts again from the trained weights at a lower lambda.
        The last two points keep their weights.
        """
        for scale in (1.0, RESTART_SCALE, RESTART_SCALE**2):
            for lam in self.grid(scale):
                point = self.solve(lam)
                for old in self.points[:-2]:
                    self._drop_weights(old)
                if self.is_empty(point) or stop(point):
                    break
            if not overshoots(self.points[0]) or scale == RESTART_SCALE**2:
                return
            self.restart()
            self.points.clear()

    def _solve_or_resume(self, kind: str, lam: float, solve: Callable[[], Point]) -> Point:
        """Solve and measure, or load the point of a stopped run; the network then has its weights."""
        record = self.checkpoints.load_step(kind, {"lam": lam})
        if record is None:
            self._check_weights()
            point = solve()
            values, tensors = save_point(point)
            solver_values, solver_tensors = self.solver.state_dict()
            record = self.checkpoints.save_step(
                kind, {"lam": lam}, values | solver_values, tensors | solver_tensors
            )
        else:
            point = self.stored_point(record)
            with reading(record):
                self._continue_from(record, point.state)
        point.record = record
        return point

    def stored_point(self, record: Step) -> Point:
        """Return the point of a stored step.

        Raises:
            UnusableStepError: It is not a point of this path.
        """
        tensors, network = self.checkpoints.weights(record), self.objective.network
        with reading(record):
            point = load_point(record.values, tensors, network, self.groups, record.dropped)
        point.record = record
        return point

    def _continue_from(self, record: Step, state: TensorDict) -> None:
        """Give network and solver the state of a stored step; where it was dropped, a later step has it."""
        self._without_weights = record if record.dropped else None
        if not record.dropped:
            check_state(state, self.objective.network)
            self.objective.network.load_state_dict(state)
            self.solver.load_state_dict(record.values, self.checkpoints.weights(record))

    def _check_weights(self) -> None:
        """Refuse to train from weights that no later step had.

        Raises:
            UnusableStepError: The stored steps end with one whose weights were dropped.
        """
        if self._without_weights is not None:
            raise UnusableStepError(self._without_weights, "no later step has its weights")

    def _drop_weights(self, point: Point) -> None:
        """Free the weights of a point that no later step starts from."""
        point.state = {}
        if point.record is not None:
            self.checkpoints.drop_tensors(point.record, STATE)

    def measure(self, lam: float, halvings: int = 0) -> Point:
        """Measure the network as it is, as a point of some lambda."""
        loss, zero, active = self.objective.optimality(lam)
        return replace(
            self.outline(lam),
            loss=loss,
            penalty=self.objective.penalty(lam),
            kkt_zero=zero,
            kkt_active=active,
            metric=self.metric(),
            state=self._state(),
            halvings=halvings,
        )

    def _state(self) -> TensorDict:
        """Return a copy of the network's tensors, which are those that the path began with."""
        check_tensors(self.objective.network, self._shapes)
        return _copied_state(self.objective.network)

    def outline(self, lam: float) -> Point:
        """Return the present support as a point of some lambda, without loss, metric and weights."""
        state = self.objective.network.state_dict()
        alive = tuple(support(state, g) for g in self.groups)
        by_set = {id(g): a for g, a in zip(self.groups, alive, strict=True)}
        return Point(
            lam=lam,
            loss=math.nan,
            penalty=math.nan,
            kkt_zero=math.nan,
            kkt_active=math.nan,
            features=sum(int(by_set[id(g)].sum()) for g in self.inputs),
            columns=sum(int(by_set[id(g)][g.group].sum()) for g in self.inputs),
            hidden=sum(int(by_set[id(g)].sum()) for g in self.hidden),
            norms=tuple(float(n) for g in self.inputs for n in group_norms(state, g)),
            alive=alive,
            metric=math.nan,
            state={},
        )


def _copied_state(network: nn.Module) -> TensorDict:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
