"""The task of a network: its loss, its predictions and its metrics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from glprune._wording import counted
from glprune.errors import DataError, ModelError
from glprune.metrics.scorer import OutputForm, Scorer, TaskName
from glprune.model.outputs import Outputs, as_array, leaves
from glprune.schema.recipe import HIGHER_IS_BETTER, METRICS


@dataclass(frozen=True)
class Task:
    """Loss and metrics of one kind of prediction.

    ``view`` takes the part of a network's outputs that loss and metrics are computed from. Outputs for
    classes are converted to log-probabilities of shape (n, n_classes) first (a binary network may have
    one output, for the positive class, or two); values have shape (n,). Distillation takes every output:
    rows are flattened, shape (n, n_values).

    Attributes:
        kind: ``binary``, ``multiclass``, ``regression`` or ``distillation``.
        output: What the network returns for classes, ``logits`` or ``probabilities``.
        classes: Number of classes; 0 where there are none.
        width: Columns of the network's output; a binary network has one or two.
        prediction: Number of the output the task predicts.
        scales: For distillation, the divisor of each output; 0 leaves the output out. Empty until they
            were measured: outputs are then not divided.
    """

    kind: TaskName
    output: OutputForm
    classes: int
    width: int = 1
    prediction: int = 0
    scales: tuple[float, ...] = ()

    def fitted(self, output: Tensor) -> Task:
        """Take the width from an output; refuse a shape that does not suit the task.

        Raises:
            ModelError: The network's output is not of shape (n,), (n, 1) or (n, n_classes).
        """
        if self.kind == "distillation":
            return self
        wanted = [self.classes] if self.kind == "multiclass" else [1, *([2] if self.kind == "binary" else [])]
        width = 1 if output.ndim == 1 else output.shape[-1]
        if output.ndim > 2 or width not in wanted:
            raise ModelError(
                f"The network returns shape {tuple(output.shape)}; a {self.kind} task"
                f"{f' of {self.classes} classes' if self.kind == 'multiclass' else ''} needs "
                f"(rows, {' or '.join(map(str, wanted))})."
            )
        if self.kind != "regression" and self.output == "probabilities" and not _are_probabilities(output):
            raise ModelError("The network's outputs leave [0, 1]; set model.output: logits in the recipe.")
        return replace(self, width=width)

    def view(self, outputs: Outputs) -> Tensor:
        """Return the part of the outputs that loss and metrics are computed from, rows first."""
        found = leaves(outputs)
        if self.kind != "distillation":
            return found[self.prediction]
        scales = self.scales or [1.0] * len(found)
        scaled = [y.reshape(len(y), -1) / s for y, s in zip(found, scales, strict=True) if s > 0]
        return torch.cat(scaled, dim=1)

    def log_probabilities(self, output: Tensor) -> Tensor:
        """Return the log-probabilities of the classes, shape (n, n_classes)."""
        if self.kind == "binary" and (output.ndim == 1 or output.shape[-1] == 1):
            flat = output.reshape(-1)
            if self.output == "logits":
                pair = [functional.logsigmoid(-flat), functional.logsigmoid(flat)]
            else:
                pair = [_log(1 - flat), _log(flat)]
            return torch.stack(pair, dim=1)
        return functional.log_softmax(output, dim=-1) if self.output == "logits" else _log(output)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross-entropy or mean squared error; a scalar."""
        if self.kind == "distillation":
            return functional.mse_loss(output, target)
        if self.kind == "regression":
            return functional.mse_loss(output.reshape(-1), target)
        return functional.nll_loss(self.log_probabilities(output), target)

    def distillation_loss(self, output: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Return the mean divergence from the teacher's softened prediction; a scalar.

        References:
            Hinton, Vinyals and Dean (2015), "Distilling the knowledge in a neural network",
            section 2; the factor ``temperature**2`` keeps the size of gradients.
        """
        if self.kind == "regression":
            return functional.mse_loss(output.reshape(-1), teacher.reshape(-1))
        student = functional.log_softmax(self.log_probabilities(output) / temperature, dim=-1)
        softened = functional.log_softmax(self.log_probabilities(teacher) / temperature, dim=-1)
        divergence = functional.kl_div(student, softened, reduction="batchmean", log_target=True)
        return divergence * temperature**2

    @property
    def scorer(self) -> Scorer:
        """Computes the metrics from arrays."""
        return Scorer(self.kind, self.output)

    def metric(self, name: str, output: Tensor, target: Tensor) -> float:
        """Compute one metric over all rows.

        Args:
            name: A name of ``METRICS[kind]``.
            output: A view of the outputs, shape (n,), (n, 1), (n, n_classes) or (n, n_values).
            target: Class numbers int64 or values float32, shape (n,); (n, n_values) for distillation.
        """
        return self.scorer.metric(name, as_array(output), as_array(target))

    def metrics(self, output: Tensor, target: Tensor) -> dict[str, float]:
        """Compute every metric of the task over all rows."""
        return {name: self.metric(name, output, target) for name in METRICS[self.kind]}

    @property
    def default_metric(self) -> str:
        """The metric used where the recipe names none."""
        return METRICS[self.kind][0]


def improvement(metric: str, before: float, after: float) -> float:
    """Return by how much ``after`` is better than ``before``; negative where it is worse."""
    return after - before if HIGHER_IS_BETTER[metric] else before - after


def concat_batches(
    batches: Iterable[tuple[Sequence[Tensor], Tensor]], rows: int
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Concatenate the outputs and targets of many batches, in order.

    Each batch is copied into preallocated tensors: small tensors that are kept between large ones that are
    freed would fragment the heap.

    Args:
        batches: Outputs and target of each batch.
        rows: Number of rows of all batches.

    Raises:
        ModelError: The shape of an output changes from batch to batch.
        DataError: The batches do not hold ``rows`` rows.
    """
    joined: list[Tensor] = []
    start = 0
    for outputs, target in batches:
        parts = (*outputs, target)
        joined = joined or [x.new_empty((rows, *x.shape[1:])) for x in parts]
        if any(x.shape[1:] != y.shape[1:] for x, y in zip(parts, joined, strict=True)):
            raise ModelError(
                "The network's outputs change their shape from batch to batch; let the loader pad to one "
                "length."
            )
        end = start + len(target)
        if end <= rows:
            for x, y in zip(parts, joined, strict=True):
                y[start:end] = x
        start = end
        if end > rows:
            break
    if start != rows:
        raise DataError(
            f"The data hold {counted(rows, 'row')} at first and {start} later; let the loader yield the same."
        )
    *all_outputs, targets = joined
    return tuple(all_outputs), targets


def _log(probability: Tensor) -> Tensor:
    return probability.clamp(min=torch.finfo(probability.dtype).tiny).log()


def _are_probabilities(output: Tensor) -> bool:
    return bool(((output >= 0) & (output <= 1)).all())
