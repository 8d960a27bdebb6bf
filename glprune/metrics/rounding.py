"""By how much a metric can change where a network's outputs are rounded in another way.

Another processor, or another version of ONNX Runtime, adds in another order. Every row has a step of its own,
relative to its own outputs, so that one row of large outputs says nothing of the others. Metrics that are
smooth change by as little as the outputs. Those that count rows or pairs change by the share of those near a
tie, the calibration error by that of rows near the edge of a bin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from glprune.metrics.calibration import BINS, brier_scores, calibration_gaps, predicted_probability
from glprune.metrics.scorer import as_values
from glprune.schema.metrics import RANGES

if TYPE_CHECKING:
    from glprune.metrics.calibration import Classes, Floats
    from glprune.metrics.scorer import Scorer

SINGLE = 1e-6
"""Relative precision of figures in reports: older ones have a few in single precision."""
_MOST_NATS = 50.0  # that the logarithm of a probability near 0 may move


def output_steps(output: ArrayLike, relative: float) -> Floats:
    """Return by how much the outputs of every row may differ, shape (n,).

    A row whose outputs cancel to nearly 0 is rounded like others, so the step is that of the median row at
    least; one row of large outputs does not move the median.

    Args:
        output: Outputs, shape (n, ...).
        relative: Change relative to the largest output of a row.
    """
    values = np.abs(np.asarray(output, dtype=np.float64))
    largest = values.reshape(len(values), -1).max(axis=1, initial=0.0)
    finite = np.isfinite(largest)
    steps: Floats = np.where(finite, largest, 0.0)
    return relative * np.maximum(steps, np.median(steps[finite]) if finite.any() else 0.0)


def largest_change(scorer: Scorer, metric: str, output: ArrayLike, target: ArrayLike, steps: Floats) -> float:
    """Return a bound on the change of a metric where the outputs of every row change by at most its step.

    Args:
        scorer: Computes the metrics.
        metric: Its name.
        output: Outputs, as ``Scorer.metric`` takes them.
        target: The targets.
        steps: Largest change of an output value of every row, shape (n,).
    """
    value = abs(scorer.metric(metric, output, target))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        if scorer.has_classes:
            change = _of_classes(scorer, metric, output, np.asarray(target, dtype=np.int64), steps)
        else:
            change = _of_values(metric, *as_values(output, target), steps)
    size = value if RANGES[metric] == (0, None) else max(1.0, value)
    return change + SINGLE * size


def near_ties(
    scorer: Scorer, output: ArrayLike, steps: Floats, threshold: float | None = None
) -> NDArray[np.bool_]:
    """Return the rows whose decision such a change can turn, shape (n,).

    Args:
        scorer: Of a binary or multiclass task.
        output: Outputs.
        steps: Largest change of an output value of every row, shape (n,).
        threshold: Probability of the positive class that decides; None: the most probable class.
    """
    logs = scorer.log_probabilities(output)
    if threshold is not None and scorer.kind == "binary":
        low, high = _probabilities(scorer, logs, steps)
        return (low[:, 1] <= threshold) & (threshold <= high[:, 1])
    return _near_best(_scale(scorer, logs), steps)


def _scale(scorer: Scorer, logs: Floats) -> Floats:
    """Return the scores that outputs change by no more than the outputs themselves."""
    return logs if scorer.output == "logits" else np.exp(logs)


def _probabilities(scorer: Scorer, logs: Floats, steps: Floats) -> tuple[Floats, Floats]:
    """Return the least and the largest probability of every class, shape (n, n_classes) each.

    The log-odds of a class change by at most two steps: its own logit by one, all others by one.
    """
    if scorer.output != "logits":
        found = np.exp(logs)
        return np.maximum(found - steps[:, None], 0.0), np.minimum(found + steps[:, None], 1.0)
    odds = _log_odds(logs)
    low, high = (np.exp(-np.logaddexp(0.0, -(odds + sign * 2 * steps[:, None]))) for sign in (-1, 1))
    return low, high


def _log_odds(logs: Floats) -> Floats:
    with np.errstate(divide="ignore"):  # a probability that rounds to 1 has infinite odds
        odds: Floats = logs - np.log1p(-np.exp(np.minimum(logs, 0.0)))
    return odds


def _of_classes(scorer: Scorer, metric: str, output: ArrayLike, target: Classes, steps: Floats) -> float:
    logs = scorer.log_probabilities(output)
    if metric == "accuracy":
        return float(_near_best(_scale(scorer, logs), steps).mean())
    if metric == "log_loss":
        own = np.take_along_axis(logs, target[:, None], axis=1)
        return _of_log_loss(scorer, own, steps[:, None])
    if metric == "brier_score":
        return _of_brier(logs, target, *_probabilities(scorer, logs, steps))
    if metric == "calibration_error":
        return _of_calibration(scorer, logs, target, steps)
    scores = _scale(scorer, logs)
    return _near_pairs(scores[:, 1] - scores[:, 0], target == 1, 2 * steps)


def _of_log_loss(scorer: Scorer, logs: Floats, steps: Floats) -> float:
    """Bound the change from the log-probability of every row's class, shape (n, 1)."""
    if scorer.output == "logits":
        odds = _log_odds(logs)
        ends = [-np.logaddexp(0.0, -(odds + sign * 2 * steps)) for sign in (-1, 1)]
    else:
        with np.errstate(divide="ignore"):
            ends = [np.log(np.maximum(np.exp(logs) + sign * steps, 0.0)) for sign in (-1, 1)]
    change = np.max([np.abs(end - logs) for end in ends], axis=0)
    return float(np.minimum(change, np.maximum(_MOST_NATS, 2 * steps)).mean())


