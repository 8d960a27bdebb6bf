"""The influence of every row on a metric, and standard errors from it.

The mean of the row influences is the metric, and their standard deviation over the root of the number of rows
is its standard error.

References:
    Hampel (1974), "The influence curve and its role in robust estimation", J. Am. Stat. Assoc. 69, 383-393.
    DeLong, DeLong and Clarke-Pearson (1988), "Comparing the areas under two or more correlated receiver
    operating characteristic curves", Biometrics 44, 837-845.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from glprune.metrics.calibration import Classes, Floats, brier_scores, calibration_gaps
from glprune.metrics.scorer import as_values, cosine_similarities, log_losses

if TYPE_CHECKING:
    from glprune.metrics.scorer import Scorer


def standard_error(values: ArrayLike) -> float:
    """Standard error of the mean of some values, shape (n,); 0 for a single one."""
    found = np.asarray(values, dtype=np.float64)
    return float(found.std(ddof=1)) / math.sqrt(len(found)) if len(found) > 1 else 0.0


def row_influences(scorer: Scorer, metric: str, output: ArrayLike, target: ArrayLike) -> Floats:
    """Return the influence of every row on a metric, centred so that their mean is the metric.

    Args:
        scorer: Converts outputs to log-probabilities.
        metric: Name of the metric.
        output: Outputs, as ``Scorer.metric`` takes them.
        target: The targets.

    Returns:
        Shape (n,).
    """
    if scorer.has_classes:
        logs = scorer.log_probabilities(output)
        return _class_influences(metric, logs, np.asarray(target, dtype=np.int64))
    values, wanted = as_values(output, target)
    if metric == "cosine":
        return cosine_similarities(values, wanted)
    if metric == "mae":
        return _mean(np.abs(values - wanted))
    squares = _mean(np.square(values - wanted))
    if metric == "rmse":
        root = float(np.sqrt(squares.mean()))
        if root == 0:
            return squares
        linear: Floats = root + (squares - squares.mean()) / (2 * root)
        return linear
    total = _mean(np.square(wanted - wanted.mean(axis=0)))
    share = squares.mean() / total.mean()
    influences: Floats = 1 - share - (squares - share * total) / total.mean()
    return influences


def _mean(values: Floats) -> Floats:
    means: Floats = values.mean(axis=1)
    return means


def _class_influences(metric: str, logs: Floats, target: Classes) -> Floats:
    if metric == "accuracy":
        right: Floats = (logs.argmax(axis=1) == target).astype(np.float64)
        return right
    if metric == "log_loss":
        return log_losses(logs, target)
    if metric == "brier_score":
        return brier_scores(logs, target)
    if metric == "calibration_error":
        gaps = calibration_gaps(logs, target)
        influences: Floats = np.einsum("ij,j->i", gaps, np.sign(gaps.sum(axis=0)))
        return influences
    return _auroc_influences(logs[:, 1] - logs[:, 0], target == 1)


def _auroc_influences(margin: Floats, positive: NDArray[np.bool_]) -> Floats:
    of_positive, of_negative = auroc_components(margin, positive)
    shares = np.empty_like(margin)
    shares[positive], shares[~positive] = of_positive, of_negative
    area, rows = of_positive.mean(), len(margin)
    counts = np.where(positive, positive.sum(), (~positive).sum()).astype(np.float64)
    # each class has a mean of its own: its variance is a sum of squares over its number of rows less one
    unbiased = np.sqrt((rows - 1) * counts / (rows * np.maximum(counts - 1, 1)))
    influences: Floats = area + (shares - area) * unbiased * (rows / counts)
    return influences


def auroc_components(margin: Floats, positive: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Structural components of DeLong et al. (1988): of every row, its share of rightly ordered pairs.

    Args:
        margin: Scores, shape (n,).
        positive: Whether each row is of the positive class, shape (n,).

    Returns:
        The shares of the positive rows and of the negative rows; the mean of either is the AUROC.
    """
    of_positive = _share_below(margin[positive], margin[~positive])
    return of_positive, 1 - _share_below(margin[~positive], margin[positive])


def _share_below(values: Floats, others: Floats) -> Floats:
    """For each value the share of others below it; equal ones count half."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, values) + np.searchsorted(ordered, values, side="right")
    with np.errstate(divide="ignore", invalid="ignore"):  # NaN where there are no others
        shares: Floats = below / np.float64(2 * len(others))
    return shares
