"""A metric on validation rows with its standard error, from the influence of every row.

The metric is linearised: the mean of the row influences is the metric, and their standard deviation over the
root of the number of rows is its standard error. The difference of two networks on the same rows has the
standard error of the paired differences, which is much smaller than that of either metric.

References:
    Hampel (1974), "The influence curve and its role in robust estimation", J. Am. Stat. Assoc. 69, 383-393.
    DeLong, DeLong and Clarke-Pearson (1988), "Comparing the areas under two or more correlated receiver
    operating characteristic curves", Biometrics 44, 837-845.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from glprune.errors import NonFiniteError
from glprune.model.calibration import brier_scores, calibration_gaps
from glprune.schema.recipe import HIGHER_IS_BETTER

if TYPE_CHECKING:
    from glprune.model.task import Task


@dataclass(frozen=True)
class Gain:
    """By how much one network is better than another on the same rows; negative where it is worse.

    Attributes:
        mean: The gain, in units of the metric.
        standard_error: Its standard error.
    """

    mean: float
    standard_error: float

    def exceeds(self, standard_errors: float) -> bool:
        """Whether the gain is larger than a number of its standard errors."""
        return self.mean > standard_errors * self.standard_error


@dataclass(frozen=True)
class ValidationScore:
    """A metric on the validation rows.

    Attributes:
        metric: Its name.
        value: The metric.
        influences: Influence of every row, float64, shape (n,); their mean is the metric.
        loss: Mean loss on the same rows, which orders networks of equal metric.
    """

    metric: str
    value: float
    influences: Tensor
    loss: float

    @property
    def standard_error(self) -> float:
        """Standard error of the metric."""
        return standard_error(self.influences)

    @property
    def rank(self) -> tuple[float, float]:
        """Orders scores: larger is better."""
        return (self.value if HIGHER_IS_BETTER[self.metric] else -self.value), -self.loss

    def gain_over(self, other: ValidationScore) -> Gain:
        """Compare with another network on the same rows."""
        sign = 1.0 if HIGHER_IS_BETTER[self.metric] else -1.0
        differences = self.influences - other.influences
        return Gain(sign * (self.value - other.value), standard_error(differences))


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of some values, shape (n,); 0 for a single one."""
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def score_output(task: Task, metric: str, output: Tensor, target: Tensor) -> ValidationScore:
    """Measure a metric of outputs, as ``glprune.model.prediction.score_network`` does.

    Args:
        task: Computes the metric.
        metric: Name of the metric.
        output: A view of the outputs, shape (n,), (n, 1), (n, n_classes) or (n, n_values).
        target: Class numbers or values, shape (n,); (n, n_values) for distillation.
    """
    value = check_finite(metric, task.metric(metric, output, target))
    influences = row_influences(task, metric, output.double(), target)
    return ValidationScore(metric, value, influences, float(task.loss(output, target)))


def check_finite(metric: str, value: float) -> float:
    """Return a metric of the validation split.

    Raises:
        NonFiniteError: It is not a finite number.
    """
    if not math.isfinite(value):
        raise NonFiniteError(
            f"{metric} on the validation split is {value}; lower train.lr and refit.lr, or check the "
            "scale of columns and target."
        )
    return value


def row_influences(task: Task, metric: str, output: Tensor, target: Tensor) -> Tensor:
    """Return the influence of every row on a metric, centred so that their mean is the metric.

    Args:
        task: Converts outputs to log-probabilities.
        metric: Name of the metric.
        output: A view of the outputs, float64.
        target: The targets.

    Returns:
        float64, shape (n,).
    """
    if task.kind in ("binary", "multiclass"):
        return _class_influences(metric, task.log_probabilities(output), target)
    values = output if task.kind == "distillation" else output.reshape(-1, 1)
    wanted = target.double().reshape(len(target), -1)
    if metric == "cosine":
        return functional.cosine_similarity(values, wanted, dim=1)
    if metric == "mae":
        return (values - wanted).abs().mean(dim=1)
    squares = (values - wanted).square().mean(dim=1)
    if metric == "rmse":
        root = squares.mean().sqrt()
        return root + (squares - squares.mean()) / (2 * root) if root > 0 else squares
    total = (wanted - wanted.mean(dim=0)).square().mean(dim=1)
    share = squares.mean() / total.mean()
    return 1 - share - (squares - share * total) / total.mean()


def _class_influences(metric: str, logs: Tensor, target: Tensor) -> Tensor:
    if metric == "accuracy":
        return (logs.argmax(dim=1) == target).double()
    if metric == "log_loss":
        return functional.nll_loss(logs, target, reduction="none")
    if metric == "brier_score":
        return brier_scores(logs, target)
    if metric == "calibration_error":
        gaps = calibration_gaps(logs, target)
        return gaps @ gaps.sum(dim=0).sign()
    return _auroc_influences(logs[:, 1] - logs[:, 0], target == 1)


def _auroc_influences(margin: Tensor, positive: Tensor) -> Tensor:
    of_positive, of_negative = auroc_components(margin, positive)
    shares = torch.empty_like(margin)
    shares[positive], shares[~positive] = of_positive, of_negative
    area, rows = of_positive.mean(), len(margin)
    counts = torch.where(positive, positive.sum(), (~positive).sum()).double()
    # each class has a mean of its own: its variance is a sum of squares over its number of rows less one
    unbiased = ((rows - 1) * counts / (rows * (counts - 1).clamp(min=1))).sqrt()
    return area + (shares - area) * unbiased * (rows / counts)


def auroc_components(margin: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """Structural components of DeLong et al. (1988): of every row, its share of rightly ordered pairs.

    Args:
        margin: Scores, float64, shape (n,).
        positive: Whether each row is of the positive class, bool, shape (n,).

    Returns:
        The shares of the positive rows and of the negative rows; the mean of either is the AUROC.
    """
    of_positive = _share_below(margin[positive], margin[~positive])
    return of_positive, 1 - _share_below(margin[~positive], margin[positive])


def _share_below(values: Tensor, others: Tensor) -> Tensor:
    """For each value the share of others below it; equal ones count half."""
    ordered = others.sort().values
    below = torch.searchsorted(ordered, values.contiguous())
    up_to = torch.searchsorted(ordered, values.contiguous(), right=True)
    return (below + up_to).double() / (2 * len(others))
