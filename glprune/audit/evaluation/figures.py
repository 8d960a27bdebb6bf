"""Figures of a bundle measured again, and whether they agree with those that its report states."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

from glprune.audit.evaluation.rows import RowsKind
from glprune.metrics.confidence_intervals import QUANTILE, no_error_reach
from glprune.schema.metrics import RANGES
from glprune.schema.report import Interval

ERROR = 0.05
"""Chance that one of all figures disagrees on own rows, where the report is right."""
MIN_ROWS = 20
"""Fewest own rows on which a metric is compared."""
MIN_CLASS_ROWS = 5
"""Fewest own rows of the rarer class on which AUROC is compared."""
CAP = 0.1
"""Share of an interval's width; a larger difference never agrees, even if rounding may explain it."""
WIDEST = {
    "brier_score": 5.0,
    "log_loss": 5.0,
    "calibration_error": 6.0,
    "mae": 6.0,
    "rmse": 10.0,
    "r2": 10.0,
}
"""How many times as wide as own rows make it a stated interval may be; of other metrics 3.

Few rows far from the others widen intervals: with errors of Student's t of 2.2 degrees of freedom, one right
interval in 2,000 is wider still.
"""
_WIDEST_OTHER = 3.0
_CHANCE = {
    "log_loss": (0.0, math.log(2)),
    "r2": (0.0, 1.0),
}  # best value and that of chance, either way round
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
        stated_rows: Rows that the report measured on; 0 for what is not a metric.
        rows: Rows measured on.
        rarer: Of these, the rows of the rarer class, on which AUROC depends; None for other metrics.
        cap: Largest difference that agrees on the rows of the report, however much rounding may explain.
        agrees: Whether the two agree; None: not judged.
        agrees_within: Least and largest stated value that agrees; None: not judged.
        reason: Why it does not agree, or why it cannot be compared; empty where there is nothing to say.
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
    rarer: int | None = None
    cap: float = math.inf
    agrees: bool | None = None
    agrees_within: Interval | None = None
    reason: str = ""

    @property
    def reach(self) -> float:
        """Largest difference by rounding that agrees."""
        return min(self.allowed, self.cap)

    @property
    def informative(self) -> int:
        """Rows that the width of the interval depends on."""
        return self.rows if self.rarer is None else self.rarer


def judge(figures: Sequence[Figure], kind: RowsKind) -> list[Figure]:
    """Return the figures with the judgement whether each agrees.

    On the rows of the report, values and intervals must be the same up to rounding. A difference that only
    a wide tolerance explains is neither: the figure is not comparable. On other rows, the difference must be
    within its interval, which is widened for the number of comparisons (Bonferroni). Counts depend on the
    rows and are then not judged.
    """
    if kind == "test rows":
        return [_on_the_same_rows(figure) for figure in figures]
    widened = widening(comparisons(figures))
    return [_on_own_rows(figure, widened) for figure in figures]


def comparisons(figures: Iterable[Figure]) -> int:
    """Return the number of figures that own rows can compare."""
    return sum(_has_chance(figure) and not _obstacle(figure) for figure in figures)


def widening(count: int) -> float:
    """Return how many times wider the interval of a difference is for a number of comparisons."""
    return NormalDist().inv_cdf(1 - ERROR / (2 * max(1, count))) / QUANTILE


def _on_the_same_rows(figure: Figure) -> Figure:
    if figure.stated is None or figure.found is None:
        return replace(figure, agrees=figure.stated is figure.found)
    reach = figure.reach
    judged = replace(figure, agrees_within=_around(figure.found, reach, reach))
    gaps = list(_gaps(figure, figure.stated, figure.found))
    if any(not gap <= figure.allowed for gap in gaps):
        reason = "" if not gaps[0] <= figure.allowed else f"its interval is {_text(figure.stated_interval)}"
        return replace(judged, agrees=False, reason=reason)
    if any(gap > reach for gap in gaps):
        return replace(
            judged, reason="it differs, by what rounding of outputs near a tie or an edge may explain"
        )
    return replace(judged, agrees=True)


def _gaps(figure: Figure, stated: float, found: float) -> Iterator[float]:
    """Yield by how much the value and the ends of the interval differ."""
    yield abs(stated - found)
    known, own = figure.stated_interval, figure.interval
    if known is None or own is None:
        return  # reports of 0.2.0 state none; `verify` requires them in later ones
    slack = _OF_WIDTH * (own.high - own.low)
    yield abs(known.low - own.low) - slack
    yield abs(known.high - own.high) - slack


