"""The only physical surgery: prove a plan, cut units, certify that nothing changed.

A plan from :mod:`glprune.graph` is not trusted. ``prove`` tests it on a copy with random
weights in double precision: units are zeroed and cut in subsets that separate every pair of
units, and the outputs must agree. ``remove`` then cuts the units whose groups are exactly
zero, one unit set after the other, and compares outputs at each cut.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from glprune.graph import Inputs, UnitSet
from glprune.groups import GroupSet, support, zero_units_
from glprune.report import Cut, Refusal

TOLERANCE = 1e-5
_PROOF_TOLERANCE = 1e-9

# module attribute -> (tensor, dimension) whose size it repeats
_ATTRIBUTES: dict[str, tuple[str, int]] = {
    "in_features": ("weight", 1),
    "out_features": ("weight", 0),
    "num_features": ("running_mean", 0),
    "embedding_dim": ("weight", 1),
    "num_parameters": ("weight", 0),
}


@dataclass(frozen=True)
class Removed:
    """The outcome of a removal.

    Attributes:
        network: The slim network.
        kept: Positions kept along each cut dimension, ``(tensor, dim) -> int64``, in the
            numbering of the original network.
        columns: Kept positions of every input's feature axis; empty for an input that passes whole.
        cuts: One record for each certified cut.
        refused: Units that stayed though their group is zero, with the reason.
        difference: Largest relative difference between zeroed dense and slim.
        rows: Rows every cut was compared on.
    """

    network: nn.Module
    kept: Mapping[tuple[str, int], Tensor]
    columns: tuple[Tensor, ...]
    cuts: tuple[Cut, ...]
    refused: tuple[Refusal, ...]
    difference: float
    rows: int


def difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Largest ``|a - b| / max(1, max|a|)`` over outputs; infinite where shapes or NaNs differ."""
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if x.shape != y.shape:
            return float("inf")
        if x.numel():
            gap = float((x.double() - y.double()).abs().max() / x.double().abs().max().clamp(min=1.0))
            worst = max(worst, gap if gap == gap else float("inf"))
    return worst


def outputs(network: nn.Module, inputs: Inputs) -> list[Tensor]:
    """All output tensors of a network, without gradients."""
    with torch.no_grad():
        return [y.detach() for y in pytree.tree_leaves(network(*inputs))]


def slice_(network: nn.Module, kept: Mapping[tuple[str, int], Tensor]) -> None:
    """Keep only the given positions along tensor dimensions, in place.

    Tied tensors stay tied, ``requires_grad`` stays as it was, and size attributes of the
    layers follow their tensors.

    Args:
        network: The network to cut.
        kept: ``(tensor name, dim) -> positions``, int64.
    """
    places = _places(network)
    for (name, dim), positions in kept.items():
        old = _get(network, name)
        data = old.detach().index_select(dim, positions).contiguous()
        new = nn.Parameter(data, old.requires_grad) if isinstance(old, nn.Parameter) else data
        for alias in places[id(old)]:
            _set(network, alias, new)
        places[id(new)] = places[id(old)]
    for module in network.modules():
        _sync(module)


def prove(
    network: nn.Module, sets: Sequence[UnitSet], inputs: Inputs, axes: Sequence[int | None]
) -> list[UnitSet]:
    """Test every plan on random weights and mark those that do not hold as refused.

    For each bit of the unit number, the units with that bit set (then those without) are
    zeroed by plan and cut by plan; the outputs must agree. Any two units differ in a bit, so a
    position given to the wrong unit shows.

    Args:
        network: The network; it is copied, never changed.
        sets: Unit sets as planned.
        inputs: Example inputs, each (batch, ...), batch at least 2.
        axes: The feature axis of each input; None for inputs that pass whole.

    Returns:
        The same sets; those that failed carry the reason in ``refused``.
    """
    twin, probe, tolerance = _random_twin(network, inputs)
    return [s if s.refused else _proved(twin, s, probe, _axis_of(s, sets, axes), tolerance) for s in sets]


