"""The regularisation path: growing lambda with warm starts, and the point the target picks.

References:
    Friedman, Hastie and Tibshirani (2010), "Regularization paths for generalized linear models
    via coordinate descent", J. Stat. Softw. 33(1): geometric grid below lambda_max, warm starts.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from glprune.errors import TargetError
from glprune.pruning.groups import GroupSet, group_norms, support
from glprune.search.path_point import Point, Size, State
from glprune.search.serialization import STATE, load_point, save_point
from glprune.training.objective import Objective, lambda_max
from glprune.training.solver import PointSolver

if TYPE_CHECKING:
    from glprune.runtime.checkpoint import CheckpointLog
    from glprune.schema.recipe import TrainSpec

_BISECTIONS = 8
_STEPS_BACK = 2
_SETTLINGS, _NUDGE = 8, 1.1
_FEWER = 0.9
_OPTIMAL = 0.02  # KKT residual of zero groups a chosen point should have
_ALIKE = 1.005  # lambdas this near are one
_DESCENTS, _HALVINGS = 60, 20
_LOWER = 0.1  # share of the first lambda to try where that goes too far


class RegularisationPath:
    """Solve one lambda after another and find the point that meets a target.

    Args:
        objective: The penalised objective, at the trained network.
        groups: Every group set of the network, penalised or not.
        spec: How each point is trained and the grid.
        seed: Seed of the shuffling.
        metric: Measures the selection metric of the network on the validation split.
        done: Told every finished point.
        journal: Keeps what was solved, and knows what a stopped run had solved.
    """

    def __init__(
        self,
        objective: Objective,
        groups: list[GroupSet],
        spec: TrainSpec,
        seed: int,
        metric: Callable[[], float],
        done: Callable[[Point], None],
        journal: CheckpointLog,
    ) -> None:
        self.objective, self.groups, self.spec = objective, groups, spec
        self.solver = PointSolver(objective, spec, seed)
        self.metric, self.done, self.journal = metric, done, journal
        self.largest = lambda_max(objective)
        self.trained: State = {n: t.detach().clone() for n, t in objective.network.state_dict().items()}
        self.points: list[Point] = []

    @functools.cached_property
    def origin(self) -> Point:
        """The network the path began with, at lambda 0; the network then stands on its weights."""
        self.objective.network.load_state_dict(self.trained)
        return self._measure(0.0)

    def solve(self, lam: float, start: State | None = None) -> Point:
        """Solve one lambda, from ``start`` or from where the network stands."""
        if start is not None:
            self.objective.network.load_state_dict(start)
        point = self._save_points(
            "point", lam, lambda: self._measure(lam, self.solver.solve(lam, polish=self.spec.epochs == 0))
        )
        self.points.append(point)
        self.points.sort(key=lambda p: p.lam)
        self.done(point)
        return point

    def polish(self, point: Point) -> Point:
        """Go on from a point by full-batch steps at its lambda, which tighten its KKT residuals."""
        return self._polish(point, point.lam)

    def polish_to_size(self, point: Point, size: Size, least: float, most: float) -> Point:
        """Close a point where that keeps its size, else at a lambda nearby.

        Full-batch steps may bring groups back or lose more: lambda is then raised or lowered a little.
        More of the same steps, for zero groups that are not optimal yet, end as soon as they are. The first
        ones do not: with a quarter of them MNIST lost half a point of accuracy.

        Args:
            point: A point with its weights.
            size: What the target counts.
            least: The smallest size that will do.
            most: The largest.

        Returns:
            The closed point, or the one given where none nearby is of such a size.
        """
        lam, start, dense, sparse = point.lam, point, 0.0, math.inf

        def fits(point: Point) -> bool:
            return least <= size(point) <= most and not self.reads_no_input(point)

        def will_do(point: Point) -> bool:
            return point.kkt_zero <= _OPTIMAL and fits(point)

        for _ in range(_SETTLINGS):
            closed = self._polish(start, lam, None if start is point else will_do)
            if will_do(closed):
                return closed
            self.points.remove(closed)
            if fits(closed):  # more of the same steps
                start = closed
            elif size(closed) > most:
                dense = max(dense, lam)
                lam = _bisect(lam, sparse, lam * _NUDGE)
            else:
                sparse = min(sparse, lam)
                lam = _bisect(dense, lam, lam / _NUDGE)
        self.load_point(start, point)
        return start

    def step_to_size(self, point: Point, lam: float, size: Size, least: float, most: float) -> Point | None:
        """Go on from a point that is too large by single full-batch steps, until its size is within bounds.

        A step that loses too much is taken again at half its length, so that groups leave one by one.
        The many steps of :meth:`settle` leap over the bounds where a point is far from optimal.

        Args:
            point: A point larger than ``most``, with its weights.
            lam: The lambda of the steps.
            size: What the target counts.
            least: The smallest size that will do.
            most: The largest.

        Returns:
            The first point within the bounds whose zero groups are optimal, in no path yet. Where a single
            group is more than the bounds are apart, the largest such below them; None where there is none.
        """
        asked = {"lam": lam, "least": least, "most": most}
        record = self.journal.load_step("descent", asked)
        if record is None:
            held = self._step_to_size(point, lam, size, least, most)
            facts, tensors = save_point(held) if held else ({}, {})
            self.journal.save_step("descent", asked, facts, tensors)
            return held
        return load_point(record.values, self.journal.weights(record)) if record.values else None

    def _step_to_size(self, point: Point, lam: float, size: Size, least: float, most: float) -> Point | None:
        start, held, halvings = point, None, 0
        curvature: float | None = None
        for _ in range(_DESCENTS):
            self.objective.network.load_state_dict(start.state)
            curvature = self.solver.step(lam, curvature)
            found = self._measure(lam, point.halvings)
            fits = size(found) <= most and not self.reads_no_input(found)
            optimal = found.kkt_zero <= _OPTIMAL
            if fits and optimal and (held is None or size(found) > size(held)):
                held = found
            if size(found) > most or (fits and size(found) >= least and not optimal):
                start = found
            elif (fits and size(found) >= least) or halvings == _HALVINGS:
                break
            else:
                curvature *= 3.0  # a step begins with two thirds of this
                halvings += 1
        return held

    def _polish(self, point: Point, lam: float, will_do: Callable[[Point], bool] | None = None) -> Point:
        """Take a closed point into the path in the place of the one it came from; the first that will do."""
        self.objective.network.load_state_dict(point.state)

        def polish() -> Point:
            held: list[Point] = []

            def enough() -> bool:
                found = self._measure(lam, point.halvings)
                if will_do is not None and will_do(found):
                    held.append(found)
                return bool(held)

            self.solver.polish(lam, enough if will_do is not None else None)
            return held[0] if held else self._measure(lam, point.halvings)

        closed = self._save_points("closing", lam, polish)
        self.load_point(closed, point)
        return closed

    def load_point(self, point: Point, old: Point) -> None:
        """Take a point into the path, in the place of an old one where the path still has that."""
        self.points = sorted([*(p for p in self.points if p is not old), point], key=lambda p: p.lam)

    def grid(self, scale: float = 1.0) -> Iterator[float]:
        """Lambdas from ``scale * lambda_min_ratio * lambda_max`` up, past lambda_max where need be."""
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
        """The group sets of hidden units that can be cut."""
        return [g for g in self.groups if g.kind == "hidden" and not g.units.refused]

    def reads_no_input(self, point: Point) -> bool:
        """Whether the network reads none of its features any more."""
        return bool(self.inputs) and point.features == 0

    def is_empty(self, point: Point) -> bool:
        """Whether no group under the penalty is left."""
        if all(s.kind == "hidden" for s in self.objective.sets):
            units = sum(len(s.labels) for s in self.objective.sets)
            return point.hidden <= sum(len(g.labels) for g in self.hidden) - units
        pulled = sum(len(self.objective.penalised_ids(s)) for s in self.objective.sets if s.kind == "input")
        return pulled > 0 and point.features <= sum(len(g.labels) for g in self.inputs) - pulled

    def features_kept(self, point: Point) -> int:
        """Features a removal leaves: those alive, and one of an input that none is alive of.

        An input of no columns could not be fed, so its first column stays.
        """
        if point.features == 0:
            return 0
        norms = iter(point.norms)
        own = [[next(norms) for _ in g.labels] for g in self.inputs]
        idle = [not any(n) and not g.units.refused for n, g in zip(own, self.inputs, strict=True)]
        return point.features + sum(idle)

    def solve_grid(self, enough: Callable[[Point], bool], overshoots: Callable[[Point], bool]) -> None:
        """Solve the grid upwards until a point is enough or no group is left.

        A path whose first point already overshoots began too high: it is begun again lower,
        from the trained weights. The last two points keep their weights.
        """
        for scale in (1.0, _LOWER, _LOWER**2):
            for lam in self.grid(scale):
                point = self.solve(lam)
                for old in self.points[:-2]:
                    self._drop_states(old)
                if self.is_empty(point) or enough(point):
                    break
            if not overshoots(self.points[0]) or scale == _LOWER**2:
                return
            self.objective.network.load_state_dict(self.trained)
            self.points.clear()

    def _save_points(self, kind: str, lam: float, solve: Callable[[], Point]) -> Point:
        """Solve and measure, or take over what a stopped run did; the network stands there either way."""
        record = self.journal.load_step(kind, {"lam": lam})
        if record is None:
            point = solve()
            facts, tensors = save_point(point)
            standing, generator = self.solver.state_dict()
            record = self.journal.save_step(kind, {"lam": lam}, facts | standing, tensors | generator)
        else:
            tensors = self.journal.weights(record)
            point = load_point(record.values, tensors)
            if point.state:  # else a later step of that run holds what is needed
                self.objective.network.load_state_dict(point.state)
                self.solver.load_state_dict(record.values, tensors)
        point.record = record
        return point

    def _drop_states(self, point: Point) -> None:
        """Nothing will start from a point any more: its weights need not be held."""
        point.state = {}
        if point.record is not None:
            self.journal.drop_tensors(point.record, STATE)

    def _measure(self, lam: float, halvings: int = 0) -> Point:
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
            features=sum(int(a.sum()) for a in alive),
            columns=sum(int(a[g.group].sum()) for a, g in zip(alive, self.inputs, strict=True)),
            hidden=sum(int(h.sum()) for h in hidden),
            norms=tuple(float(n) for g in self.inputs for n in group_norms(state, g)),
            alive=tuple(support(state, g) for g in self.groups),
            metric=self.metric(),
            state=state,
            halvings=halvings,
        )


def _bisect(low: float, high: float, otherwise: float) -> float:
    """The geometric mean of a bracket's ends where it has both."""
    return (low * high) ** 0.5 if 0 < low < high < math.inf else otherwise


