"""Removal: cut the units whose groups are exactly zero and certify that nothing changed.

Plans were proved by :mod:`glprune.pruning.verification`; here every cut is compared again, on the network's own
weights and on real and random rows, with the network whose groups are zero.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from glprune.data.splits import ColumnSelection, Inputs, select_columns
from glprune.errors import NonFiniteError
from glprune.model.diagnostics import finite_rows
from glprune.pruning.groups import GroupSet, support
from glprune.pruning.surgery import PruningPlan, all_columns, plan_pruning
from glprune.pruning.verification import TOLERANCE, difference, difference_after, outputs
from glprune.schema.report import Cut, Skipped

if TYPE_CHECKING:
    from glprune.pruning.units import UnitSet

_SMALL_BATCHES = (1, 3)


@dataclass(frozen=True)
class RemovalResult:
    """The outcome of a removal.

    Attributes:
        network: The slim network; it takes the kept columns of every input.
        surgery: What turns the dense network into the slim one.
        selection: The kept columns of every input; takes them out of full inputs.
        cuts: One record for each certified cut.
        refused: Units that stayed though their group is zero, with the reason.
        difference: Largest relative difference between zeroed dense and slim.
        rows: Rows every cut was compared on.
    """

    network: nn.Module
    plan: PruningPlan
    selection: ColumnSelection
    cuts: tuple[Cut, ...]
    refused: tuple[Skipped, ...]
    difference: float
    rows: int

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """Kept positions along each input's feature axis; empty where it has no such axis."""
        return self.selection.columns


@dataclass
class _RemovalState:
    """A removal at work: what was chosen so far."""

    network: nn.Module
    inputs: Inputs
    axes: tuple[int | None, ...]
    reference: list[Tensor]
    columns: list[Tensor]
    slim: nn.Module
    choices: list[tuple[UnitSet, Tensor]] = field(default_factory=list)


def remove(
    network: nn.Module,
    groups: Sequence[GroupSet],
    inputs: Inputs,
    axes: Sequence[int | None],
    tolerance: float = TOLERANCE,
    multiple: int = 1,
) -> RemovalResult:
    """Cut every unit whose group is exactly zero, certifying each cut.

    Args:
        network: The network with zeroed groups; it is copied, never changed.
        groups: Proved group sets.
        inputs: Real and random rows to compare outputs on.
        axes: The feature axis of each input; None where it has none.
        tolerance: Largest relative difference a cut may make, but for inexact sets.
        multiple: Zero hidden units stay until their layer's width is a multiple of this, or the whole.

    Returns:
        The slim network and the evidence. A set whose cut changes outputs is left alone. At
        least one unit of every set is kept, since a layer of width zero cannot run.

    Raises:
        NonFiniteError: There is no row on which the zeroed network's outputs are finite.
    """
    # the cuts are compared in the weights' own precision, against the zeroed network itself
    reference = outputs(network, inputs)
    sound = finite_rows(reference)
    if not bool(sound.all()):  # random rows, on which weights trained since may overflow
        inputs = tuple(x[sound] for x in inputs)
        if not len(inputs[0]):
            raise NonFiniteError(
                "The network with zeroed groups returns NaN or Inf on all rows; lower train.lr."
            )
        reference = outputs(network, inputs)
    work = _RemovalState(network, inputs, tuple(axes), reference, list(all_columns(inputs, axes)), network)
    refused = [
        Skipped(name=g.name, units=g.units.count, reason=g.units.refused) for g in groups if g.units.refused
    ]
    cuts: list[Cut] = []
    # cuts that may change outputs come last, so that the others are held against the zeroed network
    for family in sorted(_families(groups), key=lambda f: any(g.units.inexact for g in f)):
        made = _cut(work, family, tolerance, multiple)
        cuts += [c for c in made if isinstance(c, Cut)]
        refused += [c for c in made if isinstance(c, Skipped)]
    slim = work.slim if work.choices else copy.deepcopy(network)
    final = _small_batches(network, slim, work)
    surgery = plan_pruning(network, work.choices, inputs, axes)
    return RemovalResult(
        slim,
        surgery,
        ColumnSelection(tuple(work.columns), work.axes),
        tuple(cuts),
        tuple(refused),
        final,
        len(inputs[0]),
    )


def then(first: RemovalResult, second: RemovalResult) -> RemovalResult:
    """Two removals in a row as one, in the numbering of the first one's network."""
    return RemovalResult(
        network=second.network,
        plan=first.plan.then(second.plan),
        selection=first.selection.then(second.selection),
        cuts=(*first.cuts, *second.cuts),
        refused=tuple({r.name: r for r in (*first.refused, *second.refused)}.values()),
        difference=max(first.difference, second.difference),
        rows=min(first.rows, second.rows),
    )