def _on_own_rows(figure: Figure, widened: float) -> Figure:
    if figure.stated_rows == 0 or figure.stated is None:
        return figure
    obstacle = _obstacle(figure)
    if obstacle or figure.found is None:
        return replace(figure, reason=obstacle)
    below, above = (widened * side + figure.reach for side in _sides(figure, figure.stated, figure.found))
    within = _around(figure.found, below, above)
    if within is None:
        return replace(figure, reason="its interval is too wide for any comparison")
    judged = replace(figure, agrees_within=_clipped(figure.name, within))
    times = _times_too_wide(figure)
    if times is not None:
        reason = f"its interval is {times:.1f} times as wide as its rows allow"
        return replace(judged, agrees=False, reason=reason)
    if _is_everything(figure.name, within):
        return replace(judged, reason="any value would agree, since the intervals are too wide")
    return replace(judged, agrees=within.low <= figure.stated <= within.high)


def _clipped(metric: str, within: Interval) -> Interval:
    """Return the part of an interval that a metric can have."""
    low, high = RANGES[metric]
    return Interval(
        low=within.low if low is None else max(low, within.low),
        high=within.high if high is None else min(high, within.high),
    )


def _has_chance(figure: Figure) -> bool:
    return figure.stated_rows > 0 and figure.stated is not None


def _obstacle(figure: Figure) -> str:
    """Say why own rows cannot compare a metric; empty where they can."""
    if figure.found is None:
        return "not defined on these rows"
    if figure.rows < MIN_ROWS:
        return f"fewer than {MIN_ROWS} rows"
    if figure.informative < MIN_CLASS_ROWS:
        return f"fewer than {MIN_CLASS_ROWS} rows of a class"
    return "" if figure.interval is not None else "no interval on these rows"


def _sides(figure: Figure, stated: float, found: float) -> tuple[float, float]:
    """Return how far below and above the found value a stated one is within chance.

    The interval of the difference of two independent samples is built from those of the two values, which
    need not be symmetric.

    References:
        Newcombe (1998), "Interval estimation for the difference between independent proportions: comparison
        of eleven methods", Stat. Med. 17, 873-890, method 10.
    """
    own, known = figure.interval, figure.stated_interval
    assert own is not None
    if known is None:  # as wide as found, for its number of rows
        ratio = math.sqrt(max(1, figure.rows) / max(1, figure.stated_rows))
        known = Interval(low=stated - ratio * (found - own.low), high=stated + ratio * (own.high - found))
    return math.hypot(found - own.low, known.high - stated), math.hypot(own.high - found, stated - known.low)


def _is_everything(metric: str, within: Interval) -> bool:
    """Whether a comparison cannot fail: it allows every value, or all from the best one to that of chance."""
    low, high = _CHANCE.get(metric, RANGES[metric])
    return low is not None and high is not None and within.low <= low and within.high >= high


def _times_too_wide(figure: Figure) -> float | None:
    """Compare the width of the stated interval with the own one's, scaled to the report's rows and value.

    None where it is not too wide, or where either has too few rows to say. That of accuracy follows from its
    value, which `verify` checks.
    """
    own, known, stated, found = figure.interval, figure.stated_interval, figure.stated, figure.found
    if own is None or known is None or stated is None or found is None or figure.name == "accuracy":
        return None
    of_report = figure.informative * figure.stated_rows / max(1, figure.rows)
    spread = _spread(figure.name, found)
    if min(figure.informative, of_report) < MIN_ROWS or spread <= 0:
        return None
    scale = max(1.0, _spread(figure.name, stated) / spread)
    allowed = scale * (own.high - own.low) * math.sqrt(figure.rows / figure.stated_rows)
    if (
        RANGES[figure.name][0] == 0 and RANGES[figure.name][1] is not None
    ):  # rows without an error may hide a share of errors
        allowed = max(allowed, no_error_reach(of_report))
    times = (known.high - known.low) / allowed if allowed > 0 else 0.0
    return times if times > WIDEST.get(figure.name, _WIDEST_OTHER) else None


def _spread(metric: str, value: float) -> float:
    """What the standard error of a metric is about proportional to, at this value."""
    if metric in ("auroc", "brier_score"):
        return math.sqrt(max(0.0, value * (1 - value)))
    if metric in ("r2", "cosine"):
        return 1 - value
    return value if metric != "calibration_error" else 1.0


def _around(value: float, below: float, above: float) -> Interval | None:
    low, high = value - below, value + above
    return Interval(low=low, high=high) if math.isfinite(low) and math.isfinite(high) else None


def _text(interval: Interval | None) -> str:
    return f"{interval.low:.4g} to {interval.high:.4g}" if interval is not None else ""


def disagreeing(figures: Iterable[Figure]) -> list[Figure]:
    """Return the figures that do not agree."""
    return [figure for figure in figures if figure.agrees is False]


def not_comparable(figures: Iterable[Figure]) -> list[Figure]:
    """Return the figures that the report states and that could not be compared, each with its reason."""
    return [figure for figure in figures if figure.agrees is None and figure.reason]