def solve_at(path: RegularisationPath, lam: float) -> Point:
    """Run a path up to one lambda and return that point.

    Raises:
        TargetError: It removes every input.
    """
    for step in path.grid():
        if step >= lam or lam == 0:
            break
        if path.reads_no_input(path.solve(step)):
            break
    point = (
        path.points[-1]
        if path.points and path.reads_no_input(path.points[-1])
        else path.polish(path.solve(lam))
    )
    if path.reads_no_input(point):
        last = max((p.lam for p in path.points if p.features), default=0.0)
        raise TargetError(
            f"target.lambda: {lam:g} removes every input (so does {point.lam:.3g}); "
            f"the largest lambda tried that keeps any is {last:.3g}."
        )
    return point


def solve_towards(
    path: RegularisationPath, size: Size, now: float, limit: float, floor: float
) -> Point | None:
    """Run a path until a point is no larger than ``limit`` and return its smallest point above ``floor``.

    Where the path jumps from hardly any group removed to below the floor, it is bisected a little.

    Args:
        path: A path with no points yet.
        size: What the target counts.
        now: The size the path begins with.
        limit: Where this path may stop.
        floor: Where the last path of all is to arrive; none before it may go below.

    Returns:
        None where every point removes nothing, goes below the floor or is far from optimal.
    """
    path.solve_grid(
        lambda point: size(point) <= limit, lambda point: size(point) < floor or path.reads_no_input(point)
    )
    for _ in range(_STEPS_BACK):
        above, below = _refine_around(path, size, floor)
        if above is None or below is None or size(above) <= (now * limit) ** 0.5:
            break
        path.solve((above.lam * below.lam) ** 0.5, above.state)
    best = _refine_around(path, size, floor)[0]
    if best is None or size(best) >= now:
        return None
    settled = path.polish_to_size(best, size, floor, now - 1)
    return settled if settled.kkt_zero <= _OPTIMAL else None  # a later stage goes the whole way


