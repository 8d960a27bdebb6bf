"""A metric on validation rows with its standard error, from the influence of every row.

The difference of two networks on the same rows has the standard error of the paired differences, which is
much smaller than that of either metric.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glprune.errors import NonFiniteError
from glprune.metrics import influence
from glprune.metrics.influence import standard_error
from glprune.model.outputs import as_array
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


def score_output(task: Task, metric: str, output: Tensor, target: Tensor) -> ValidationScore:
    """Measure a metric of outputs, as ``glprune.model.prediction.score_network`` does.

    Args:
        task: Computes the metric.
        metric: Name of the metric.
        output: A view of the outputs, shape (n,), (n, 1), (n, n_classes) or (n, n_values).
        target: Class numbers or values, shape (n,); (n, n_values) for distillation.
    """
    value = check_finite(metric, task.metric(metric, output, target))
    influences = row_influences(task, metric, output, target)
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
        task: The task.
        metric: Name of the metric.
        output: A view of the outputs.
        target: The targets.

    Returns:
        float64, shape (n,).
    """
    return torch.from_numpy(influence.row_influences(task.scorer, metric, as_array(output), as_array(target)))
