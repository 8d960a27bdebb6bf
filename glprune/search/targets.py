"""What a target counts, how much of it there is, and the point of a path that meets it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from glprune.pruning.groups import support
from glprune.pruning.removal import kept_units
from glprune.search.budget import MEASURES, size_of_support
from glprune.search.job import Job
from glprune.search.path import RegularisationPath, solve_at, solve_at_most, solve_towards
from glprune.search.path_point import Point, Size

if TYPE_CHECKING:
    from glprune.pruning.units import Kind

SizeMetric = Literal["features", "hidden", "parameters", "macs"]
PointSelector = Callable[[RegularisationPath, Job], Point | None]
WORDS: Mapping[SizeMetric, str] = {
    "features": "input features",
    "hidden": "hidden units",
    "parameters": "parameters",
    "macs": "multiply-accumulates for one row",
}


@dataclass(frozen=True)
class SizeTarget:
    """At most so much of something.

    Attributes:
        counted: What is counted.
        limit: How much of it may stay.
        kinds: Kinds of groups under the penalty.
        name: The target's key, for messages.
        slack: Share of the limit by which a point may stay below it without a search for a larger one.
    """

    counted: SizeMetric
    limit: float
    kinds: tuple[Kind, ...]
    name: str
    slack: float = 0.0

    @property
    def least(self) -> float:
        """The size from which on a larger one is not searched for."""
        return (1 - self.slack) * self.limit


@dataclass(frozen=True)
class AtLambda:
    """Pick the point of one lambda."""

    lam: float

    def __call__(self, path: RegularisationPath, job: Job) -> Point:
        """Run the path up to it."""
        return solve_at(path, self.lam)


@dataclass(frozen=True)
class SmallestAbove:
    """Pick the smallest point above the goal, on a path that stops at a limit before it.

    Attributes:
        goal: The goal of the last path.
        now: The size this path begins with.
        limit: Where it may stop.
    """

    goal: SizeTarget
    now: float
    limit: float

    def __call__(self, path: RegularisationPath, job: Job) -> Point | None:
        """Run the path; None where no point will do."""
        size = size_of(self.goal.counted, job, path)
        return solve_towards(path, size, self.now, self.limit, self.goal.least)


@dataclass(frozen=True)
class LargestWithin:
    """Pick the largest point within the goal.

    Attributes:
        goal: The goal.
        lost: Supports that will not do.
    """

    goal: SizeTarget
    lost: Collection[bytes] = ()

    def __call__(self, path: RegularisationPath, job: Job) -> Point | None:
        """Run the path; None where the point it arrives at will not do."""
        size, goal = size_of(self.goal.counted, job, path), self.goal
        point = solve_at_most(path, size, goal.limit, goal.name, goal.slack)
        return None if support_key(point) in self.lost else point


def resolve_budget(asked: str | float, whole: float) -> float:
    """A budget as a number: itself, or a percentage of the whole."""
    return float(asked[:-1]) / 100 * whole if isinstance(asked, str) else float(asked)


def size_of(counted: SizeMetric, job: Job, path: RegularisationPath) -> Size:
    """What a point of a path keeps."""
    if counted == "features":
        return path.features_kept
    multiple = job.recipe.target.size_metric_round_to
    if counted == "hidden":
        return lambda point: sum(
            len(k) for u, k in kept_units(job.groups, point.alive, multiple) if u.kind == "hidden"
        )
    known: dict[bytes, int] = {}  # by what is alive: a point would keep its weights

    def size(point: Point) -> int:
        key = support_key(point)
        if key not in known:
            known[key] = size_of_support(job, point.alive, MEASURES[counted], multiple)
        return known[key]

    return size


def support_key(point: Point) -> bytes:
    """The groups alive at a point, to compare points by."""
    return torch.cat(point.alive).numpy().tobytes()


def current_size(job: Job, counted: SizeMetric) -> float:
    """What the network of a job has."""
    if counted == "features":
        return len(job.data.features)
    if counted == "hidden":
        return sum(g.units.count for g in job.groups if g.kind == "hidden" and not g.units.refused)
    alive = [support(job.network.state_dict(), g) for g in job.groups]
    return size_of_support(job, alive, MEASURES[counted], job.recipe.target.size_metric_round_to)
