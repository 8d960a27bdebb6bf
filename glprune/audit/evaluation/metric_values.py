"""The metrics of the models of a bundle and of their changes: values, intervals, and tolerances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from glprune.audit.evaluation.figures import CAP
from glprune.audit.evaluation.subject import FINAL, INT8, ORIGINAL
from glprune.metrics.confidence_intervals import confidence_intervals
from glprune.metrics.rounding import SINGLE, largest_change
from glprune.metrics.segments import defined_metrics
from glprune.schema.metrics import RANGES

if TYPE_CHECKING:
    from glprune.audit.evaluation.rows import Array
    from glprune.metrics.calibration import Floats
    from glprune.metrics.scorer import Scorer
    from glprune.schema.report import Interval, PairedIntervals

CHANGE, INT8_CHANGE = f"{FINAL} and {ORIGINAL}", f"{INT8} and {FINAL}"
PAIRS = {CHANGE: (ORIGINAL, FINAL), INT8_CHANGE: (FINAL, INT8)}
"""Name of a pair of models -> the one that changes are taken from, and the other."""
SHARE = 0.01
"""Share of rows, of a value or of an output's spread that a difference may be, where there is no interval."""


@dataclass(frozen=True)
class MetricValue:
    """A metric of a model, or its change between two.

    Attributes:
        value: The value; None where it is not defined.
        interval: Its interval, if it has one.
        allowed: Largest change by rounding.
        size: Size of the values that it is computed from.
    """

    value: float | None
    interval: Interval | None
    allowed: float
    size: float

    @property
    def cap(self) -> float:
        """Largest difference that agrees: a share of the interval's width, or of the value without one."""
        own = self.interval
        width = CAP * (own.high - own.low) if own is not None else SHARE * self.size
        return max(2 * SINGLE * self.size, width)


def measure(
    scorer: Scorer, views: Mapping[str, Array], steps: Mapping[str, Floats], target: Array, seed: int
) -> dict[str, dict[str, MetricValue]]:
    """Measure models and their changes on the same rows.

    Args:
        scorer: Computes the metrics.
        views: Model -> what metrics are computed from.
        steps: Model -> by how much rounding may change the outputs of every row, shape (n,).
        target: The targets.
        seed: Seed of the resamples.

    Returns:
        Model or pair of models -> metric -> its value.
    """
    records = _records(scorer, views, target, seed)
    found = {
        model: {
            name: MetricValue(
                value,
                interval_of(records[model].get(name), model),
                largest_change(scorer, name, view, target, steps[model]),
                _size(scorer, name, value, target),
            )
            if value is not None
            else MetricValue(None, None, 0.0, 0.0)
            for name, value in defined_metrics(scorer, view, target).items()
        }
        for model, view in views.items()
    }
    changes = {
        pair: {
            name: _changed(found[old][name], value, interval_of_change(records[new].get(name), new))
            for name, value in found[new].items()
        }
        for pair, (old, new) in PAIRS.items()
        if old in found and new in found
    }
    return found | changes


def _size(scorer: Scorer, metric: str, value: float, target: Array) -> float:
    """Return the size of what a metric is computed from: for errors that of the targets at least."""
    if scorer.has_classes or RANGES[metric] != (0, None):
        return abs(value)
    with np.errstate(over="ignore", invalid="ignore"):
        scale = float(np.sqrt(np.square(np.asarray(target, dtype=np.float64)).mean()))
    return max(abs(value), scale if np.isfinite(scale) else 0.0)


def _records(
    scorer: Scorer, views: Mapping[str, Array], target: Array, seed: int
) -> dict[str, dict[str, PairedIntervals]]:
    """Return model -> metric -> intervals of it and, where the other of its pair is there, of its change."""
    bases = {new: old for old, new in PAIRS.values() if old in views}
    found = {}
    for model in views:
        both = [bases[model], model] if model in bases else [model]
        found[model] = confidence_intervals(scorer, {m: views[m] for m in both}, target, seed)
    return found


def _changed(old: MetricValue, new: MetricValue, interval: Interval | None) -> MetricValue:
    if old.value is None or new.value is None:
        return MetricValue(None, None, 0.0, 0.0)
    return MetricValue(new.value - old.value, interval, old.allowed + new.allowed, max(old.size, new.size))


def interval_of(intervals: PairedIntervals | None, model: str) -> Interval | None:
    """Return the interval of a model's value."""
    return intervals.values.get(model) if intervals is not None else None


def interval_of_change(intervals: PairedIntervals | None, model: str) -> Interval | None:
    """Return the interval of the change from another model to this one."""
    return intervals.differences.get(model) if intervals is not None else None
