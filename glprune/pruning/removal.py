"""Cut the units whose groups are exactly zero and certify that the outputs stay the same.

``glprune.pruning.verification`` checked the plans on random weights; here every cut is compared again,
on the network's own weights and on real and random rows, with the network whose groups are zero.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from glprune.data.splits import ColumnSelection, Inputs, select_columns
from glprune.errors import NonFiniteError
from glprune.model.diagnostics import finite_rows
from glprune.pruning.groups import GroupSet, support
from glprune.pruning.ids import UnitIds
from glprune.pruning.surgery import PruningPlan, all_columns, kept_columns, plan_pruning
from glprune.pruning.verification import TOLERANCE, difference, no_longer_runs, outputs
from glprune.schema.report import Cut, Skipped

if TYPE_CHECKING:
    from glprune.pruning.units import UnitChoice, UnitSet

_SMALL_BATCHES = (1, 2, 3)


@dataclass(frozen=True)
class RemovalResult:
    """The result of a removal.

    Attributes:
        network: The slim network; it takes the kept columns of every input.
        plan: What turns the dense network into the slim one.
        selection: The kept columns of every input; takes them out of full inputs.
        cuts: One record for each certified cut.
        refused: Units that are kept although their group is zero, with the reason.
        difference: Largest relative difference between zeroed dense and slim.
        rows: Number of rows every cut was compared on.
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


class SlimNetwork(NamedTuple):
    """A slim network whose outputs were not compared; see ``RemovalResult`` for its fields."""

    network: nn.Module
    plan: PruningPlan
    selection: ColumnSelection


@dataclass
class _RemovalState:
    """A removal in progress: its options and the cuts accepted so far.

    Outputs are compared on all rows and in small batches, whose numbers of rows are ``sizes``.
    """

    network: nn.Module
    inputs: Inputs
    axes: tuple[int | None, ...]
    tolerance: float
    multiple: int
    sizes: tuple[int, ...]
    reference: list[list[Tensor]]
    columns: list[Tensor]
    slim: nn.Module
    choices: list[UnitChoice] = field(default_factory=list)


@dataclass(frozen=True)
class _Trial:
    """A cut that was made on a copy, before it is accepted."""

    network: nn.Module
    columns: list[Tensor]
    outputs: list[list[Tensor]]
    difference: float


