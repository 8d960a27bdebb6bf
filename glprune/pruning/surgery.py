"""Cut a network: keep some positions of its tensors, resize attributes, fill removed input columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from glprune.pruning.ids import Positions

if TYPE_CHECKING:
    from glprune.data.splits import Inputs
    from glprune.pruning.ids import UnitIds
    from glprune.pruning.units import UnitChoice

# module attribute -> (tensor, dimension) whose size it repeats
_SIZE_ATTRIBUTES: dict[str, tuple[str, int]] = {
    "in_features": ("weight", 1),
    "out_features": ("weight", 0),
    "num_features": ("running_mean", 0),
    "embedding_dim": ("weight", 1),
    "num_parameters": ("weight", 0),
    "input_size": ("weight_ih_l0", 1),
    "hidden_size": ("weight_hh_l0", 1),
}


@dataclass(frozen=True)
class ConstantFill:
    """Feed constants for the removed columns of an input to a network that is written for all of them.

    A forward pre-hook of the network: it takes the kept columns and gives the network the full
    width, so that removal is exact where the forward fixes slices and sizes.

    Attributes:
        place: Number of the input.
        axis: Its feature axis.
        kept: Kept columns, int64.
        values: One value for each original column; those of kept columns are not used.
    """

    place: int
    axis: int
    kept: Tensor
    values: Tensor
    _removed: Tensor = field(init=False, repr=False, compare=False)
    _order: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # once: an exporter cannot compute positions whose number depends on values
        removed = _complement(self.kept, self.values.numel())
        object.__setattr__(self, "_removed", self.values[removed])
        object.__setattr__(self, "_order", torch.argsort(torch.cat([self.kept, removed])))

    def __call__(self, module: nn.Module, inputs: Inputs) -> Inputs:
        """Insert the constants into one of the inputs."""
        x = inputs[self.place]
        axis = self.axis % x.ndim
        shape = list(x.shape)
        shape[axis] = len(self._removed)
        line = [1] * x.ndim
        line[axis] = -1
        constants = self._removed.to(x.dtype).view(line).expand(shape)
        full = torch.cat([x, constants], dim=axis).index_select(axis, self._order)
        return (*inputs[: self.place], full, *inputs[self.place + 1 :])

    def then(self, first: ConstantFill) -> ConstantFill:
        """Combine ``first`` and this fill, which follows it, into one."""
        values = first.values.clone()
        values[first.kept] = self.values
        return ConstantFill(self.place, self.axis, first.kept[self.kept], values)


@dataclass(frozen=True)
class PruningPlan:
    """Everything that turns the dense network into the slim one.

    Attributes:
        kept: ``(tensor, dim) -> kept positions``, int64, in the dense network's numbering.
        attributes: ``(module path, attribute) -> value``, for sizes a forward reads.
        padding: Input number -> the fill of its removed columns.
    """

    kept: Mapping[tuple[str, int], Positions] = field(default_factory=dict)
    attributes: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    padding: Mapping[int, ConstantFill] = field(default_factory=dict)

    def apply_(self, network: nn.Module) -> None:
        """Cut a dense network, in place."""
        slice_(network, self.kept)
        for (path, name), value in self.attributes.items():
            setattr(network.get_submodule(path), name, value)
        for padding in self.padding.values():
            network.register_forward_pre_hook(padding, prepend=True)

    def merge(self, other: PruningPlan) -> PruningPlan:
        """Combine two plans for the same dense network."""
        kept = dict(self.kept)
        for key, positions in other.kept.items():
            both = positions if key not in kept else kept[key][torch.isin(kept[key], positions)]
            kept[key] = Positions(both)
        return PruningPlan(kept, {**self.attributes, **other.attributes}, {**self.padding, **other.padding})

    def then(self, second: PruningPlan) -> PruningPlan:
        """Combine this plan with one for its slim network, in the dense network's numbering."""
        kept = dict(self.kept)
        for key, positions in second.kept.items():
            kept[key] = Positions(self.kept[key][positions]) if key in self.kept else positions
        padding = dict(self.padding)
        for place, later in second.padding.items():
            padding[place] = later.then(padding[place]) if place in padding else later
        return PruningPlan(kept, {**self.attributes, **second.attributes}, padding)


def plan_pruning(
    network: nn.Module, choices: Iterable[UnitChoice], inputs: Inputs, axes: Sequence[int | None]
) -> PruningPlan:
    """Plan how to cut all but the chosen units.

    Args:
        network: The dense network; its attributes are read.
        choices: Unit sets and the units of each to keep, int64.
        inputs: Example inputs; the first row's values replace removed columns that are fed a constant.
        axes: The feature axis of each input.
    """
    plan = PruningPlan()
    for units, keep in choices:
        alive = torch.zeros(units.count, dtype=torch.bool)
        alive[keep] = True
        kept = {
            (s.tensor, s.dim): Positions(torch.nonzero((s.unit < 0) | alive[s.unit.clamp(min=0)]).flatten())
            for s in (units.slots if units.removal == "cut" else ())
        }
        attributes = {
            (a.module, a.name): _resized_attributes(
                network.get_submodule(a.module), a.name, a.per_unit, units.count, len(keep)
            )
            for a in units.attributes
        }
        padding = {}
        if units.removal == "constant" and units.source is not None and len(keep) < units.count:
            axis = axes[units.source]
            assert axis is not None  # an input without a feature axis has no units
            padding[units.source] = _constant_fill(units.source, inputs[units.source], axis, keep)
        plan = plan.merge(PruningPlan(kept, attributes, padding))
    return plan


