"""Confidence intervals: that they hold their values, and are as wide as the value and the rows allow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from glprune._version import __version__
from glprune.audit.checks.figures.interval_reach import TestRows, farthest
from glprune.audit.findings import Found, check_equal
from glprune.schema.metrics import RANGES

if TYPE_CHECKING:
    from glprune.schema.report import Interval, PairedIntervals, Report

MIN_RESAMPLES = 1000
_ROUND_OFF = 1e-6  # AUROC is stated in single precision
_PAIRED_SLACK = {"bootstrap": 1.25}  # a percentile of a difference may lie a little outside of those of both
_MIN_PAIRED_ROWS = {"r2": 20}  # R2 of resamples of few rows has no standard error to speak of
_WIDTH_SLACK = 0.25  # share by which a width from resamples may differ from that of the normal distribution
_QUANTILE = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class _Stated:
    """A metric with its intervals, as any table of the report has it.

    Attributes:
        where: JSON pointer to the intervals.
        metric: Name of the metric.
        rows: Rows it was measured on.
        values: Network -> value; differences are taken from the first.
        intervals: The intervals.
        test_rows: What is known of the rows.
        brier: Network -> its Brier score on them.
    """

    where: str
    metric: str
    rows: int
    values: Mapping[str, float]
    intervals: PairedIntervals | None
    test_rows: TestRows
    brier: Mapping[str, float | None]

    @property
    def first(self) -> float:
        """The value that differences are taken from."""
        return next(iter(self.values.values()))


def check_intervals(report: Report) -> Iterator[Found]:
    """Check the intervals of every table: performance, 8-bit file, segments and baselines."""
    required = report.run.versions.get("glprune") == __version__
    for stated in _tables(report):
        if stated.intervals is not None:
            yield from _check(stated, stated.intervals, report.run.seed)
        elif required and stated.rows > 1:
            yield stated.where, "is null; glprune computes intervals of every metric"
    yield from _baselines(report)


def _baselines(report: Report) -> Iterator[Found]:
    """Require that the shipped model's difference to every other selection lies in its interval."""
    final = {m.name: m.final for m in report.performance}
    for n, result in enumerate(report.baselines.results if report.baselines else ()):
        for k, run in enumerate(result.runs):
            where = f"/baselines/results/{n}/runs/{k}/differences"
            if run.differences:
                yield from check_equal(where, sorted(run.differences), sorted(run.test), "the metrics are")
            for name in run.differences.keys() & run.test.keys() & final.keys():
                yield from _holds(f"{where}/{name}", run.differences[name], final[name] - run.test[name])


def _tables(report: Report) -> Iterator[_Stated]:
    most = 1.0 if report.task == "binary" else 2.0
    classes = _class_counts(report)
    for n, m in enumerate(report.performance):
        values = {"original": m.original, "zeroed": m.zeroed, "final": m.final}
        brier = _brier(report.performance, list(values))
        rows = TestRows(m.rows, classes, most)
        yield _Stated(f"/performance/{n}/intervals", m.name, m.rows, values, m.intervals, rows, brier)
    record = report.quantized
    for n, q in enumerate(record.metrics if record else ()):
        where, count = f"/quantized/metrics/{n}/intervals", record.rows if record else 0
        values = {"float32": q.float32, "int8": q.int8}
        brier = _brier(record.metrics if record else (), list(values))
        rows = TestRows(count, classes, most)
        yield _Stated(where, q.name, count, values, q.intervals, rows, brier)
    for a, attribute in enumerate(report.segments.attributes if report.segments else ()):
        for s, segment in enumerate(attribute.segments):
            for n, found in enumerate(segment.metrics):
                if found.original is not None and found.final is not None:
                    where = f"/segments/attributes/{a}/segments/{s}/metrics/{n}/intervals"
                    values = {"original": found.original, "final": found.final}
                    brier = _brier(segment.metrics, list(values))
                    rows = TestRows(segment.rows, None, most)
                    yield _Stated(where, found.name, segment.rows, values, found.intervals, rows, brier)


def _brier(metrics: Iterable[Any], networks: Iterable[str]) -> dict[str, float | None]:
    """Return the Brier score of every network in a table; None where it is not stated."""
    found = next((metric for metric in metrics if metric.name == "brier_score"), None)
    return {network: getattr(found, network, None) for network in networks}


def _class_counts(report: Report) -> tuple[int, int] | None:
    """Return the test rows of either of two classes, from their shares."""
    test = report.data.splits.get("test")
    if report.task != "binary" or test is None or len(test.target) != 2:
        return None
    first, second = (round(share * test.rows) for share in test.target.values())
    return first, second


