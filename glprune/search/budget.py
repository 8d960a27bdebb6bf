"""What a network would measure once its zero groups are cut, before anything is cut for good."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from glprune.data.splits import ColumnSelection, Inputs, first_rows
from glprune.model.counting import macs, parameters
from glprune.pruning.removal import cut_uncertified

if TYPE_CHECKING:
    from glprune.pruning.groups import GroupSet
    from glprune.search.job import Job

Alive = Sequence[Tensor]
Measure = Callable[[nn.Module, Inputs], int]


def size_of_support(job: Job, alive: Alive, measure: Measure, multiple: int = 1) -> int:
    """Measure the network whose marked groups alone are left.

    Args:
        job: The network and its groups.
        alive: For each group set, which groups are left, bool, shape (n_groups,).
        measure: Takes a network and one row of its inputs.
        multiple: Of hidden widths.
    """
    network, columns = cut_uncertified(job.network, job.groups, alive, job.probe, job.axes, multiple)
    return measure(network, ColumnSelection(columns, job.axes)(first_rows(job.data.test, 1)))


def count_parameters(network: nn.Module, inputs: Inputs) -> int:
    """Number of parameters; the inputs are not needed."""
    return parameters(network)


MEASURES: dict[str, Measure] = {"parameters": count_parameters, "macs": macs}


def full_support(groups: Sequence[GroupSet]) -> list[Tensor]:
    """Marks of groups that all stay."""
    return [torch.ones(len(g.labels), dtype=torch.bool) for g in groups]


def unit_costs(job: Job, measure: Measure) -> dict[str, float]:
    """What one group of each set costs, by cutting one alone; at least a thousandth of the dearest.

    Returns:
        Set name -> cost of a group for each weight leaving it, mean 1 over the sets.
    """
    whole = size_of_support(job, full_support(job.groups), measure)
    found = {}
    for number, groups in enumerate(job.groups):
        if groups.units.refused or len(groups.labels) < 2:
            continue
        alive = full_support(job.groups)
        alive[number][-1] = False
        units = int((groups.group == len(groups.labels) - 1).sum())
        found[groups.name] = (
            max(0, whole - size_of_support(job, alive, measure)) / units / _weights_of_a_unit(job, groups)
        )
    largest = max(found.values(), default=0.0)
    if largest == 0:
        return {}
    found = {name: max(cost, 1e-3 * largest) for name, cost in found.items()}
    mean = sum(found.values()) / len(found)
    return {name: cost / mean for name, cost in found.items()}


def _weights_of_a_unit(job: Job, groups: GroupSet) -> float:
    """Number of weights leaving a unit, in the mean."""
    state = job.network.state_dict()
    total = 0.0
    for slot in groups.units.readers:
        tensor = state[slot.tensor]
        total += tensor.numel() / tensor.shape[slot.dim] * int((slot.unit >= 0).sum())
    return max(1.0, total / groups.units.count)


def uniform_support(job: Job, share: float, kinds: Sequence[str]) -> list[Tensor]:
    """Marks that leave the same share of every set of some kinds, at least one group of each."""
    marks = full_support(job.groups)
    for alive, groups in zip(marks, job.groups, strict=True):
        if groups.kind in kinds and not groups.units.refused:
            alive[max(1, round(share * len(alive))) :] = False
    return marks
