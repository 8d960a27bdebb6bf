"""Sizes of networks: what a target counts, before and after the zero groups are removed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor, nn

from glprune.data.splits import ColumnSelection, Inputs, first_rows
from glprune.model.counting import macs, parameters
from glprune.pruning.groups import support
from glprune.pruning.removal import RemovalResult, cut_uncertified, kept_units
from glprune.schema.report import Latency

if TYPE_CHECKING:
    from glprune.pruning.groups import GroupSet
    from glprune.pruning.units import GroupKind
    from glprune.search.job import Job
    from glprune.search.path import RegularisationPath
    from glprune.search.path_point import Point, Size

_SHARE_BISECTIONS, _MAX_SWAPS = 8, 4
Alive = Sequence[Tensor]
Measure = Callable[[nn.Module, Inputs], int]
SizeMetric = Literal["features", "hidden", "parameters", "macs"]
SIZE_NAMES: Mapping[SizeMetric, str] = {
    "features": "input feature",
    "hidden": "hidden unit",
    "parameters": "parameter",
    "macs": "multiply-accumulate",
}
"""What a target counts, in the singular."""


class LatencyMeter(Protocol):
    """Measures the latency of slim networks beside that of the original network."""

    def __call__(self, network: nn.Module, selection: ColumnSelection) -> tuple[float, float]:
        """Return the latency of a network in ms, and as a share of the original's, run in turn."""
        ...

    def against(self, first: RemovalResult, second: RemovalResult) -> Latency:
        """Return the latency of two slim networks, run in turn, and the speed-up of the second one."""
        ...


class MakeLatencyMeter(Protocol):
    """Makes a latency meter; a function or class of a module, so that it pickles."""

    def __call__(self, job: Job, batch: int, folder: Path) -> LatencyMeter:
        """Make a meter for calls of ``batch`` rows, which writes files to an empty folder."""
        ...


def latency_meter(job: Job, batch: int, folder: Path) -> LatencyMeter:
    """Make the latency meter that a job was given.

    Args:
        job: The job whose network is the original.
        batch: Rows of one call.
        folder: An empty folder for files.
    """
    if job.make_latency_meter is None:
        raise TypeError("The job has no latency meter, which a target of latency or round_to: auto needs.")
    return job.make_latency_meter(job, batch, folder)


@dataclass(frozen=True)
class SizeTarget:
    """An upper limit on a size.

    Attributes:
        counted: What is counted.
        limit: The largest size allowed.
        kinds: Kinds of groups under the penalty.
        name: The target's key, for messages.
        slack: Share of the limit by which a network may stay below it without a search for a larger one.
    """

    counted: SizeMetric
    limit: float
    kinds: tuple[GroupKind, ...]
    name: str
    slack: float = 0.0

    @property
    def least(self) -> float:
        """The smallest size for which no larger one is searched."""
        return (1 - self.slack) * self.limit


def size_of(counted: SizeMetric, job: Job, path: RegularisationPath) -> Size:
    """Return a function that counts what a removal at a point of a path would keep."""
    if counted == "features":
        return path.features_kept
    multiple = job.recipe.target.counting_multiple
    if counted == "hidden":
        return lambda point: sum(
            len(k) for u, k in kept_units(job.groups, point.alive, multiple) if u.kind == "hidden"
        )
    known: dict[bytes, int] = {}  # by support: a cache by point would keep its weights in memory

    def size(point: Point) -> int:
        key = support_key(point)
        if key not in known:
            known[key] = size_of_support(job, point.alive, MEASURES[counted], multiple)
        return known[key]

    return size


def support_key(point: Point) -> bytes:
    """Return the non-zero groups of a point as a key to compare points by."""
    return torch.cat(point.alive).numpy().tobytes()


def current_size(job: Job, counted: SizeMetric) -> float:
    """Count what the network of a job has."""
    if counted == "features":
        return len(job.data.features)
    if counted == "hidden":
        return sum(g.units.count for g in job.groups if g.kind == "hidden" and not g.units.refused)
    alive = [support(job.network.state_dict(), g) for g in job.groups]
    return size_of_support(job, alive, MEASURES[counted], job.recipe.target.counting_multiple)


def size_of_support(job: Job, alive: Alive, measure: Measure, multiple: int = 1) -> int:
    """Measure the network in which only the marked groups are left.

    Args:
        job: The network and its groups.
        alive: For each group set, which groups are left, bool, shape (n_groups,).
        measure: Measures a network, given one row of its inputs.
        multiple: Hidden widths are rounded up to multiples of this.
    """
    slim = cut_uncertified(job.network, job.groups, alive, job.probe, job.axes, multiple)
    return measure(slim.network, slim.selection(first_rows(job.data.test, 1)))


def count_parameters(network: nn.Module, inputs: Inputs) -> int:
    """Count the parameters of a network; the inputs are not needed."""
    return parameters(network)


MEASURES: dict[str, Measure] = {"parameters": count_parameters, "macs": macs}


def full_support(groups: Sequence[GroupSet]) -> list[Tensor]:
    """Mark every group as left."""
    return [torch.ones(len(g.labels), dtype=torch.bool) for g in groups]