def remove(  # noqa: PLR0913 - two are options, and inputs and axes belong together everywhere
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
        groups: Group sets of checked unit sets.
        inputs: Real and random rows to compare outputs on.
        axes: The feature axis of each input; None where it has none.
        tolerance: Largest relative difference a cut may make, except for inexact sets.
        multiple: Widths of hidden layers are rounded up to a multiple of this, or to the full width, by
            keeping zero units.

    Returns:
        The slim network and how it was certified. A set whose cut changes outputs is kept. At least
        one unit of every set is kept, since a layer of width zero cannot run.

    Raises:
        NonFiniteError: There are no rows on which the zeroed network's outputs are finite.
    """
    # the cuts are compared in the weights' own precision, against the zeroed network itself
    reference = outputs(network, inputs)
    finite = finite_rows(reference)
    if not bool(finite.all()):  # weights trained since the rows were drawn may overflow on random ones
        inputs = tuple(x[finite] for x in inputs)
        if not len(inputs[0]):
            raise NonFiniteError(
                "The network with zeroed groups returns NaN or Inf on all rows; lower train.lr."
            )
    columns = list(all_columns(inputs, axes))
    sizes = (len(inputs[0]), *(n for n in _SMALL_BATCHES if n < len(inputs[0]) and _runs(network, inputs, n)))
    dense = _batch_outputs(network, inputs, sizes)
    state = _RemovalState(network, inputs, tuple(axes), tolerance, multiple, sizes, dense, columns, network)
    refused = [
        Skipped(name=g.name, units=g.units.count, reason=g.units.refused) for g in groups if g.units.refused
    ]
    cuts: list[Cut] = []
    # cuts that may change outputs come last, so that the others are compared with the zeroed network
    for family in sorted(_families(groups), key=lambda f: any(g.units.inexact for g in f)):
        records = _cut(state, family)
        cuts += [c for c in records if isinstance(c, Cut)]
        refused += [c for c in records if isinstance(c, Skipped)]
    slim = state.slim if state.choices else copy.deepcopy(network)
    kept = select_columns(inputs, axes, state.columns)
    final = _largest_difference(dense, _batch_outputs(slim, kept, sizes))
    plan = plan_pruning(network, state.choices, inputs, axes)
    selection = ColumnSelection(tuple(state.columns), state.axes)
    return RemovalResult(slim, plan, selection, tuple(cuts), tuple(refused), final, len(inputs[0]))


def then(first: RemovalResult, second: RemovalResult) -> RemovalResult:
    """Combine two successive removals into one, in the numbering of the first one's network."""
    return RemovalResult(
        network=second.network,
        plan=first.plan.then(second.plan),
        selection=first.selection.then(second.selection),
        cuts=(*first.cuts, *second.cuts),
        refused=tuple({r.name: r for r in (*first.refused, *second.refused)}.values()),
        difference=max(first.difference, second.difference),
        rows=min(first.rows, second.rows),
    )


def cut_uncertified(  # noqa: PLR0913 - as for `remove`
    network: nn.Module,
    groups: Sequence[GroupSet],
    alive: Sequence[Tensor],
    inputs: Inputs,
    axes: Sequence[int | None],
    multiple: int = 1,
) -> SlimNetwork:
    """Return the network a removal would give, without comparing outputs, to measure or to score it.

    Args:
        network: The dense network; it is copied.
        groups: Group sets of checked unit sets.
        alive: For each set, which of its groups are left, bool, shape (n_groups,).
        inputs: Rows of the dense network.
        axes: The feature axis of each input; None where it has none.
        multiple: Of hidden widths, see ``remove``.

    Returns:
        The network, what turns the dense one into it, and the kept columns of every input.
    """
    choices = kept_units(groups, alive, multiple)
    plan = plan_pruning(network, choices, inputs, axes)
    slim = copy.deepcopy(network)
    plan.apply_(slim)
    return SlimNetwork(slim, plan, ColumnSelection(tuple(kept_columns(choices, inputs, axes)), tuple(axes)))


def kept_units(groups: Sequence[GroupSet], alive: Sequence[Tensor], multiple: int = 1) -> list[UnitChoice]:
    """Return the units a removal keeps of every set that can be cut: at least one, equally many in a family.

    Args:
        groups: Group sets of checked unit sets.
        alive: For each set, which of its groups are left, bool, shape (n_groups,).
        multiple: Of hidden widths, see ``remove``.
    """
    marks = {id(g): a for g, a in zip(groups, alive, strict=True)}
    kept = []
    for family in _families(groups):
        keeps = [_kept(~marks[id(g)][g.group]) for g in family]
        widths = _equal_widths(keeps, [g.units for g in family], multiple)
        kept += [(g.units, keep) for g, keep in zip(family, widths, strict=True)]
    return kept


def _families(groups: Sequence[GroupSet]) -> list[list[GroupSet]]:
    """Group the sets that one module holds under one width; every other set is alone."""
    families: dict[str, list[GroupSet]] = {}
    for number, group in enumerate(groups):
        if not group.units.refused:
            families.setdefault(group.units.family or f"#{number}", []).append(group)
    return list(families.values())


def _cut_copy(
    network: nn.Module,
    choices: Sequence[UnitChoice],
    inputs: Inputs,
    axes: Sequence[int | None],
) -> nn.Module:
    """Return a copy of a network that holds only the chosen units."""
    slim = copy.deepcopy(network)
    plan_pruning(network, choices, inputs, axes).apply_(slim)
    return slim


def _cut(state: _RemovalState, family: Sequence[GroupSet]) -> list[Cut | Skipped]:
    """Cut one family of sets; skip it where the cut changes outputs."""
    choices = _removable(state, family)
    if not choices:
        return []
    inexact = any(units.inexact for units, _ in choices)
    trial = _try_cut(state, choices, inexact)
    if isinstance(trial, str):
        return [Skipped(name=u.name, units=u.count - len(k), reason=trial) for u, k in choices]
    state.choices += choices
    state.slim, state.columns = trial.network, trial.columns
    if inexact:  # the next cut is compared with this one, so that it accounts for its own change alone
        state.reference = trial.outputs
    return [
        Cut(
            name=u.name,
            kind=u.kind,
            units=u.count - len(k),
            difference=trial.difference,
            removal=u.removal,
            inexact=u.inexact,
        )
        for u, k in choices
    ]


def _removable(state: _RemovalState, family: Sequence[GroupSet]) -> list[UnitChoice]:
    """Return the sets of a family that have units to cut, each with the units to keep."""
    tensors = dict(state.network.state_dict())
    dead = [~support(tensors, g)[g.group] for g in family]
    keeps = _equal_widths([_kept(d) for d in dead], [g.units for g in family], state.multiple)
    return [(g.units, k) for g, k in zip(family, keeps, strict=True) if len(k) < g.units.count]


def _try_cut(state: _RemovalState, choices: Sequence[UnitChoice], inexact: bool) -> _Trial | str:
    """Make a cut together with all cuts before it, on a copy.

    Returns:
        The slim copy, or the reason to refuse the cut: the copy does not run or its outputs differ.
    """
    together = [*state.choices, *choices]
    columns = kept_columns(together, state.inputs, state.axes)
    try:
        slim = _cut_copy(state.network, together, state.inputs, state.axes)
        found = _batch_outputs(slim, select_columns(state.inputs, state.axes, columns), state.sizes)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - a forward may do anything once a width changes
        return no_longer_runs(error)
    gap = _largest_difference(state.reference, found)
    if (gap > state.tolerance and not inexact) or gap == float("inf"):
        return f"the cut changes outputs by {gap:.1e}"
    return _Trial(slim, columns, found, gap)


def _runs(network: nn.Module, inputs: Inputs, rows: int) -> bool:
    """Return whether the dense network runs on so few rows: a cut is not at fault where it does not."""
    try:
        outputs(network, tuple(x[:rows] for x in inputs))
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - the user's forward may raise anything
        return False
    return True


def _batch_outputs(network: nn.Module, inputs: Inputs, sizes: Sequence[int]) -> list[list[Tensor]]:
    """Return the outputs for the first rows, for each of some numbers of rows."""
    return [outputs(network, tuple(x[:size] for x in inputs)) for size in sizes]


def _largest_difference(a: Sequence[list[Tensor]], b: Sequence[list[Tensor]]) -> float:
    """Return the largest difference over several batches."""
    return max(difference(x, y) for x, y in zip(a, b, strict=True))


def _kept(dead: Tensor) -> UnitIds:
    """Return the units to keep; the first where all are zero."""
    keep = torch.nonzero(~dead).flatten()
    return UnitIds(keep if keep.numel() else torch.zeros(1, dtype=torch.int64))


def _equal_widths(keeps: Sequence[UnitIds], sets: Sequence[UnitSet], multiple: int) -> list[UnitIds]:
    """Keep as many units in every set of a family as in its widest, rounded up, by adding zero units."""
    step = math.lcm(*(_step(units, multiple) for units in sets))
    width = math.ceil(max(len(k) for k in keeps) / step) * step
    filled = []
    for keep, units in zip(keeps, sets, strict=True):
        others = torch.arange(units.count)[~torch.isin(torch.arange(units.count), keep)]
        filled.append(UnitIds(torch.cat([keep, others[: width - len(keep)]]).sort().values))
    return filled


def _step(units: UnitSet, multiple: int) -> int:
    """Return of what the number of units must be a multiple for widths to be; 1 for inputs."""
    if units.kind == "input" or not units.slots:
        return 1
    each = min(int((slot.unit >= 0).sum()) // units.count for slot in units.slots)  # such as of a head
    return multiple // math.gcd(multiple, each)
