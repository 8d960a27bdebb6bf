"""How far an interval can reach from its value, whatever the outputs: what value and rows leave possible.

AUROC and calibration error have limits by algebra, as their standard errors are means of numbers from 0 to 1.
That of a Brier score is one of the standard error; percentiles of resamples went to 1.7 times that
in simulations, twice is allowed.

References:
    DeLong, DeLong and Clarke-Pearson (1988), see ``glprune.metrics.confidence_intervals``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from glprune.metrics.calibration import BINS
from glprune.metrics.confidence_intervals import QUANTILE, no_error_reach

_RESAMPLED = 2.0


@dataclass(frozen=True)
class TestRows:
    """What the report says of the rows that a table was measured on.

    Attributes:
        count: Their number.
        classes: Rows of either of two classes, for AUROC; None where that is not stated.
        most: Largest Brier score: 1 for two classes, 2 for more.
    """

    count: int
    classes: tuple[int, int] | None
    most: float


def farthest(metric: str, value: float, brier: float | None, rows: TestRows) -> tuple[float, float] | None:
    """Return the largest distance from a value to the lower and to the upper end of its interval.

    Args:
        metric: Name of the metric.
        value: Its value.
        brier: Brier score of the same network on the same rows, if it is stated.
        rows: The rows.

    Returns:
        None for metrics without a limit, and where what it depends on is not stated.
    """
    if metric == "auroc" and rows.classes is not None:
        reach = _of_auroc(value, *rows.classes)
        return reach, reach
    if metric == "brier_score":
        reach = _RESAMPLED * QUANTILE * math.sqrt(max(0.0, value * (rows.most - value)) / rows.count)
        return reach, reach
    if metric == "calibration_error" and brier is not None:
        # the squared gaps of the rows are at most their Brier scores; the bias is at most that of equal bins
        error = math.sqrt(max(0.0, brier) / rows.count)
        return (QUANTILE + math.sqrt(2 / math.pi * BINS)) * error, QUANTILE * error
    return None


def _of_auroc(value: float, positive: int, negative: int) -> float:
    """Bound DeLong's standard error: components lie from 0 to 1, and their mean is the value."""
    fewest = min(positive, negative)
    if fewest < 2:
        return 1.0
    if value in (0.0, 1.0):
        return no_error_reach(fewest)
    variance = max(0.0, value * (1 - value)) * (1 / (positive - 1) + 1 / (negative - 1))
    return QUANTILE * math.sqrt(variance)
