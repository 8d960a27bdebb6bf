"""How far predicted probabilities are from what happens: Brier score and calibration error.

References:
    Brier (1950), "Verification of forecasts expressed in terms of probability", Mon. Weather Rev. 78, 1-3.
    Guo, Pleiss, Sun and Weinberger (2017), "On calibration of modern neural networks", ICML: the expected
    calibration error.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BINS = 15
"""Bins of equal width of the calibration error, as in Guo et al. (2017)."""

Floats = NDArray[np.float64]
Classes = NDArray[np.int64]


def brier_scores(logs: Floats, target: Classes) -> Floats:
    """Squared error of the predicted probabilities of every row, shape (n,).

    Two classes: that of the positive class alone, 0 to 1. More classes: the sum over them, 0 to 2.

    Args:
        logs: Log-probabilities of the classes, shape (n, n_classes).
        target: Class numbers, shape (n,).
    """
    outcomes = target[:, None] == np.arange(logs.shape[1])
    errors: Floats = np.square(np.exp(logs) - outcomes)
    return errors[:, 1] if logs.shape[1] == 2 else errors.sum(axis=1)


def calibration_gaps(logs: Floats, target: Classes) -> Floats:
    """Predicted probability minus outcome of every row, in the column of its bin; shape (n, BINS).

    The calibration error is the sum over bins of the absolute mean. With two classes it compares the
    probability of the positive class with its frequency, else that of the predicted class with its accuracy.

    Args:
        logs: Log-probabilities of the classes, shape (n, n_classes).
        target: Class numbers, shape (n,).
    """
    predicted = predicted_probability(logs)
    outcome = target == 1 if logs.shape[1] == 2 else logs.argmax(axis=1) == target
    with np.errstate(invalid="ignore"):  # NaN, which the metric shows
        bins = np.clip((predicted * BINS).astype(np.int64), 0, BINS - 1)
    gaps = np.zeros((len(target), BINS))
    gaps[np.arange(len(target)), bins] = predicted - outcome
    return gaps


def predicted_probability(logs: Floats) -> Floats:
    """Probability that is calibrated: of the positive one of two classes, else of the predicted class."""
    probabilities: Floats = np.exp(logs[:, 1] if logs.shape[1] == 2 else logs.max(axis=1))
    return probabilities