def _of_brier(logs: Floats, target: Classes, low: Floats, high: Floats) -> float:
    """Bound the change from the least and the largest probability of every class."""
    outcomes = target[:, None] == np.arange(logs.shape[1])
    worst = np.maximum(np.abs(low - outcomes), np.abs(high - outcomes))
    best = np.where(outcomes, 1 - high, low)
    errors = np.square(np.stack([best, worst]))
    found = errors[:, :, 1] if logs.shape[1] == 2 else errors.sum(axis=2)
    return float(np.abs(found - brier_scores(logs, target)).max(axis=0).mean())


def _of_calibration(scorer: Scorer, logs: Floats, target: Classes, steps: Floats) -> float:
    """Bound the change of every row's gap; one that can change its bin leaves one and joins another."""
    low, high = _probabilities(scorer, logs, steps)
    ends = (low[:, 1], high[:, 1]) if logs.shape[1] == 2 else (low.max(axis=1), high.max(axis=1))
    found = predicted_probability(logs)
    moved = np.maximum(found - ends[0], ends[1] - found)
    bins = [np.minimum(np.floor(end * BINS), BINS - 1) for end in ends]
    gap = np.abs(calibration_gaps(logs, target)).sum(axis=1)
    change = np.where(bins[0] == bins[1], moved, 2 * gap + moved)
    if logs.shape[1] > 2:  # another class may be the most probable one, right or wrong
        change = np.where(_near_best(_scale(scorer, logs), steps), gap + 1, change)
    return float(change.mean())


def _near_best(scores: Floats, steps: Floats) -> NDArray[np.bool_]:
    """Return the rows whose two best classes are near to each other."""
    best = np.sort(scores, axis=1)
    near: NDArray[np.bool_] = best[:, -1] - best[:, -2] <= 2 * steps
    return near


def _near_pairs(score: Floats, positive: NDArray[np.bool_], reach: Floats) -> float:
    """Return the share of pairs of both classes that can change their order, but are not tied.

    Args:
        score: Scores, shape (n,).
        positive: Whether each row is of the positive class, shape (n,).
        reach: Largest change of each score, shape (n,).
    """
    low, high, ordered, values = score - reach, score + reach, np.sort(score[~positive]), score[positive]
    if not len(ordered) or not len(values):
        return 0.0
    within = np.searchsorted(np.sort(low[~positive]), high[positive], side="right")
    within -= np.searchsorted(np.sort(high[~positive]), low[positive])
    tied = np.searchsorted(ordered, values, side="right") - np.searchsorted(ordered, values)
    return float((within - tied).sum() / (len(ordered) * len(values)))


def _of_values(metric: str, output: Floats, target: Floats, steps: Floats) -> float:
    if metric == "cosine":
        lengths = np.maximum(np.linalg.norm(output, axis=1), 1e-8)
        return float(np.minimum(2 * steps * np.sqrt(output.shape[1]) / lengths, 2).mean())
    if metric == "mae":
        return float(steps.mean())
    if metric == "rmse":
        return float(np.sqrt(np.square(steps).mean()))
    spread = float(np.square(target - target.mean(axis=0)).mean())
    errors = np.abs(output - target).mean(axis=1)
    change = float((2 * errors * steps + np.square(steps)).mean())
    return change / spread if spread > 0 else np.inf