def _check(stated: _Stated, found: PairedIntervals, seed: int) -> Iterator[Found]:
    where, (first, *others) = stated.where, stated.values
    yield from check_equal(f"{where}/values", sorted(found.values), sorted(stated.values), "there are")
    yield from check_equal(
        f"{where}/differences", sorted(found.differences), sorted(others), f"beside {first}"
    )
    if set(found.values) != set(stated.values) or set(found.differences) != set(others):
        return
    yield from _method(stated, found, seed)
    low, high = RANGES.get(stated.metric, (None, None))
    for network, value in stated.values.items():
        interval, place = found.values[network], f"{where}/values/{network}"
        yield from _holds(place, interval, value)
        if (low is not None and interval.low < low) or (high is not None and interval.high > high):
            yield place, f"{stated.metric} cannot be {interval.low} to {interval.high}"
    for network in others:
        change = stated.values[network] - stated.first
        yield from _holds(f"{where}/differences/{network}", found.differences[network], change)
    yield from (_accuracy_widths(stated, found) if stated.metric == "accuracy" else ())
    yield from _value_widths(stated, found)
    yield from (
        _paired_widths(stated, found) if stated.rows >= _MIN_PAIRED_ROWS.get(stated.metric, 2) else ()
    )


def _method(stated: _Stated, found: PairedIntervals, seed: int) -> Iterator[Found]:
    """Require DeLong's method for AUROC and no other metric, and the seed of the run."""
    where = f"{stated.where}/method"
    if (found.method == "delong") != (stated.metric == "auroc"):
        yield where, f"is {found.method!r} for {stated.metric}"
    if found.method != "bootstrap":
        yield from check_equal(f"{stated.where}/resamples", found.resamples, None, "none are drawn:")
        return
    if found.resamples is None or found.resamples < MIN_RESAMPLES:
        yield f"{stated.where}/resamples", f"{found.resamples} are too few for a 95 % interval"
    yield from check_equal(f"{stated.where}/seed", found.seed, seed, "the run has")


def _holds(where: str, interval: Interval, value: float) -> Iterator[Found]:
    slack = _ROUND_OFF * max(1.0, abs(value))
    if not interval.low - slack <= value <= interval.high + slack:
        yield where, f"{interval.low} to {interval.high} does not hold {value}"


def _accuracy_widths(stated: _Stated, found: PairedIntervals) -> Iterator[Found]:
    """Compare with the variance of a share, and of a change, which is least where all rows change one way."""
    for network, value in stated.values.items():
        width = _half_width(found.values[network])
        wanted = _QUANTILE * math.sqrt(max(0.0, value * (1 - value)) / stated.rows)
        if value in (0.0, 1.0):  # the exact interval of no error, or of nothing else
            wanted = (1 - 0.025 ** (1 / stated.rows)) / 2
        if abs(width - wanted) > _WIDTH_SLACK * wanted + 1 / stated.rows:
            yield (
                f"{stated.where}/values/{network}",
                f"is {2 * width:.3g} wide; {stated.rows} rows give {2 * wanted:.3g}",
            )
    for network, interval in found.differences.items():
        change = abs(stated.values[network] - stated.first)
        least = _QUANTILE * math.sqrt(max(0.0, change * (1 - change)) / stated.rows)
        width = _half_width(interval)
        if width < (1 - _WIDTH_SLACK) * least - 1 / stated.rows:
            yield (
                f"{stated.where}/differences/{network}",
                f"is {2 * width:.3g} wide; {stated.rows} rows give at least {2 * least:.3g}",
            )


def _value_widths(stated: _Stated, found: PairedIntervals) -> Iterator[Found]:
    """Require that no interval reaches further than value and rows allow."""
    for network, value in stated.values.items():
        reach = farthest(stated.metric, value, stated.brier[network], stated.test_rows)
        interval, slack = found.values[network], _ROUND_OFF
        if reach is not None and (
            value - interval.low > reach[0] * (1 + slack) + slack
            or interval.high - value > reach[1] * (1 + slack) + slack
        ):
            yield (
                f"{stated.where}/values/{network}",
                f"is {interval.low:.3g} to {interval.high:.3g}; {stated.rows} rows give at most "
                f"{value - reach[0]:.3g} to {value + reach[1]:.3g}",
            )


def _paired_widths(stated: _Stated, found: PairedIntervals) -> Iterator[Found]:
    """Require that no difference has a larger standard error than two values together."""
    first = found.values[next(iter(stated.values))]
    slack = _PAIRED_SLACK.get(found.method, 1.0)
    for network, interval in found.differences.items():
        most = slack * (_reach(first, stated.first) + _reach(found.values[network], stated.values[network]))
        if _half_width(interval) > most * (1 + _ROUND_OFF) + _ROUND_OFF:
            yield (
                f"{stated.where}/differences/{network}",
                f"is wider than {2 * most:.3g}, which both values give",
            )


def _reach(interval: Interval, value: float) -> float:
    """Return the longer side of an interval, which ends early at the limit of the metric's range."""
    return max(interval.high - value, value - interval.low)


def _half_width(interval: Interval) -> float:
    return (interval.high - interval.low) / 2
