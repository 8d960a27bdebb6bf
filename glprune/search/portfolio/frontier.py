"""The frontier: networks of several sizes from one search, of which one ships.

References:
    Breiman, Friedman, Olshen and Stone (1984), "Classification and Regression Trees", section 3.4.3: the
    smallest model whose error is within one standard error of the smallest error. Here the standard error is
    that of the difference on the same rows, which is smaller than that of either error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from glprune.search.outcome import kept_names

if TYPE_CHECKING:
    from glprune.model.validation_score import ValidationScore
    from glprune.search.job import Job
    from glprune.search.search import SearchResult

AUTO_SIZES = 9
_STANDARD_ERRORS = 1


@dataclass(frozen=True)
class FrontierPoint:
    """A network of one size, ready to be shipped.

    Attributes:
        size: The number of features asked for.
        found: The network and how it was found.
        score: Its validation score after the refit.
        steps: Number of steps of the checkpoint log that led to it.
    """

    size: int
    found: SearchResult
    score: ValidationScore
    steps: int

    @property
    def features(self) -> list[str]:
        """Names of the features it keeps."""
        return kept_names(self.found.outcomes)


def frontier_sizes(job: Job) -> list[int]:
    """Return the sizes of the recipe's frontier, the largest first; none is above the number of features.

    Args:
        job: The job of the network that the search begins with.
    """
    target = job.recipe.target
    assert target.frontier is not None  # the caller has looked
    sizes = set(_auto_sizes(job) if target.frontier == "auto" else target.frontier)
    asked = sizes | ({target.max_features} if target.max_features else set())
    return sorted({min(size, len(job.data.features)) for size in asked}, reverse=True)


def _auto_sizes(job: Job) -> list[int]:
    """Return sizes of equal ratios, from all features down to one, or to those that cannot go."""
    features, least = len(job.data.features), _least_features(job)
    steps = AUTO_SIZES - 1
    return [max(least, round(features ** (step / steps))) for step in range(AUTO_SIZES)]


def _least_features(job: Job) -> int:
    """Count the features that stay: those of a rule, of a fixed input, and one of every other input."""
    stay = 0
    for groups in job.input_groups:
        required = sum(label in job.rules.required for label in groups.labels)
        stay += len(groups.labels) if groups.units.refused else max(1, required)
    return stay


def shipped_point(points: Sequence[FrontierPoint], size: int | None) -> FrontierPoint:
    """Return the point that ships: that of a size, or the one of the one-standard-error rule.

    Args:
        points: The points.
        size: ``target.max_features``; None leaves the choice to the rule.
    """
    if size is not None:
        return next((point for point in reversed(points) if point.size >= size), points[0])
    best = best_point(points)
    close = (p for p in points if not best.score.gain_over(p.score).exceeds(_STANDARD_ERRORS))
    return min(close, key=lambda point: point.size)


def best_point(points: Sequence[FrontierPoint]) -> FrontierPoint:
    """Return the point that is best on the validation rows."""
    return max(points, key=lambda point: point.score.rank)
