"""The metrics of a task, computed from the outputs of a network and the targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from glprune.metrics.calibration import Classes, Floats, brier_scores, calibration_gaps
from glprune.schema.metrics import METRICS

TaskName = Literal["binary", "multiclass", "regression", "distillation"]
OutputForm = Literal["logits", "probabilities"]
_TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Scorer:
    """Computes the metrics of one kind of prediction.

    Attributes:
        kind: The task.
        output: What the network returns for classes.
    """

    kind: TaskName
    output: OutputForm = "logits"

    @property
    def has_classes(self) -> bool:
        """Whether the task predicts classes."""
        return self.kind in ("binary", "multiclass")

    def log_probabilities(self, output: ArrayLike) -> Floats:
        """Return the log-probabilities of the classes, shape (n, n_classes).

        Args:
            output: Logits or probabilities, shape (n, n_classes); of a binary network also (n,) or (n, 1),
                for the positive class.
        """
        values = np.asarray(output, dtype=np.float64)
        if self.kind == "binary" and (values.ndim == 1 or values.shape[-1] == 1):
            flat = values.reshape(-1)
            if self.output == "logits":
                return -np.logaddexp(0.0, np.stack([flat, -flat], axis=1))
            return _log(np.stack([1 - flat, flat], axis=1))
        if self.output == "probabilities":
            return _log(values)
        shifted = values - values.max(axis=-1, keepdims=True)
        logs: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        return logs

    def has_nan(self, output: ArrayLike) -> bool:
        """Whether an output is not a number; of classes: whether it has no probability."""
        with np.errstate(invalid="ignore"):
            values = self.log_probabilities(output) if self.has_classes else np.asarray(output, np.float64)
        return bool(np.isnan(values).any())

    def classes(self, output: ArrayLike) -> Classes:
        """Return the most probable class of every row, shape (n,)."""
        found: Classes = self.log_probabilities(output).argmax(axis=1)
        return found

    def metric(self, name: str, output: ArrayLike, target: ArrayLike) -> float:
        """Compute one metric over all rows.

        Args:
            name: A name of ``METRICS[kind]``.
            output: Outputs, shape (n,), (n, 1), (n, n_classes) or (n, n_values).
            target: Class numbers or values, shape (n,); (n, n_values) for distillation.
        """
        if not self.has_classes:
            return float(_OF_VALUES[self.kind][name](*as_values(output, target)))
        logs, labels = self.log_probabilities(output), np.asarray(target, dtype=np.int64)
        return float(_OF_CLASSES[name](logs, labels))

    def metrics(self, output: ArrayLike, target: ArrayLike) -> dict[str, float]:
        """Compute every metric of the task over all rows."""
        return {name: self.metric(name, output, target) for name in METRICS[self.kind]}


def as_values(output: ArrayLike, target: ArrayLike) -> tuple[Floats, Floats]:
    """Return outputs and targets of a task without classes as float64, shape (n, n_values)."""
    wanted = np.asarray(target, dtype=np.float64)
    wanted = wanted.reshape(len(wanted), -1)
    return np.asarray(output, dtype=np.float64).reshape(len(wanted), -1), wanted


def auroc(score: ArrayLike, positive: ArrayLike) -> float:
    """Area under the ROC curve; 0 where one of the classes has no rows.

    The pairs of rows are counted, so that equal areas are equal numbers. Tied scores count half.

    Args:
        score: Scores, shape (n,).
        positive: Whether each row is of the positive class, shape (n,).
    """
    is_positive = np.asarray(positive, dtype=bool)
    values, ranks = np.unique(np.asarray(score), return_inverse=True)
    ranks = ranks.reshape(-1)  # NumPy 2.0.0 gave it another shape
    of_positive, of_negative = (
        np.bincount(ranks[chosen], minlength=len(values)) for chosen in (is_positive, ~is_positive)
    )
    pairs = int(of_positive.sum()) * int(of_negative.sum())
    below = of_negative.cumsum() - of_negative
    return int((of_positive * (2 * below + of_negative)).sum()) / (2 * pairs) if pairs else 0.0


def r2_score(output: ArrayLike, target: ArrayLike) -> float:
    """Return the fraction of the variance of ``target`` that ``output`` explains; both (n,) or (n, k).

    Columns are pooled, so that a constant one causes no division by zero. Not finite where all are constant.
    """
    found, wanted = as_values(output, target)
    total = np.square(wanted - wanted.mean(axis=0)).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(1 - np.square(wanted - found).sum() / total)


def cosine_similarities(output: Floats, target: Floats) -> Floats:
    """Return the cosine between output and target of every row, shape (n,); lengths are at least 1e-8."""
    lengths = [np.maximum(np.linalg.norm(x, axis=1), 1e-8) for x in (output, target)]
    cosines: Floats = (output * target).sum(axis=1) / (lengths[0] * lengths[1])
    return cosines


def log_losses(logs: Floats, target: Classes) -> Floats:
    """Return the negative log-probability of every row's class, shape (n,)."""
    losses: Floats = -np.take_along_axis(logs, target[:, None], axis=1)[:, 0]
    return losses


def _log(probability: Floats) -> Floats:
    logs: Floats = np.log(np.maximum(probability, _TINY))
    return logs


def _rmse(output: Floats, target: Floats) -> Any:
    return np.sqrt(np.square(output - target).mean())


def _mae(output: Floats, target: Floats) -> Any:
    return np.abs(output - target).mean()


def _cosine(output: Floats, target: Floats) -> Any:
    return cosine_similarities(output, target).mean()


_OF_VALUES: dict[str, dict[str, Callable[[Floats, Floats], Any]]] = {
    "regression": {"r2": r2_score, "rmse": _rmse, "mae": _mae},
    "distillation": {"r2": r2_score, "rmse": _rmse, "cosine": _cosine},
}
_OF_CLASSES: dict[str, Callable[[Floats, NDArray[np.int64]], Any]] = {
    "accuracy": lambda logs, target: (logs.argmax(axis=1) == target).mean(),
    "log_loss": lambda logs, target: log_losses(logs, target).mean(),
    "brier_score": lambda logs, target: brier_scores(logs, target).mean(),
    "calibration_error": lambda logs, target: np.abs(calibration_gaps(logs, target).mean(axis=0)).sum(),
    # AUROC depends on ranks alone; logits stay distinct where probabilities would round to 1
    "auroc": lambda logs, target: auroc(logs[:, 1] - logs[:, 0], target == 1),
}
