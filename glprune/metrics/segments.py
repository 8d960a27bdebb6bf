"""Metrics and decisions of networks on some rows, such as those of a segment."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from glprune.metrics.confidence_intervals import confidence_intervals
from glprune.schema.metrics import METRICS
from glprune.schema.report import DecisionChange, SegmentMetric

if TYPE_CHECKING:
    from glprune.metrics.calibration import Classes
    from glprune.metrics.scorer import Scorer


def decide(scorer: Scorer, output: ArrayLike, threshold: float) -> Classes:
    """Return the class that is decided for each row, shape (n,).

    Args:
        scorer: Of a binary or multiclass task.
        output: Outputs, shape (n,), (n, 1) or (n, n_classes).
        threshold: Smallest probability of the positive class that decides for it; of more than two
            classes the most probable one is chosen.
    """
    if scorer.kind != "binary":
        return scorer.classes(output)
    positive: Classes = (np.exp(scorer.log_probabilities(output)[:, 1]) >= threshold).astype(np.int64)
    return positive


def defined_metrics(scorer: Scorer, output: ArrayLike, target: NDArray[Any]) -> dict[str, float | None]:
    """Return every metric of the task; None where the rows do not define it, as AUROC of one class.

    None too where an output is not a number.
    """
    if scorer.has_nan(output):
        return dict.fromkeys(METRICS[scorer.kind])
    is_constant = len(target) < 2 or bool((target == target[0]).all())
    found: dict[str, float | None] = {}
    for name in METRICS[scorer.kind]:
        with np.errstate(over="ignore", invalid="ignore"):  # a metric that overflows is not defined
            value = scorer.metric(name, output, target)
        undefined = not math.isfinite(value) or (is_constant and name in ("auroc", "r2"))
        found[name] = None if undefined else value
    return found


def segment_metrics(
    scorer: Scorer, before: ArrayLike, after: ArrayLike, target: NDArray[Any], seed: int
) -> list[SegmentMetric]:
    """Return every metric of two networks on the same rows, with its intervals.

    Args:
        scorer: Computes the metrics.
        before: Outputs of the original.
        after: Outputs of the shipped file.
        target: The targets.
        seed: Seed of the resamples.
    """
    old, new = (defined_metrics(scorer, output, target) for output in (before, after))
    intervals = confidence_intervals(scorer, {"original": before, "final": after}, target, seed)
    found = []
    for name in METRICS[scorer.kind]:
        was, now = old[name], new[name]
        gap = None if was is None or now is None else now - was
        known = intervals.get(name) if gap is not None else None
        found.append(SegmentMetric(name=name, original=was, final=now, difference=gap, intervals=known))
    return found


def decision_change(before: Classes, after: Classes, adverse: Collection[int] | None) -> DecisionChange:
    """Count the rows whose decision changed; by direction where some classes are adverse."""
    n_changed = int((before != after).sum())
    if adverse is None:
        return DecisionChange(
            rows=len(before),
            flipped=n_changed,
            to_adverse=None,
            to_favourable=None,
            adverse_original=None,
            adverse_final=None,
        )
    was, is_now = (np.isin(c, sorted(adverse)) for c in (before, after))
    return DecisionChange(
        rows=len(before),
        flipped=n_changed,
        to_adverse=int((~was & is_now).sum()),
        to_favourable=int((was & ~is_now).sum()),
        adverse_original=int(was.sum()),
        adverse_final=int(is_now.sum()),
    )
