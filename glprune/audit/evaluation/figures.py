"""Figures of a bundle measured again, and whether they agree with those that its report states."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

from glprune.audit.evaluation.rows import RowsKind
from glprune.metrics.confidence_intervals import QUANTILE
from glprune.schema.report import Interval

ERROR = 0.05
"""Chance that one of all figures disagrees on own rows, where the report is right."""
_OF_WIDTH = 0.05  # by which an end of an interval may differ, since resamples move with every output


@dataclass(frozen=True)
class Figure:
    """One figure, as the report states it and as it was found.

    Attributes:
        where: The rows: ``all rows``, or a segment as ``attribute = value``.
        model: ``final``, ``original``, ``int8``, or two of them that are compared.
        name: Name of the metric or count.
        stated: The report's value; None where the metric is not defined on its rows.
        found: The value found; None likewise.
        allowed: Largest difference that rounding can explain, on the rows of the report.
        stated_interval: The report's interval; None where it has none.
        interval: The interval found; None where there is none.
        stated_rows: Rows that the report measured on.
        rows: Rows measured on.
        agrees: Whether the two agree; None: not judged.
    """

    where: str
    model: str
    name: str
    stated: float | None
    found: float | None
    allowed: float = 0.0
    stated_interval: Interval | None = None
    interval: Interval | None = None
    stated_rows: int = 0
    rows: int = 0
    agrees: bool | None = None


def judge(figures: Sequence[Figure], kind: RowsKind) -> list[Figure]:
    """Return the figures with the judgement whether each agrees.

    On the rows of the report, values and intervals must be the same up to rounding. On other rows, the
    difference must be within its interval, which is widened for the number of comparisons (Bonferroni).
    Counts depend on the rows and are then not judged.
    """
    if kind == "test rows":
        return [replace(figure, agrees=_same(figure)) for figure in figures]
    compared = [f for f in figures if _has_chance(f)]
    widening = NormalDist().inv_cdf(1 - ERROR / (2 * max(1, len(compared)))) / QUANTILE
    return [
        replace(figure, agrees=_within_chance(figure, widening)) if _has_chance(figure) else figure
        for figure in figures
    ]


def _same(figure: Figure) -> bool:
    """Whether value and interval are the report's, up to rounding."""
    if figure.stated is None or figure.found is None:
        return figure.stated is figure.found
    if not abs(figure.stated - figure.found) <= figure.allowed:
        return False
    stated, found = figure.stated_interval, figure.interval
    if stated is None or found is None:
        return True  # reports of 0.2.0 state none; `verify` requires them in later ones
    reach = figure.allowed + _OF_WIDTH * (found.high - found.low)
    return abs(stated.low - found.low) <= reach and abs(stated.high - found.high) <= reach


def _has_chance(figure: Figure) -> bool:
    return figure.interval is not None and figure.stated is not None and figure.found is not None


def _within_chance(figure: Figure, widening: float) -> bool:
    """Whether 0 is in the interval of the difference of two independent samples.

    The interval is built from those of the two values, which need not be symmetric.

    References:
        Newcombe (1998), "Interval estimation for the difference between independent proportions: comparison
        of eleven methods", Stat. Med. 17, 873-890, method 10.
    """
    stated, found, own = figure.stated or 0.0, figure.found or 0.0, figure.interval
    assert own is not None
    known = figure.stated_interval
    if known is None:  # as wide as found, for its number of rows
        ratio = math.sqrt(max(1, figure.rows) / max(1, figure.stated_rows))
        known = Interval(low=stated - ratio * (found - own.low), high=stated + ratio * (own.high - found))
    gap = found - stated
    below = math.hypot(found - own.low, known.high - stated)
    above = math.hypot(own.high - found, stated - known.low)
    slack = figure.allowed
    return gap - widening * below - slack <= 0 <= gap + widening * above + slack


def disagreeing(figures: Iterable[Figure]) -> list[Figure]:
    """Return the figures that do not agree."""
    return [figure for figure in figures if figure.agrees is False]
