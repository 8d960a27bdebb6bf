"""What intervals say of a change: whether it is a clear loss, and the words for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from glprune.schema.metrics import label

if TYPE_CHECKING:
    from glprune.schema.report import Interval, Metric, PairedIntervals, QuantizedMetric

Which = Literal["original", "zeroed", "final", "change"]
WHICH: tuple[Which, ...] = ("original", "zeroed", "final", "change")
_SMALLEST_CHANGE = 1e-4  # relative: what another runtime may change


def between(interval: Interval, digits: int = 4, signed: bool = False) -> str:
    """Format the ends of an interval."""
    sign = "+" if signed else ""
    return f"{interval.low:{sign}.{digits}f} to {interval.high:{sign}.{digits}f}"


def with_interval(metric: Metric, which: Which, form: str, digits: int = 4) -> str:
    """Format a value of a metric, or its change by the shipped file, and its interval.

    Args:
        metric: The metric.
        which: The network, or the change.
        form: Has places for the value and the interval; without an interval the value alone is returned.
        digits: Decimals of the interval.
    """
    is_change = which == "change"
    value = metric.final - metric.original if is_change else getattr(metric, which)
    shown = f"{value:+.4f}" if is_change else f"{value:.4f}"
    if metric.intervals is None:
        return shown
    interval = metric.intervals.differences["final"] if is_change else metric.intervals.values[which]
    return form.format(shown, between(interval, digits, is_change))


def change_of(metric: Metric) -> Interval | None:
    """Return the interval of the shipped file's change against the original network."""
    return metric.intervals.differences.get("final") if metric.intervals is not None else None


def is_clear_loss(metric: Metric, selection_metric: str) -> bool:
    """Whether the shipped file is worse than the original network by more than chance.

    Without intervals, which a single row has not, any loss of the selection metric counts.
    """
    change = change_of(metric)
    if change is not None:
        return _lies_below(metric.original, change, metric.higher_is_better)
    worse = (metric.final < metric.original) == metric.higher_is_better and metric.final != metric.original
    return worse and metric.name == selection_metric


def is_clear_int8_loss(metric: QuantizedMetric) -> bool:
    """Whether the 8-bit file is worse than the shipped one by more than chance."""
    change = metric.intervals.differences.get("int8") if metric.intervals is not None else None
    return change is not None and _lies_below(metric.float32, change, metric.higher_is_better)


def _lies_below(before: float, change: Interval, higher_is_better: bool) -> bool:
    """Whether all changes in an interval are losses that are more than another runtime's round-off."""
    smallest = -change.high if higher_is_better else change.low
    largest = -change.low if higher_is_better else change.high
    return smallest > 0 and largest > _SMALLEST_CHANGE * abs(before)


def in_parentheses(change: Interval | None) -> str:
    """Return the interval of a change as the end of a clause; empty where there is none."""
    return f" (95 % interval of the change {between(change, signed=True)})" if change is not None else ""


def loss_sentence(metric: Metric) -> str:
    """Warn of a loss."""
    return (
        f"{label(metric.name)} on the test split is worse than the original network's: "
        f"{metric.final:.4f} against {metric.original:.4f}{in_parentheses(change_of(metric))}."
    )


def int8_loss_sentence(file: str, metric: QuantizedMetric) -> str:
    """Warn of a loss by the 8-bit file."""
    assert metric.intervals is not None  # without an interval there is no clear loss
    change = in_parentheses(metric.intervals.differences["int8"])
    return (
        f"{label(metric.name)} of {file} on the test split is worse than the shipped file's: "
        f"{metric.int8:.4f} against {metric.float32:.4f}{change}."
    )


def method_sentence(records: Sequence[PairedIntervals | None]) -> str:
    """Say how intervals were computed; empty where there are none."""
    known = [record for record in records if record is not None]
    ways = {
        "bootstrap": "bias-corrected bootstrap, {resamples:,} resamples of the rows with seed {seed}",
        "delong": "DeLong's standard error for AUROC",
        "influence": "a standard error from the influence of every row, since a bootstrap of so many rows "
        "would take long",
    }
    texts = dict.fromkeys(
        ways[record.method].format(resamples=record.resamples or 0, seed=record.seed) for record in known
    )
    if not texts:
        return ""
    return (
        f"95 % intervals, changes paired by row: {'; '.join(texts)}. They leave out how another search would "
        "vary."
    )
