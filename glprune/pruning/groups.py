"""Groups: the weights that are removed together, and arithmetic on them.

A group is all weights that read a feature (one input column or several) or a hidden unit, in every layer.
Groups never overlap, so the proximal operator of their penalty is separable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glprune.pruning.ids import GroupIds, Positions, UnitIds

if TYPE_CHECKING:
    from glprune.pruning.units import GroupKind, TensorAxis, UnitSet

TensorDict = Mapping[str, Tensor]
# of the largest: a group of no importance gets a large penalty weight, not an infinite one
_MIN_RELATIVE_IMPORTANCE = 1e-4


@dataclass(frozen=True)
class GroupSet:
    """The groups of one unit set.

    Attributes:
        units: Where the units lie.
        labels: Feature names, or unit numbers, shape (n_groups,).
        group: The group of each unit, shape (n_units,), int64.
    """

    units: UnitSet
    labels: tuple[str, ...]
    group: GroupIds

    @property
    def name(self) -> str:
        """Name of the input or layer."""
        return self.units.name

    @property
    def kind(self) -> GroupKind:
        """``input`` or ``hidden``."""
        return self.units.kind

    def owner(self, slot: TensorAxis) -> GroupIds:
        """Return the group of each position of ``slot``, shape of ``slot.unit``; -1 where it has none."""
        return GroupIds(torch.where(slot.unit >= 0, self.group[slot.unit.clamp(min=0)], -1))


def input_groups(units: UnitSet, features: Sequence[tuple[str, Sequence[int]]]) -> GroupSet:
    """Group the columns of an input by feature.

    Args:
        units: The unit set of the input.
        features: Name and columns of each feature; every column in exactly one.
    """
    group = torch.empty(units.count, dtype=torch.int64)
    for number, (_, columns) in enumerate(features):
        group[list(columns)] = number
    return GroupSet(units, tuple(name for name, _ in features), GroupIds(group))


def hidden_groups(units: UnitSet) -> GroupSet:
    """Make every unit of a layer one group."""
    return GroupSet(units, tuple(map(str, range(units.count))), GroupIds(torch.arange(units.count)))


def sliced(groups: GroupSet, kept: Mapping[tuple[str, int], Positions]) -> GroupSet:
    """Return the groups that are left of a set after tensors were sliced, at their new positions.

    Args:
        groups: Groups of the network before.
        kept: ``(tensor, dim) -> positions`` that stayed.
    """
    slots = []
    for slot in groups.units.slots:
        positions = kept.get((slot.tensor, slot.dim))
        slots.append(slot if positions is None else replace(slot, unit=UnitIds(slot.unit[positions])))
    if not slots:
        return groups
    left = torch.unique(torch.cat([s.unit for s in slots]))
    left = left[left >= 0]
    renumbered = torch.full((groups.units.count + 1,), -1)  # the last is for positions of no unit
    renumbered[left] = torch.arange(len(left))
    moved = tuple(replace(s, unit=UnitIds(renumbered[s.unit])) for s in slots)
    units = replace(groups.units, count=len(left), slots=moved)
    names, group = torch.unique(groups.group[left], return_inverse=True)
    return GroupSet(units, tuple(groups.labels[n] for n in names.tolist()), GroupIds(group))


def _sum_by_owner(values: Tensor, dim: int, owner: GroupIds, count: int) -> Tensor:
    """Sum ``values`` over all dimensions but ``dim``, then by owner; owner -1 is dropped."""
    others = [d for d in range(values.ndim) if d != dim % values.ndim]
    along = values.sum(dim=others) if others else values
    total = torch.zeros(count + 1, dtype=values.dtype)
    return total.index_add_(0, torch.where(owner < 0, count, owner), along)[:count]


def group_norms(state: TensorDict, groups: GroupSet) -> Tensor:
    """Return the L2 norm of each group's weights, shape (n_groups,), float64."""
    total = torch.zeros(len(groups.labels), dtype=torch.float64)
    for slot in groups.units.readers:
        squares = state[slot.tensor].detach().double().square()
        total += _sum_by_owner(squares, slot.dim, groups.owner(slot), len(groups.labels))
    return total.sqrt()


def group_sizes(state: TensorDict, groups: GroupSet) -> Tensor:
    """Return the number of each group's weights, p_g, shape (n_groups,), int64."""
    total = torch.zeros(len(groups.labels), dtype=torch.float64)
    for slot in groups.units.readers:
        ones = torch.ones(state[slot.tensor].shape, dtype=torch.float64)
        total += _sum_by_owner(ones, slot.dim, groups.owner(slot), len(groups.labels))
    return total.long()


def root_mean_squares(state: TensorDict, groups: GroupSet) -> Tensor:
    """Return the root mean square of each group's weights, shape (n_groups,), float64."""
    return group_norms(state, groups) / group_sizes(state, groups).double().sqrt().clamp(min=1.0)


def penalty_weights(
    state: TensorDict, groups: GroupSet, strength: float, importance: Tensor | None = None
) -> Tensor:
    """Return the weight of each group in the penalty, shape (n_groups,), float64.

    ``strength * sqrt(p_g)``; an adaptive weight is divided by the group's importance, so that groups that
    matter little are removed first.

    Args:
        state: The trained network's tensors.
        groups: The groups.
        strength: Factor of all of them.
        importance: Importance of each group, shape (n_groups,), >= 0; None: all are alike.

    References:
        Yuan and Lin (2006), J. R. Stat. Soc. B 68(1), 49-67; adaptive: Wang and Leng (2008), "A note
        on adaptive group lasso", Comput. Stat. Data Anal. 52, 5277-5286, where the importance is the norm of
        the group's trained weights.
    """
    root = group_sizes(state, groups).double().sqrt()
    if importance is None or not bool(importance.any()):  # where all are zero none matters less than another
        return strength * root
    return strength * root / importance.clamp(min=float(importance.max()) * _MIN_RELATIVE_IMPORTANCE)


def support(state: TensorDict, groups: GroupSet) -> Tensor:
    """Mark the groups that have a non-zero weight, bool, shape (n_groups,); all groups of a refused set."""
    if groups.units.refused:
        return torch.ones(len(groups.labels), dtype=torch.bool)
    alive = torch.zeros(len(groups.labels), dtype=torch.float64)
    for slot in groups.units.readers:
        used = (state[slot.tensor].detach() != 0).double()
        alive += _sum_by_owner(used, slot.dim, groups.owner(slot), len(groups.labels))
    return alive > 0


def zero_units_(state: TensorDict, units: UnitSet, marked: Tensor) -> None:
    """Set the weights that read the marked units to zero, in place; ``marked`` is bool (n_units,)."""
    for slot in units.readers:
        hit = (slot.unit >= 0) & marked[slot.unit.clamp(min=0)]
        state[slot.tensor].data.index_fill_(slot.dim, torch.nonzero(hit).flatten(), 0.0)