def cut_uncertified(
    network: nn.Module,
    groups: Sequence[GroupSet],
    alive: Sequence[Tensor],
    inputs: Inputs,
    axes: Sequence[int | None],
    multiple: int = 1,
) -> tuple[nn.Module, ColumnSelection]:
    """The network a removal would give, uncertified, to measure its shape.

    Args:
        network: The dense network; it is copied.
        groups: Proved group sets.
        alive: For each set, which of its groups are left, bool, shape (n_groups,).
        inputs: Rows of the dense network.
        axes: The feature axis of each input; None where it has none.
        multiple: Of hidden widths, see :func:`remove`.

    Returns:
        The network, and the kept columns of every input.
    """
    columns, choices = list(all_columns(inputs, axes)), kept_units(groups, alive, multiple)
    for units, keep in choices:
        if units.source is not None:
            columns[units.source] = keep
    slim = copy.deepcopy(network)
    plan_pruning(network, choices, inputs, axes).apply_(slim)
    return slim, ColumnSelection(tuple(columns), tuple(axes))


def kept_units(
    groups: Sequence[GroupSet], alive: Sequence[Tensor], multiple: int = 1
) -> list[tuple[UnitSet, Tensor]]:
    """The units a removal keeps of every set that can be cut: at least one, and equal widths in a family.

    Args:
        groups: Proved group sets.
        alive: For each set, which of its groups are left, bool, shape (n_groups,).
        multiple: Of hidden widths, see :func:`remove`.
    """
    marks = {id(g): a for g, a in zip(groups, alive, strict=True)}
    kept = []
    for family in _families(groups):
        keeps = [_keep(~marks[id(g)][g.group]) for g in family]
        widths = _equal_widths(keeps, [g.units for g in family], multiple)
        kept += [(g.units, keep) for g, keep in zip(family, widths, strict=True)]
    return kept


def _families(groups: Sequence[GroupSet]) -> list[list[GroupSet]]:
    """Sets that one module holds under one width, together; every other set alone."""
    families: dict[str, list[GroupSet]] = {}
    for number, group in enumerate(groups):
        if not group.units.refused:
            families.setdefault(group.units.family or f"#{number}", []).append(group)
    return list(families.values())


def _cut(
    work: _RemovalState, family: Sequence[GroupSet], tolerance: float, multiple: int
) -> list[Cut | Skipped]:
    """Cut one family where that is lossless."""
    state = dict(work.network.state_dict())
    dead = [~support(state, g)[g.group] for g in family]
    keeps = _equal_widths([_keep(d) for d in dead], [g.units for g in family], multiple)
    choices = [(g.units, k) for g, k in zip(family, keeps, strict=True) if len(k) < g.units.count]
    if not choices:
        return []
    columns = list(work.columns)
    for units, keep in choices:
        if units.source is not None:
            columns[units.source] = keep
    trial = copy.deepcopy(work.network)
    gap = difference_after(trial, [*work.choices, *choices], work.inputs, work.axes, work.reference, columns)
    inexact = any(units.inexact for units, _ in choices)
    if isinstance(gap, str) or (gap > tolerance and not inexact) or gap == float("inf"):
        reason = gap if isinstance(gap, str) else f"the cut changes outputs by {gap:.1e}"
        return [Skipped(name=u.name, units=u.count - len(k), reason=reason) for u, k in choices]
    work.choices += choices
    work.slim, work.columns = trial, columns
    if inexact:  # the next cut answers for its own change alone
        work.reference = outputs(trial, select_columns(work.inputs, work.axes, columns))
    return [
        Cut(
            name=u.name,
            kind=u.kind,
            units=u.count - len(k),
            difference=gap,
            removal=u.removal,
            inexact=u.inexact,
        )
        for u, k in choices
    ]


def _small_batches(network: nn.Module, slim: nn.Module, work: _RemovalState) -> float:
    """Largest difference over all rows and over small batches, where the dense network takes them."""
    worst = difference(
        outputs(network, work.inputs), outputs(slim, select_columns(work.inputs, work.axes, work.columns))
    )
    for rows in _SMALL_BATCHES:
        few = tuple(x[:rows] for x in work.inputs)
        try:
            expected = outputs(network, few)
        except Exception:  # a forward written for larger batches says nothing of the cut
            continue
        worst = max(worst, difference(expected, outputs(slim, select_columns(few, work.axes, work.columns))))
    return worst


def _keep(dead: Tensor) -> Tensor:
    """Units to keep; the first where all are dead."""
    keep = torch.nonzero(~dead).flatten()
    return keep if keep.numel() else torch.zeros(1, dtype=torch.int64)


def _equal_widths(keeps: Sequence[Tensor], sets: Sequence[UnitSet], multiple: int) -> list[Tensor]:
    """Keep as many units in every set of a family as in its widest, rounded up; dead ones fill up."""
    step = math.lcm(*(_step(units, multiple) for units in sets))
    width = math.ceil(max(len(k) for k in keeps) / step) * step
    filled = []
    for keep, units in zip(keeps, sets, strict=True):
        others = torch.arange(units.count)[~torch.isin(torch.arange(units.count), keep)]
        filled.append(torch.cat([keep, others[: width - len(keep)]]).sort().values)
    return filled


def _step(units: UnitSet, multiple: int) -> int:
    """Of how many units a set's number is a multiple where its width is one; removed inputs stay removed."""
    if units.kind == "input" or not units.slots:
        return 1
    each = min(int((slot.unit >= 0).sum()) // units.count for slot in units.slots)  # such as of a head
    return multiple // math.gcd(multiple, each)