def remove(
    network: nn.Module,
    groups: Sequence[GroupSet],
    inputs: Inputs,
    axes: Sequence[int | None],
    tolerance: float = TOLERANCE,
) -> Removed:
    """Cut every unit whose group is exactly zero, certifying each cut.

    Args:
        network: The network with zeroed groups; it is copied, never changed.
        groups: Proved group sets; one input set for each input with an axis, in their order.
        inputs: Real and random rows to compare outputs on.
        axes: The feature axis of each input; None for inputs that pass whole.
        tolerance: Largest relative difference a cut may make.

    Returns:
        The slim network and the evidence. A set whose cut changes outputs is left alone. At
        least one unit of every set is kept, since a layer of width zero cannot run.
    """
    # the cuts are compared in the weights' own precision, against the zeroed network itself
    reference = outputs(network, inputs)
    slim = copy.deepcopy(network)
    kept: dict[tuple[str, int], Tensor] = {}
    cuts: list[Cut] = []
    refused: list[Refusal] = []
    columns = [
        torch.arange(0 if axis is None else x.shape[axis]) for x, axis in zip(inputs, axes, strict=True)
    ]
    sets = [g.units for g in groups]
    for group in groups:
        dead = ~support(dict(network.state_dict()), group)[group.group]
        if group.units.refused:
            refused.append(Refusal(name=group.name, units=group.units.count, reason=group.units.refused))
            continue
        keep = _keep(dead)
        if keep.numel() == group.units.count:
            continue
        plan = _positions(group.units, keep)
        trial = copy.deepcopy(slim)
        source = _axis_of(group.units, sets, axes)
        place = None if source is None else source[0]
        trial_columns = list(columns) if place is None else [*columns[:place], keep, *columns[place + 1 :]]
        gap = _difference_after(
            trial, _relative(plan, kept, trial), reference, _select(inputs, axes, trial_columns)
        )
        units = group.units.count - keep.numel()
        if isinstance(gap, str) or gap > tolerance:
            reason = gap if isinstance(gap, str) else f"the cut changes outputs by {gap:.1e}"
            refused.append(Refusal(name=group.name, units=units, reason=reason))
            continue
        slim, columns = trial, trial_columns
        for key, positions in plan.items():
            kept[key] = positions if key not in kept else _both(kept[key], positions)
        cuts.append(Cut(name=group.name, kind=group.kind, units=units, difference=gap))
    final = difference(reference, outputs(slim, _select(inputs, axes, columns)))
    rows = len(inputs[0])
    return Removed(slim, kept, tuple(columns), tuple(cuts), tuple(refused), final, rows)


def followed_by(first: Removed, second: Removed) -> Removed:
    """Two removals in a row as one, in the numbering of the first one's network."""
    kept = dict(first.kept)
    for key, positions in second.kept.items():
        kept[key] = first.kept[key][positions] if key in first.kept else positions
    return Removed(
        network=second.network,
        kept=kept,
        columns=tuple(a[b] for a, b in zip(first.columns, second.columns, strict=True)),
        cuts=(*first.cuts, *second.cuts),
        refused=tuple({r.name: r for r in (*first.refused, *second.refused)}.values()),
        difference=max(first.difference, second.difference),
        rows=min(first.rows, second.rows),
    )


def _keep(dead: Tensor) -> Tensor:
    """Units to keep; the first where all are dead."""
    keep = torch.nonzero(~dead).flatten()
    return keep if keep.numel() else torch.zeros(1, dtype=torch.int64)


def _positions(units: UnitSet, keep: Tensor) -> dict[tuple[str, int], Tensor]:
    """Positions that stay along every slot when only ``keep`` units stay."""
    alive = torch.zeros(units.count, dtype=torch.bool)
    alive[keep] = True
    plan: dict[tuple[str, int], Tensor] = {}
    for slot in units.slots:
        stays = (slot.unit < 0) | alive[slot.unit.clamp(min=0)]
        plan[(slot.tensor, slot.dim)] = torch.nonzero(stays).flatten()
    return plan


def _both(a: Tensor, b: Tensor) -> Tensor:
    return a[torch.isin(a, b)]


def _relative(
    plan: Mapping[tuple[str, int], Tensor], kept: Mapping[tuple[str, int], Tensor], network: nn.Module
) -> dict[tuple[str, int], Tensor]:
    """Translate original positions to positions in a network that was cut before."""
    return {
        key: torch.nonzero(torch.isin(kept[key], positions)).flatten() if key in kept else positions
        for key, positions in plan.items()
    }


def _difference_after(
    network: nn.Module, plan: Mapping[tuple[str, int], Tensor], reference: Sequence[Tensor], inputs: Inputs
) -> float | str:
    """Cut ``network`` by ``plan`` and compare; a sentence where it no longer runs."""
    try:
        slice_(network, plan)
        return difference(reference, outputs(network, inputs))
    except Exception as error:  # the user's forward may raise anything once a width changes
        return f"the network no longer runs after the cut ({_first_line(error)})"


