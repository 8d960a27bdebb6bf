"""Find the point of a path that meets a target."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from glprune.errors import TargetError
from glprune.search.budget import SizeTarget, size_of, support_key
from glprune.search.path import RESTART_SCALE, RegularisationPath
from glprune.search.path_point import Point, Size, save_point

if TYPE_CHECKING:
    from glprune.search.job import Job

_MAX_GROWTHS = 12  # of lambda by a factor of ten


class PointSelector(Protocol):
    """Runs a path and chooses a point of it."""

    def __call__(self, path: RegularisationPath, job: Job) -> Point | None:
        """Run the path; None where no point is suitable."""
        ...


@dataclass(frozen=True)
class AtLambda:
    """Pick the point of one lambda."""

    lam: float

    def __call__(self, path: RegularisationPath, job: Job) -> Point:
        """Run the path up to the lambda.

        Raises:
            TargetError: The path removes every input.
        """
        for step in path.grid():
            if step >= self.lam or self.lam == 0:
                break
            if path.reads_no_input(path.solve(step)):
                break
        point = (
            path.points[-1]
            if path.points and path.reads_no_input(path.points[-1])
            else path.polish(path.solve(self.lam))
        )
        if path.reads_no_input(point):
            last = max((p.lam for p in path.points if p.features), default=0.0)
            raise TargetError(
                f"target.lambda: {self.lam:g} removes every input (so does {point.lam:.3g}); "
                f"the largest lambda tried that keeps any is {last:.3g}."
            )
        return point


@dataclass(frozen=True)
class OneStage:
    """Pick a point near the limit of one stage on the way to a goal.

    Attributes:
        goal: The goal of the last path.
        now: The size this path begins with.
        limit: The size it goes to.
    """

    goal: SizeTarget
    now: float
    limit: float

    def __call__(self, path: RegularisationPath, job: Job) -> Point | None:
        """Run the path; None where no point is suitable.

        Sizes are whole numbers and groups leave together, so that half a stage beyond the limit is accepted,
        but never a size below the goal.
        """
        search = PointSearch(path, size_of(self.goal.counted, job, path))
        least = max(self.goal.least, self.limit * (self.limit / self.now) ** 0.5)
        return search.stop_within(SizeRange(least, self.now - 1), self.limit)


@dataclass(frozen=True)
class LargestWithin:
    """Pick the largest point within the goal.

    Attributes:
        goal: The goal.
        rejected: Supports that may not be picked.
    """

    goal: SizeTarget
    rejected: Collection[bytes] = ()

    def __call__(self, path: RegularisationPath, job: Job) -> Point | None:
        """Run the path; None where the point found has a rejected support."""
        point = PointSearch(path, size_of(self.goal.counted, job, path)).largest_within(self.goal)
        return None if support_key(point) in self.rejected else point


@dataclass(frozen=True)
class AllZero:
    """Pick the first point at which every group under the penalty is zero.

    Attributes:
        name: The target's key, for messages.
    """

    name: str

    def __call__(self, path: RegularisationPath, job: Job) -> Point:
        """Run the path; where its grid ends too early, full-batch steps at growing lambdas finish it.

        A step of Adam moves a group by the learning rate, however large lambda is; full-batch steps do not.

        Raises:
            TargetError: Some group never becomes zero.
        """
        path.solve_grid(path.is_empty, path.reads_no_input)
        point = path.points[-1]
        for _ in range(_MAX_GROWTHS):
            if path.penalised_left(point) == 0:
                return PointSearch(path, path.penalised_left).polish(point, SizeRange(0, 0))
            point = path.polish(
                point, point.lam / RESTART_SCALE, lambda found: path.penalised_left(found) == 0
            )
        raise TargetError(
            f"{self.name}: the groups to be removed did not become zero; raise train.n_lambdas."
        )


@dataclass(frozen=True)
class PointSearchConfig:
    """Limits of a search for a point of some size.

    Attributes:
        max_kkt_zero: KKT residual of zero groups up to which a point is accepted.
        bisections: Bisections of lambda between a point that is too large and one within the limit.
        max_lambda_rise: Largest relative rise of lambda for the zero groups of a point to be optimal.
        attempts: Starts of a path that stops before the goal, each at a tenth of the lambda before.
        equal_lambda_ratio: Lambdas with a smaller ratio are not bisected any further.
        polish_rounds: Polishings of one point, each at the lambda that the last one suggests.
        lambda_factor: Factor on lambda after a polishing that missed the range, until both sides are known.
        relaxed_share: Share of the limit that is enough where no larger point is optimal.
        single_steps: Full-batch steps taken one by one.
        step_halvings: Halvings of such a step that removes too many groups.
        step_halving_factor: Factor on the curvature for half the step; a step begins with two thirds of it.
    """

    max_kkt_zero: float = 0.02
    bisections: int = 8
    max_lambda_rise: float = 1.0
    attempts: int = 3
    equal_lambda_ratio: float = 1.005
    polish_rounds: int = 8
    lambda_factor: float = 1.1
    relaxed_share: float = 0.9
    single_steps: int = 60
    step_halvings: int = 20
    step_halving_factor: float = 3.0


@dataclass(frozen=True)
class SizeRange:
    """The sizes that are accepted, from ``least`` to ``most``."""

    least: float
    most: float


_DEFAULT_CONFIG = PointSearchConfig()


class PointSearch:
    """Search a path for a point whose size is in a range.

    Args:
        path: A path with no points yet, unless a method says otherwise.
        size: Counts what the target counts.
        config: Limits of the search.
    """

    def __init__(
        self, path: RegularisationPath, size: Size, config: PointSearchConfig = _DEFAULT_CONFIG
    ) -> None:
        self.path, self.size, self.config = path, size, config

    def stop_within(self, sizes: SizeRange, enough: float) -> Point | None:
        """Run the path until its size is in a range, and no further.

        The steps of a lambda end where they would leave the range. Where groups leave so fast that it is
        skipped, the path starts again at a smaller lambda.

        Args:
            sizes: The sizes accepted.
            enough: The size at which the path ends.

        Returns:
            None where no point in the range has optimal zero groups.
        """
        best: Point | None = None
        for attempt in range(self.config.attempts):
            self.path.points.clear()
            point, ended = self._run_until(RESTART_SCALE**attempt, sizes, enough)
            best = min((p for p in (point, best) if p is not None), key=self.size, default=None)
            if ended and point is not None:
                break
        if best is None:
            return None
        if best not in self.path.points:  # of an earlier attempt
            self.path.points = [best]
        if not self._is_optimal(best) and best.kkt_zero < self.config.max_lambda_rise:
            best = self.path.certify(best)
        if self._is_optimal(best):
            return best
        polished = self.polish(best, sizes)
        return polished if self._is_optimal(polished) else None

    def _run_until(self, scale: float, sizes: SizeRange, enough: float) -> tuple[Point | None, bool]:
        """Run the grid; return the last point in the range, and whether the steps were ended."""
        path, size = self.path, self.size

        def is_small(point: Point) -> bool:
            return size(point) < sizes.least

        def fits(point: Point) -> bool:
            return self._fits(point, sizes)

        path.restart()
        last: Point | None = None
        for lam in path.grid(scale):
            point, ended = path.solve_until(lam, is_small, fits)
            if ended:
                return point, True
            last = point or last
            if point is not None and (size(point) <= enough or path.is_empty(point)):
                return point, True
        return last, False

    def largest_within(self, goal: SizeTarget) -> Point:
        """Run the path and return its largest point within the goal's limit, bisecting between points.

        Raises:
            TargetError: The path cannot reach the limit, or the groups become zero all at once.
        """
        limit, least = goal.limit, goal.least
        best, above = self._bracket(goal)
        if self.size(best) == 0:
            raise TargetError(
                f"{goal.name}: {limit:g} cannot be met: the groups leave together, "
                f"from {self.size(above) if above else 0:g} to none at lambda {best.lam:.4g}."
            )
        if above is not None and self.size(best) < least:
            between = self.step(above, best.lam, SizeRange(least, limit))
            if between is not None and self.size(between) > self.size(best):
                self.path.replace_point(between, best)
                return between
        polished = self.polish(best, SizeRange(max(1, min(self.size(best), least)), limit))
        if not self._is_optimal(polished):  # fewer groups are better than a point that is not a solution
            relaxed = SizeRange(math.ceil(self.config.relaxed_share * limit), limit)
            polished = self.polish(polished, relaxed)
        return polished

    def _bracket(self, goal: SizeTarget) -> tuple[Point, Point | None]:
        """Run the path; return the best point within the limit and the one before it, which is too large."""
        path, size, limit, least = self.path, self.size, goal.limit, goal.least
        path.solve_grid(
            lambda point: size(point) <= limit,
            lambda point: size(point) < least or path.reads_no_input(point),
        )
        below = next((p for p in path.points if size(p) <= limit), None)
        if below is None:
            fewest = min(size(p) for p in path.points)
            raise TargetError(
                f"{goal.name}: {limit:g} was not reached; the path ended at lambda "
                f"{path.points[-1].lam:.3g} with {fewest:g}. Raise train.n_lambdas or the penalty's strength."
            )
        above = _previous_point(path, below)
        for _ in range(self.config.bisections):
            if (
                size(below) >= least
                or above is None
                or below.lam < self.config.equal_lambda_ratio * above.lam
            ):
                break
            middle = path.solve(_bisect(above.lam, below.lam, below.lam * RESTART_SCALE), above)
            above, below = (above, middle) if size(middle) <= limit else (middle, below)
        fitting = [p for p in path.points if size(p) <= limit and p.state]
        return max(fitting, key=lambda p: (size(p), p.metric)), above

    def polish(self, point: Point, sizes: SizeRange) -> Point:
        """Polish a point of the path, at its lambda if that keeps its size in a range, else at one nearby.

        Full-batch steps may bring groups back or remove more: lambda is then raised or lowered a little.
        Further rounds at a point whose zero groups are not optimal yet end as soon as they are. The first
        round does not: with a quarter of its steps MNIST lost half a point of accuracy.

        Args:
            point: A point with its weights.
            sizes: The sizes accepted.

        Returns:
            The polished point, or the best known one where none nearby is accepted.
        """
        path, config = self.path, self.config
        lam, start, too_large, too_small = point.lam, point, 0.0, math.inf

        def accept(point: Point) -> bool:
            return self._is_optimal(point) and self._fits(point, sizes)

        for _ in range(config.polish_rounds):
            polished = path.polish(start, lam, None if start is point else accept)
            if accept(polished):
                return polished
            path.points.remove(polished)
            if self._fits(polished, sizes):  # its zero groups need more of the same steps
                start = polished
            elif self.size(polished) > sizes.most:
                too_large = max(too_large, lam)
                lam = _bisect(lam, too_small, lam * config.lambda_factor)
            else:
                too_small = min(too_small, lam)
                lam = _bisect(too_large, lam, lam / config.lambda_factor)
        path.replace_point(start, point)
        return start

    def step(self, point: Point, lam: float, sizes: SizeRange) -> Point | None:
        """Continue from a point that is too large by single full-batch steps, until its size is in a range.

        A step that removes too many groups is repeated at half its length, so that groups leave one by one.
        The many steps of ``polish`` jump across the range where a point is far from optimal.

        Args:
            point: A point larger than the range, with its weights.
            lam: The lambda of the steps.
            sizes: The sizes accepted.

        Returns:
            The first point in the range whose zero groups are optimal; it is not added to the path. Where a
            single group is larger than the range, the largest such point below it; None where there is none.
        """
        journal = self.path.checkpoints
        key = {"lam": lam, "least": sizes.least, "most": sizes.most}
        record = journal.load_step("descent", key)
        if record is None:
            found = self._step(point, lam, sizes)
            values, tensors = save_point(found) if found else ({}, {})
            journal.save_step("descent", key, values, tensors)
            return found
        return self.path.stored_point(record) if record.values else None

    def _step(self, point: Point, lam: float, sizes: SizeRange) -> Point | None:
        path, size, config = self.path, self.size, self.config
        start, best, halvings = point, None, 0
        curvature: float | None = None
        for _ in range(config.single_steps):
            path.load(start)
            curvature = path.solver.step(lam, curvature)
            found = path.measure(lam, point.halvings)
            below = size(found) <= sizes.most and not path.reads_no_input(found)
            optimal = self._is_optimal(found)
            if below and optimal and (best is None or size(found) > size(best)):
                best = found
            if size(found) > sizes.most or (below and size(found) >= sizes.least and not optimal):
                start = found
            elif (below and size(found) >= sizes.least) or halvings == config.step_halvings:
                break
            else:
                curvature *= config.step_halving_factor
                halvings += 1
        return best

    def _is_optimal(self, point: Point) -> bool:
        return point.kkt_zero <= self.config.max_kkt_zero

    def _fits(self, point: Point, sizes: SizeRange) -> bool:
        return sizes.least <= self.size(point) <= sizes.most and not self.path.reads_no_input(point)


def _bisect(low: float, high: float, otherwise: float) -> float:
    """Return the geometric mean of a bracket, or a fallback while one end is unknown."""
    return (low * high) ** 0.5 if 0 < low < high < math.inf else otherwise


def _previous_point(path: RegularisationPath, point: Point) -> Point | None:
    """Return the point before another one, or the network the path began with."""
    before = [p for p in path.points if p.lam < point.lam and p.state]
    if before or point.lam == 0:
        return max(before, key=lambda p: p.lam, default=None)
    return path.origin