def _refine_around(path: RegularisationPath, size: Size, floor: float) -> tuple[Point | None, Point | None]:
    """The smallest point that is not below the floor, and the first one that is."""
    held = [p for p in path.points if size(p) >= floor and not path.reads_no_input(p) and p.state]
    lost = [p for p in path.points if size(p) < floor or path.reads_no_input(p)]
    above = min(held, key=lambda p: (size(p), p.lam), default=None)
    return above, next((p for p in lost if above is None or p.lam > above.lam), None)


def solve_at_most(path: RegularisationPath, size: Size, limit: float, name: str, slack: float = 0.0) -> Point:
    """Run a path and return its largest point of at most ``limit``, bisecting between points.

    Args:
        path: A path with no points yet.
        size: What the target counts.
        limit: The target.
        name: How the target is called, for messages.
        slack: Share of the limit a point may stay below it without a search for a larger one.

    Raises:
        TargetError: The path cannot reach the limit, or the groups leave together.
    """
    least = (1 - slack) * limit
    path.solve_grid(
        lambda point: size(point) <= limit, lambda point: size(point) < least or path.reads_no_input(point)
    )
    below = next((p for p in path.points if size(p) <= limit), None)
    if below is None:
        fewest = min(size(p) for p in path.points)
        raise TargetError(
            f"{name}: {limit:g} was not reached; the path ended at lambda "
            f"{path.points[-1].lam:.3g} with {fewest:g}. Raise train.n_lambdas or the penalty's strength."
        )
    above = _previous_point(path, below)
    for _ in range(_BISECTIONS):
        if size(below) >= least or above is None or below.lam < _ALIKE * above.lam:
            break
        middle = path.solve(_bisect(above.lam, below.lam, below.lam * _LOWER), above.state)
        above, below = (above, middle) if size(middle) <= limit else (middle, below)
    fitting = [p for p in path.points if size(p) <= limit and p.state]
    best = max(fitting, key=lambda p: (size(p), p.metric))
    if size(best) == 0:
        raise TargetError(
            f"{name}: {limit:g} cannot be met: the groups leave together, "
            f"from {size(above) if above else 0:g} to none at lambda {best.lam:.4g}."
        )
    if above is not None and size(best) < least:
        between = path.step_to_size(above, best.lam, size, least, limit)
        if between is not None and size(between) > size(best):
            path.load_point(between, best)
            return between
    settled = path.polish_to_size(best, size, max(1, min(size(best), least)), limit)
    if settled.kkt_zero > _OPTIMAL:  # better a few groups fewer than a point that is not a solution
        settled = path.polish_to_size(settled, size, math.ceil(_FEWER * limit), limit)
    return settled


def _previous_point(path: RegularisationPath, point: Point) -> Point | None:
    """The point before another one, or the network the path began with."""
    before = [p for p in path.points if p.lam < point.lam and p.state]
    if before or point.lam == 0:
        return max(before, key=lambda p: p.lam, default=None)
    return path.origin
