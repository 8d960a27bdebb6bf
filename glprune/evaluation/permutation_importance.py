"""Permutation importance of the input features: what the selection metric loses when a feature says nothing.

References:
    Breiman (2001), "Random forests", Machine Learning 45, 5-32, section 10; Fisher, Rudin and
    Dominici (2019), "All models are wrong, but many are useful", J. Mach. Learn. Res. 20(177).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glprune.data.splits import Split, TensorSplit, identity
from glprune.data.streaming import StreamedSplit
from glprune.errors import DataError
from glprune.model.prediction import validate
from glprune.model.task import improvement

if TYPE_CHECKING:
    from glprune.pruning.groups import GroupSet
    from glprune.search.job import Job


def permutation_importance(job: Job, groups: GroupSet, repeats: int) -> Tensor:
    """Drop of the selection metric on the validation split when a feature's columns are permuted together.

    A feature keeps its values and loses its rows: its columns are taken from the rows in a random
    order. Every feature meets the same orders, so that features differ by what they are worth alone.

    Args:
        job: The job of the trained network.
        groups: The features of one input.
        repeats: Number of random orders.

    Returns:
        Mean drop over the orders, shape (n_features,), float64, in the units of the metric; below 0
        where the network does better without the feature.

    Raises:
        DataError: The rows of the split cannot be laid together.
    """
    split = support_of_importance(job.data.valid)
    generator = torch.Generator().manual_seed(job.recipe.seed)
    orders = [torch.randperm(split.rows, generator=generator) for _ in range(repeats)]
    reference = _metric(job, split)
    drops = [
        _mean_drop(job, split, groups, feature, orders, reference) for feature in range(len(groups.labels))
    ]
    return torch.tensor(drops, dtype=torch.float64)


def support_of_importance(split: Split) -> TensorSplit:
    """A split in memory, as one batch.

    Raises:
        DataError: Its batches differ in shape, or it is streamed.
    """
    if isinstance(split, TensorSplit):
        return split
    if isinstance(split, StreamedSplit):
        raise DataError(
            "the rows of the validation split would be held in memory, which data.stream is to spare"
        )
    batches, targets = zip(*split.batches(None, None), strict=True)
    try:
        return TensorSplit(tuple(torch.cat(x) for x in zip(*batches, strict=True)), torch.cat(targets))
    except RuntimeError as error:
        raise DataError(
            "rows of the validation split differ in shape from batch to batch, so that no feature can be "
            "permuted over all of them; let the loader pad to one length"
        ) from error


def _metric(job: Job, split: Split) -> float:
    return validate(job.network, job.task, job.metric, split, identity)


def _mean_drop(
    job: Job,
    split: TensorSplit,
    groups: GroupSet,
    feature: int,
    orders: Sequence[Tensor],
    reference: float,
) -> float:
    place, columns = groups.units.source, torch.nonzero(groups.group == feature).flatten()
    assert place is not None  # the groups are those of an input
    axis = job.axes[place]
    assert axis is not None  # which has an axis, since it has groups
    x = split.inputs[place]
    total = 0.0
    for order in orders:
        shuffled = x.index_copy(axis, columns, x.index_select(axis, columns)[order])
        inputs = (*split.inputs[:place], shuffled, *split.inputs[place + 1 :])
        total += improvement(job.metric, _metric(job, replace(split, inputs=inputs)), reference)
    return total / len(orders)
