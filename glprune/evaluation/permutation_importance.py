"""Permutation importance: the loss of the selection metric when a feature is shuffled over the rows.

References:
    Breiman (2001), "Random forests", Machine Learning 45, 5-32, section 10; Fisher, Rudin and
    Dominici (2019), "All models are wrong, but many are useful", J. Mach. Learn. Res. 20(177).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glprune.data.splits import Split, TensorSplit, identity
from glprune.data.streaming import StreamedSplit
from glprune.errors import DataError
from glprune.model.prediction import validate
from glprune.model.task import improvement
from glprune.search.portfolio.elimination import permuted

if TYPE_CHECKING:
    from glprune.pruning.groups import GroupSet
    from glprune.search.job import Job


def permutation_importance(job: Job, groups: GroupSet, repeats: int) -> Tensor:
    """Measure the drop of the selection metric on the validation split when a feature's columns are permuted.

    All columns of a feature are taken from the rows in the same random order. The orders are the same for
    every feature, so that differences between features do not come from the draw.

    Args:
        job: The job of the trained network.
        groups: The features of one input.
        repeats: Number of random orders.

    Returns:
        Mean drop over the orders, shape (n_features,), float64, in the units of the metric; below 0
        where the network is better without the feature.

    Raises:
        DataError: The rows of the split cannot be concatenated.
    """
    split = split_in_memory(job.data.valid)
    generator = torch.Generator().manual_seed(job.recipe.seed)
    orders = [torch.randperm(split.rows, generator=generator) for _ in range(repeats)]
    reference = _metric(job, split)
    drops = []
    for feature in range(len(groups.labels)):
        total = 0.0
        for order in orders:
            inputs = permuted(split.inputs, job.axes, groups, feature, order)
            total += improvement(job.metric, _metric(job, replace(split, inputs=inputs)), reference)
        drops.append(total / len(orders))
    return torch.tensor(drops, dtype=torch.float64)


def split_in_memory(split: Split) -> TensorSplit:
    """Return a split in memory, as one batch.

    Raises:
        DataError: Its batches differ in shape, or it is streamed.
    """
    if isinstance(split, TensorSplit):
        return split
    if isinstance(split, StreamedSplit):
        raise DataError(
            "permutation importance holds the rows of the validation split in memory, and data.stream "
            "avoids that"
        )
    batches, targets = zip(*split.batches(None, None), strict=True)
    try:
        return TensorSplit(tuple(torch.cat(x) for x in zip(*batches, strict=True)), torch.cat(targets))
    except RuntimeError as error:
        raise DataError(
            "rows of the validation split differ in shape between batches, so no feature can be permuted "
            "over all of them; let the loader pad to one length"
        ) from error


def _metric(job: Job, split: Split) -> float:
    return validate(job.network, job.task, job.metric, split, identity)
