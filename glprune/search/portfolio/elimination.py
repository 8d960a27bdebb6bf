"""Backward elimination: drop the least important features, refit briefly, and repeat.

The importance of a feature is the rise of the loss on validation rows when its columns are permuted over the
rows.

References:
    Guyon, Weston, Barnhill and Vapnik (2002), "Gene selection for cancer classification using support vector
    machines", Machine Learning 46, 389-422: recursive feature elimination.
    Fisher, Rudin and Dominici (2019), "All models are wrong, but many are useful", J. Mach. Learn. Res.
    20(177): permutation importance as reliance on a feature.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from glprune.data.splits import IndexableSplit, Inputs, first_rows
from glprune.model.counting import macs
from glprune.search.prepare import Support, restrict_features
from glprune.search.refit import brief_spec, refit_in_place

if TYPE_CHECKING:
    from glprune.data.splits import Split
    from glprune.pruning.groups import GroupSet
    from glprune.search.job import Job

_DROP = 0.25  # share of the features dropped in one round
_PERMUTATIONS = 5
_MAX_MACS = 2e10  # multiply-accumulates of the permutations of one round
_MIN_ROWS = 256


def eliminate(job: Job, sizes: Collection[int], original: nn.Module) -> dict[int, Support]:
    """Eliminate features until as few as the smallest size are left.

    Args:
        job: The network and its rows.
        sizes: Numbers of features of interest.
        original: The trained network.

    Returns:
        Size -> the features kept when at most as many were left. Features that must stay are never dropped.
    """
    found: dict[int, Support] = {}
    while True:
        names = [f.name for f in job.data.features]
        found |= {size: frozenset(names) for size in sizes if size not in found and len(names) <= size}
        left = [size for size in sizes if size not in found]
        number = min(max(1, int(_DROP * len(names))), len(names) - max(left)) if left else 0
        dropped = _least_important(job, number) if number else []
        if not dropped:  # all sizes have their features, or the others must stay
            return found | dict.fromkeys(left, frozenset(names))
        job = restrict_features(job, frozenset(names) - frozenset(dropped))
        job = replace(job, network=refit_in_place(job, brief_spec(job.recipe), original).network)


def permuted(
    inputs: Inputs, axes: Sequence[int | None], groups: GroupSet, feature: int, order: Tensor
) -> Inputs:
    """Return rows in which a feature's columns are taken from the rows in another order.

    Args:
        inputs: The rows.
        axes: The feature axis of each input.
        groups: The features of one input.
        feature: Number of the feature among them.
        order: The order, int64, shape (rows,).
    """
    index, columns = groups.units.source, torch.nonzero(groups.group == feature).flatten()
    assert index is not None  # the groups are those of an input
    axis = axes[index]
    assert axis is not None  # an input with groups has a feature axis
    x = inputs[index]
    shuffled = x.index_copy(axis, columns, x.index_select(axis, columns)[order])
    return (*inputs[:index], shuffled, *inputs[index + 1 :])


def loss_rises(job: Job) -> dict[str, float]:
    """Measure the rise of the loss on validation rows when a feature is permuted, mean of five orders.

    Returns:
        Feature that can be removed -> mean rise. The orders are the same for every feature.
    """
    inputs, target = _rows(job)
    generator = torch.Generator().manual_seed(job.recipe.seed)
    orders = [torch.randperm(len(target), generator=generator) for _ in range(_PERMUTATIONS)]

    def loss(rows: Inputs) -> float:
        return float(job.task.loss(job.task.view(job.network(*rows)), target))

    with torch.no_grad():
        reference = loss(inputs)
        return {
            label: sum(loss(permuted(inputs, job.axes, g, feature, o)) for o in orders) / len(orders)
            - reference
            for g in job.input_groups
            if not g.units.refused
            for feature, label in enumerate(g.labels)
        }


def _least_important(job: Job, number: int) -> list[str]:
    """Return up to ``number`` features that may go: no rule keeps them, and their input has others left."""
    rises = loss_rises(job)
    left = {g.name: len(g.labels) for g in job.input_groups}
    owners = {
        label: g.name
        for g in job.input_groups
        for label in g.labels
        if not g.units.refused and label not in job.rules.required
    }
    dropped: list[str] = []
    for label in sorted(owners, key=rises.__getitem__):
        if len(dropped) < number and left[owners[label]] > 1:
            left[owners[label]] -= 1
            dropped.append(label)
    return dropped


def _rows(job: Job) -> tuple[Inputs, Tensor]:
    """Return validation rows: as many as the bound on multiply-accumulates allows, drawn at random."""
    features = sum(len(g.labels) for g in job.input_groups)
    cost = macs(job.network, first_rows(job.data.valid, 1)) * features * _PERMUTATIONS
    limit = max(_MIN_ROWS, int(_MAX_MACS / max(1, cost)))
    return draw_rows(job.data.valid, limit, job.recipe.seed)


def draw_rows(split: Split, limit: int, seed: int) -> tuple[Inputs, Tensor]:
    """Return at most ``limit`` rows of a split, at random; of a loader or stream, its first batch."""
    generator = torch.Generator().manual_seed(seed)
    if split.rows <= limit and isinstance(split, IndexableSplit):
        return next(split.batches(None, None))
    if isinstance(split, IndexableSplit):
        chosen = torch.randperm(split.rows, generator=generator)[:limit].sort().values
        return next(split.take(chosen.numpy()).batches(None, None))
    return next(split.batches(limit, generator))