def _proved(
    twin: nn.Module, units: UnitSet, probe: Inputs, source: tuple[int, int] | None, tolerance: float
) -> UnitSet:
    for marked in _separating_subsets(units.count):
        zeroed = copy.deepcopy(twin)
        zero_units_(dict(zeroed.state_dict()), units, marked)
        reference = outputs(zeroed, probe)
        keep = torch.nonzero(~marked).flatten()
        narrow = probe
        if source is not None:
            place, axis = source
            narrow = tuple(x.index_select(axis, keep) if i == place else x for i, x in enumerate(probe))
        gap = _difference_after(zeroed, _positions(units, keep), reference, narrow)
        if isinstance(gap, str):
            return replace(units, slots=(), refused=gap)
        if gap > tolerance:
            return replace(
                units, slots=(), refused=f"{_mixer(twin, units)}: zeroed units change outputs when cut"
            )
    return units


def _separating_subsets(count: int) -> list[Tensor]:
    """Non-empty, non-full subsets of units such that any two units are apart in one."""
    numbers = torch.arange(count)
    bits = [(numbers >> bit) & 1 == 1 for bit in range(max(1, (count - 1).bit_length()))]
    return [s for bit in bits for s in (bit, ~bit) if 0 < int(s.sum()) < count]


def _mixer(network: nn.Module, units: UnitSet) -> str:
    """Name the layer among the units' carriers that mixes units, if there is one."""
    for slot in units.slots:
        path = slot.tensor.rpartition(".")[0]
        layer = network.get_submodule(path)
        if isinstance(layer, nn.LayerNorm | nn.GroupNorm):
            return f"{type(layer).__name__} {path!r} mixes the units"
    return "an operation between the layers mixes the units"


def _random_twin(network: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs, float]:
    """Copy a network with random weights, in double precision where its forward allows it."""
    generator = torch.Generator().manual_seed(0)
    twin = copy.deepcopy(network).eval()
    for parameter in twin.parameters():
        if parameter.is_floating_point():
            scale = parameter.detach().double().square().mean().sqrt().clamp(min=1e-2)
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale
            parameter.data = (parameter.data.double() + noise).to(parameter.dtype)
    probe = tuple(x[:4] if x.shape[0] > 4 else x for x in inputs)
    try:
        double = copy.deepcopy(twin).double()
        wide = tuple(x.double() if x.is_floating_point() else x for x in probe)
        if all(y.dtype == torch.float64 for y in outputs(double, wide)):
            return double, wide, _PROOF_TOLERANCE
    except RuntimeError:
        pass  # a forward that fixes float32 is probed in float32
    return twin, probe, TOLERANCE


def _axis_of(units: UnitSet, sets: Sequence[UnitSet], axes: Sequence[int | None]) -> tuple[int, int] | None:
    """The input a set lies in and its axis; input sets stand in the order of the inputs with an axis."""
    if units.kind != "input":
        return None
    with_axis = [(place, axis) for place, axis in enumerate(axes) if axis is not None]
    return with_axis[[s.name for s in sets if s.kind == "input"].index(units.name)]


def _select(inputs: Inputs, axes: Sequence[int | None], columns: Sequence[Tensor]) -> Inputs:
    return tuple(
        x if axis is None else x.index_select(axis, kept)
        for x, axis, kept in zip(inputs, axes, columns, strict=True)
    )


def _places(network: nn.Module) -> dict[int, list[str]]:
    """All names of every tensor, by identity, so that ties survive the cut."""
    places: dict[int, list[str]] = {}
    for named in (network.named_parameters, network.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            places.setdefault(id(tensor), []).append(name)
    return places


def _get(network: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    return getattr(network.get_submodule(path), leaf)


def _set(network: nn.Module, name: str, tensor: Any) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(path), leaf, tensor)


def _sync(module: nn.Module) -> None:
    """Make a layer's size attributes say what its tensors say."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.modules.conv._ConvNd) and isinstance(weight, Tensor):
        first, second = weight.shape[:2]
        if isinstance(module, nn.modules.conv._ConvTransposeNd):
            module.in_channels, module.out_channels = first, second * module.groups
        elif module.groups > 1:
            module.groups = module.in_channels = module.out_channels = first
        else:
            module.in_channels, module.out_channels = second, first
        return
    if isinstance(module, nn.LayerNorm) and isinstance(weight, Tensor):
        module.normalized_shape = tuple(weight.shape)
        return
    for attribute, (tensor_name, dim) in _ATTRIBUTES.items():
        tensor = getattr(module, tensor_name, None)
        if hasattr(module, attribute) and isinstance(tensor, Tensor):
            setattr(module, attribute, tensor.shape[dim])


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