def kept_columns(choices: Iterable[UnitChoice], inputs: Inputs, axes: Sequence[int | None]) -> list[Tensor]:
    """Return the kept columns of every input.

    Args:
        choices: Unit sets and the units of each to keep, int64.
        inputs: Full inputs.
        axes: The feature axis of each input; None where it has none.
    """
    columns = list(all_columns(inputs, axes))
    for units, keep in choices:
        if units.source is not None:
            columns[units.source] = keep
    return columns


def _constant_fill(place: int, x: Tensor, axis: int, keep: UnitIds) -> ConstantFill:
    """Take the constants from the first row, at the first position along every other axis."""
    row = x.movedim(axis, -1)
    while row.ndim > 1:
        row = row[0]
    return ConstantFill(place, axis, keep, row.clone())


def _resized_attributes(module: nn.Module, name: str, per_unit: int, count: int, left: int) -> Any:
    """Return an attribute's value where ``left`` of ``count`` units stay."""
    value = getattr(module, name)
    old, new = per_unit * count, per_unit * left
    if isinstance(value, tuple | list):
        return type(value)(new if v == old else v for v in value)
    return new


def slice_(network: nn.Module, kept: Mapping[tuple[str, int], Positions]) -> None:
    """Keep only the given positions along tensor dimensions, in place.

    Tied tensors stay tied, ``requires_grad`` stays as it was, and size attributes of the
    layers follow their tensors.

    Args:
        network: The network to cut.
        kept: ``(tensor name, dim) -> kept positions``, int64.
    """
    channels_per_group = {
        module: module.num_channels // module.num_groups
        for module in network.modules()
        if isinstance(module, nn.GroupNorm)
    }
    names = _names_by_tensor(network)
    for (name, dim), positions in kept.items():
        old = _get_tensor(network, name)
        data = old.detach().index_select(dim, positions).contiguous()
        new = nn.Parameter(data, old.requires_grad) if isinstance(old, nn.Parameter) else data
        for alias in names[id(old)]:
            _set_tensor(network, alias, new)
        names[id(new)] = names[id(old)]
    for module in network.modules():
        _update_sizes(module)
    for module, per_group in channels_per_group.items():
        if module.weight is not None:
            module.num_channels = module.weight.shape[0]
            module.num_groups = max(1, module.num_channels // per_group)


def all_columns(inputs: Inputs, axes: Sequence[int | None]) -> tuple[Tensor, ...]:
    """Return every position along each input's feature axis; none where it has no such axis."""
    return tuple(
        torch.arange(0 if axis is None else x.shape[axis]) for x, axis in zip(inputs, axes, strict=True)
    )


def _complement(kept: Tensor, size: int) -> Tensor:
    out = torch.ones(size, dtype=torch.bool)
    out[kept] = False
    return torch.nonzero(out).flatten()


def named_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers of a network, also the buffers that its state dict leaves out."""
    parameters = {name: p.detach() for name, p in network.named_parameters(remove_duplicate=False)}
    return parameters | dict(network.named_buffers(remove_duplicate=False))


def _names_by_tensor(network: nn.Module) -> dict[int, list[str]]:
    """Return all names of every tensor, by identity, so that tied tensors stay tied."""
    names: dict[int, list[str]] = {}
    for named in (network.named_parameters, network.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            names.setdefault(id(tensor), []).append(name)
    return names


def _get_tensor(network: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(network.get_submodule(path), leaf)
    return tensor


def _set_tensor(network: nn.Module, name: str, tensor: Any) -> None:
    path, _, leaf = name.rpartition(".")
    module = network.get_submodule(path)
    parameters = module._parameters  # noqa: SLF001 - parametrised modules refuse assignment of other shapes
    if isinstance(tensor, nn.Parameter) and leaf in parameters:
        parameters[leaf] = tensor
        if isinstance(module, nn.RNNBase):
            setattr(module, leaf, tensor)  # updates its flat list of weights too
        return
    setattr(module, leaf, tensor)


def _update_sizes(module: nn.Module) -> None:
    """Set a layer's size attributes to the sizes of its tensors."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.modules.conv._ConvNd) and isinstance(weight, Tensor):
        first, second = weight.shape[:2]
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        if module.groups > 1:  # depthwise: each group reads one channel
            per_group = module.out_channels // module.groups
            module.groups = first // (1 if transposed else per_group)
            module.in_channels, module.out_channels = module.groups, module.groups * per_group
        elif transposed:
            module.in_channels, module.out_channels = first, second
        else:
            module.in_channels, module.out_channels = second, first
        return
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and isinstance(weight, Tensor):
        module.normalized_shape = tuple(weight.shape)
        return
    if isinstance(module, nn.LSTM) and module.proj_size:
        module.proj_size, module.hidden_size = getattr(module, "weight_hr_l0").shape  # noqa: B009
        module.input_size = getattr(module, "weight_ih_l0").shape[1]  # noqa: B009
        return
    if isinstance(module, nn.RNNCellBase):
        module.input_size, module.hidden_size = module.weight_ih.shape[1], module.weight_hh.shape[1]
        return
    for attribute, (tensor_name, dim) in _SIZE_ATTRIBUTES.items():
        tensor = getattr(module, tensor_name, None)
        if hasattr(module, attribute) and isinstance(tensor, Tensor) and tensor.ndim > dim:
            setattr(module, attribute, tensor.shape[dim])