def unit_costs(job: Job, measure: Measure) -> dict[str, float]:
    """Measure what one group of each set costs by removing one; at least a thousandth of the largest cost.

    Returns:
        Set name -> cost of a group for each weight leaving it, scaled to mean 1 over the sets.
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
            max(0, whole - size_of_support(job, alive, measure)) / units / _mean_weights_of_unit(job, groups)
        )
    largest = max(found.values(), default=0.0)
    if largest == 0:
        return {}
    found = {name: max(cost, 1e-3 * largest) for name, cost in found.items()}
    mean = sum(found.values()) / len(found)
    return {name: cost / mean for name, cost in found.items()}


def _mean_weights_of_unit(job: Job, groups: GroupSet) -> float:
    """Return the mean number of weights leaving a unit."""
    state = job.network.state_dict()
    total = 0.0
    for slot in groups.units.readers:
        tensor = state[slot.tensor]
        total += tensor.numel() / tensor.shape[slot.dim] * int((slot.unit >= 0).sum())
    return max(1.0, total / groups.units.count)


def uniform_support(job: Job, share: float, kinds: Sequence[str]) -> list[Tensor]:
    """Mark the same share of every penalised set of some kinds as left, at least one group of each."""
    marks = full_support(job.groups)
    for alive, groups in zip(marks, job.groups, strict=True):
        if groups.kind in kinds and not groups.units.refused and job.strength(groups) > 0:
            alive[max(1, round(share * len(alive))) :] = False
    return marks


def least_size(job: Job, counted: SizeMetric, kinds: Sequence[str]) -> int:
    """Count what is left where every penalised set of some kinds has its smallest group alone."""
    marks = full_support(job.groups)
    for alive, groups in zip(marks, job.groups, strict=True):
        if groups.kind in kinds and not groups.units.refused and job.strength(groups) > 0:
            smallest = int(torch.bincount(groups.group[groups.group >= 0], minlength=len(alive)).argmin())
            alive[:] = torch.arange(len(alive)) == smallest
    return size_of_support(job, marks, MEASURES[counted], job.recipe.target.counting_multiple)


def uniform_share(job: Job, goal: SizeTarget, limit: float) -> float:
    """Return the share of units that every layer keeps where all lose the same to meet a limit."""
    if limit >= current_size(job, goal.counted):
        return 1.0
    low, high, multiple = 0.0, 1.0, job.recipe.target.counting_multiple
    for _ in range(_SHARE_BISECTIONS):
        share = (low + high) / 2
        size = size_of_support(job, uniform_support(job, share, goal.kinds), MEASURES[goal.counted], multiple)
        low, high = (share, high) if size <= limit else (low, share)
    return low


def filled(job: Job, alive: Alive, goal: SizeTarget) -> list[Tensor]:
    """Mark removed groups as left again as long as a budget allows, those of the least penalty first.

    A path removes groups in steps: where one is a large part of the budget, or several leave together, its
    largest point within the budget can be far below it. Where no further group fits, the strongest removed
    group of one set takes the place of the weakest of another that costs less.

    Args:
        job: The network that the groups were removed from.
        alive: For each group set, which groups are left, bool, shape (n_groups,).
        goal: The budget.
    """
    marks = [a.clone() for a in alive]
    size = _Filling(job, goal, marks)
    for _ in range(_MAX_SWAPS):
        size.add_what_fits()
        if size.now >= goal.least or not size.swap():
            break
    return marks


class _Filling:
    """Marks of groups that are left, changed in place, and the size they give.

    Args:
        job: The network.
        goal: The budget.
        marks: For each group set, which groups are left.
    """

    def __init__(self, job: Job, goal: SizeTarget, marks: list[Tensor]) -> None:
        self.job, self.goal, self.marks = job, goal, marks
        self.weights = {
            number: job.weights(groups)
            for number, groups in enumerate(job.groups)
            if groups.kind in goal.kinds and not groups.units.refused and job.strength(groups) > 0
        }
        self.now = self._size()

    def add_what_fits(self) -> None:
        """Mark groups as left, those of the least penalty first, as long as the budget holds."""
        removed = [
            (float(weight), number, group)
            for number, weights in self.weights.items()
            for group, weight in enumerate(weights)
            if not self.marks[number][group]
        ]
        for _, number, group in sorted(removed):
            self.marks[number][group] = True
            size = self._size()
            # a unit that fills up a width costs nothing, but the width may yet stay as it is
            padding = size == self.now and self.job.recipe.target.round_to == "auto"
            if size > self.goal.limit or padding:
                self.marks[number][group] = False
            else:
                self.now = size

    def swap(self) -> bool:
        """Make the exchange of groups of two sets that uses most of the budget; return whether one does."""
        best, sizes = None, self.now
        for gained in self.weights:
            for lost in self.weights:
                pair = self._pair(gained, lost)
                if pair is None:
                    continue
                self._exchange(gained, lost, *pair)
                size = self._size()
                self._exchange(gained, lost, *pair)
                if sizes < size <= self.goal.limit:
                    best, sizes = (gained, lost, *pair), size
        if best is not None:
            self._exchange(*best)
            self.now = sizes
        return best is not None

    def _pair(self, gained: int, lost: int) -> tuple[int, int] | None:
        """Return the strongest removed group of one set and the weakest left of another, if they can swap."""
        removed, left = ~self.marks[gained], self.marks[lost]
        if gained == lost or not bool(removed.any()) or int(left.sum()) < 2:
            return None
        strongest = self.weights[gained].where(removed, torch.inf).argmin()
        weakest = self.weights[lost].where(left, -torch.inf).argmax()
        return int(strongest), int(weakest)

    def _exchange(self, gained: int, lost: int, strongest: int, weakest: int) -> None:
        self.marks[gained][strongest] = ~self.marks[gained][strongest]
        self.marks[lost][weakest] = ~self.marks[lost][weakest]

    def _size(self) -> float:
        multiple = self.job.recipe.target.counting_multiple
        return size_of_support(self.job, self.marks, MEASURES[self.goal.counted], multiple)
