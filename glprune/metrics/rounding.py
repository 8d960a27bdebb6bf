"""By how much a metric can change where a network's outputs are rounded in another way.

Another processor, or another version of ONNX Runtime, adds in another order. Metrics that are smooth change
by as little as the outputs. Those that count rows or pairs change by the share of those near a tie.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from glprune.metrics.calibration import BINS, predicted_probability
from glprune.metrics.scorer import as_values, log_losses

if TYPE_CHECKING:
    from glprune.metrics.calibration import Classes, Floats
    from glprune.metrics.scorer import Scorer

SINGLE = 1e-6
"""Relative precision of figures in reports: older ones have a few in single precision."""
_MOST_NATS = 50.0  # that the logarithm of a probability near 0 may move


def output_step(output: ArrayLike, relative: float) -> float:
    """Return the change of outputs that a relative one of the largest of them is."""
    values = np.abs(np.asarray(output, dtype=np.float64))
    return relative * float(values.max()) if values.size else 0.0


def largest_change(scorer: Scorer, metric: str, output: ArrayLike, target: ArrayLike, step: float) -> float:
    """Return a bound on the change of a metric where every output changes by at most a step.

    Args:
        scorer: Computes the metric.
        metric: Its name.
        output: Outputs, as ``Scorer.metric`` takes them.
        target: The targets.
        step: Largest change of an output value.
    """
    value = abs(scorer.metric(metric, output, target))
    if scorer.has_classes:
        logs = scorer.log_probabilities(output)
        change = _of_classes(scorer, metric, logs, np.asarray(target, dtype=np.int64), step)
    else:
        change = _of_values(metric, *as_values(output, target), step)
    return change + SINGLE * max(1.0, value)


def near_ties(scorer: Scorer, output: ArrayLike, step: float, threshold: float | None = None) -> float:
    """Return the share of rows whose decision such a change can turn.

    Args:
        scorer: Of a binary or multiclass task.
        output: Outputs.
        step: Largest change of an output value.
        threshold: Probability of the positive class that decides; None: the most probable class.
    """
    logs = scorer.log_probabilities(output)
    if threshold is not None and scorer.kind == "binary":
        return float((np.abs(np.exp(logs[:, 1]) - threshold) <= 2 * step).mean())
    return _near_best(_scale(scorer, logs), step)


def _scale(scorer: Scorer, logs: Floats) -> Floats:
    """Return the scores that outputs change by no more than the outputs themselves."""
    return logs if scorer.output == "logits" else np.exp(logs)


def _of_classes(scorer: Scorer, metric: str, logs: Floats, target: Classes, step: float) -> float:
    if metric == "accuracy":
        return _near_best(_scale(scorer, logs), step)
    if metric == "log_loss":
        return _of_log_loss(scorer, np.exp(-log_losses(logs, target)), step)
    if metric == "brier_score":
        return _of_brier(scorer, logs, target, step)
    if metric == "calibration_error":
        place = predicted_probability(logs) * BINS
        return 2 * step + 2 * float((np.abs(place - np.rint(place)) <= 2 * BINS * step).mean())
    scores = _scale(scorer, logs)
    return _near_pairs(scores[:, 1] - scores[:, 0], target == 1, 4 * step)


def _of_log_loss(scorer: Scorer, probable: Floats, step: float) -> float:
    """Bound the change from the probability of every row's class: its first derivative and more."""
    if scorer.output == "logits":
        return float((2 * step * (1 - probable)).mean()) + 2 * step * step
    return float(np.minimum(step / np.maximum(probable - step, 1e-300), _MOST_NATS).mean())


def _of_brier(scorer: Scorer, logs: Floats, target: Classes, step: float) -> float:
    if logs.shape[1] > 2:
        return 4 * step
    positive = np.exp(logs[:, 1])
    moved = step + np.zeros_like(positive)
    if scorer.output == "logits":
        moved = 2 * step * positive * (1 - positive) + step * step
    return float((2 * np.abs(positive - (target == 1)) * moved + np.square(moved)).mean())


def _near_best(scores: Floats, step: float) -> float:
    """Return the share of rows whose two best classes are near to each other."""
    best = np.sort(scores, axis=1)
    return float((best[:, -1] - best[:, -2] <= 2 * step).mean())


def _near_pairs(score: Floats, positive: NDArray[np.bool_], reach: float) -> float:
    """Return the share of pairs of a positive and a negative row whose scores are near, but not tied."""
    ordered, values = np.sort(score[~positive]), score[positive]
    if not len(ordered) or not len(values):
        return 0.0
    near = np.searchsorted(ordered, values + reach, side="right") - np.searchsorted(ordered, values - reach)
    tied = np.searchsorted(ordered, values, side="right") - np.searchsorted(ordered, values)
    return float((near - tied).sum() / (len(ordered) * len(values)))


def _of_values(metric: str, output: Floats, target: Floats, step: float) -> float:
    if metric == "cosine":
        lengths = np.maximum(np.linalg.norm(output, axis=1), 1e-8)
        return float(np.minimum(2 * step * np.sqrt(output.shape[1]) / lengths, 2).mean())
    if metric != "r2":
        return step
    error = float(np.sqrt(np.square(output - target).mean()))
    spread = float(np.square(target - target.mean(axis=0)).mean())
    return (2 * error * step + step * step) / spread if spread > 0 else np.inf
