"""Compute outputs and metrics of a network over a whole split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from glprune.data.splits import ColumnSelection, Inputs, Split
from glprune.data.streaming import StreamedSplit
from glprune.model.outputs import leaves
from glprune.model.task import concat_batches
from glprune.model.validation_score import ValidationScore, check_finite, score_output

if TYPE_CHECKING:
    from glprune.model.task import Task

_CHUNK = 1024


def predict(
    model: Callable[[Inputs], Sequence[Tensor]], split: Split, select: Callable[[Inputs], Inputs]
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return all outputs of a model over a split, in order, with the targets.

    Args:
        model: Takes a tuple of inputs.
        split: The rows.
        select: Takes the model's columns out of a full batch.
    """
    if isinstance(split, StreamedSplit) and isinstance(select, ColumnSelection):
        split, select = split.view_columns(select), lambda inputs: inputs
    with torch.no_grad():
        return concat_batches(((model(select(x)), y) for x, y in split.batches(_CHUNK, None)), split.rows)


def validate(
    network: nn.Module, task: Task, metric: str, split: Split, narrow: Callable[[Inputs], Inputs]
) -> float:
    """Measure a metric of a network on the validation split; puts the network in evaluation mode.

    Args:
        network: The network.
        task: Computes the metric.
        metric: Name of the metric.
        split: The validation rows.
        narrow: Takes the network's columns out of a full batch.

    Raises:
        NonFiniteError: The metric is not a finite number.
    """
    network.eval()
    (output,), target = predict(lambda x: (task.view(network(*x)),), split, narrow)
    return check_finite(metric, task.metric(metric, output, target))


def score_network(
    network: nn.Module, task: Task, metric: str, split: Split, select: Callable[[Inputs], Inputs]
) -> ValidationScore:
    """Measure a metric and its row influences; puts the network in evaluation mode.

    Args:
        network: The network.
        task: Computes the metric.
        metric: Name of the metric.
        split: The rows.
        select: Takes the network's columns out of a full batch.

    Raises:
        NonFiniteError: The metric is not a finite number.
    """
    network.eval()
    (output,), target = predict(lambda x: (task.view(network(*x)),), split, select)
    return score_output(task, metric, output, target)


def as_function(network: nn.Module) -> Callable[[Inputs], tuple[Tensor, ...]]:
    """Wrap a network as a function from the tuple of its inputs to the tuple of its outputs."""
    return lambda inputs: leaves(network(*inputs))
