"""How far predicted probabilities are from what happens: Brier score and calibration error.

References:
    Brier (1950), "Verification of forecasts expressed in terms of probability", Mon. Weather Rev. 78, 1-3.
    Guo, Pleiss, Sun and Weinberger (2017), "On calibration of modern neural networks", ICML: the expected
    calibration error.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

BINS = 15
"""Bins of equal width of the calibration error, as in Guo et al. (2017)."""


def brier_scores(logs: Tensor, target: Tensor) -> Tensor:
    """Squared error of the predicted probabilities of every row, float64, shape (n,).

    Two classes: that of the positive class alone, 0 to 1. More classes: the sum over them, 0 to 2.

    Args:
        logs: Log-probabilities of the classes, shape (n, n_classes).
        target: Class numbers, int64, shape (n,).
    """
    errors = (logs.double().exp() - functional.one_hot(target, logs.shape[1])).square()
    return errors[:, 1] if logs.shape[1] == 2 else errors.sum(dim=1)


def calibration_gaps(logs: Tensor, target: Tensor) -> Tensor:
    """Predicted probability minus outcome of every row, in the column of its bin; float64, shape (n, BINS).

    The calibration error is the sum over bins of the absolute mean. With two classes it compares the
    probability of the positive class with its frequency, else that of the predicted class with its accuracy.

    Args:
        logs: Log-probabilities of the classes, shape (n, n_classes).
        target: Class numbers, int64, shape (n,).
    """
    probabilities = logs.double().exp()
    if logs.shape[1] == 2:
        predicted, outcome = probabilities[:, 1], target
    else:
        predicted, classes = probabilities.max(dim=1)
        outcome = (classes == target).long()
    bins = (predicted * BINS).long().clamp(0, BINS - 1)
    gaps = torch.zeros(len(target), BINS, dtype=torch.float64)
    return gaps.scatter_(1, bins[:, None], (predicted - outcome)[:, None])
