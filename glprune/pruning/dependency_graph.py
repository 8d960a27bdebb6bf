"""Plan which weights belong to which unit by torch-pruning's dependency graph, as a second opinion.

This is the only module that imports torch-pruning. The model's inputs get a gate module each, since
the graph has no node for a raw input, and its outputs one too, so that units that reach the output
are found. The plan is only compared with the traced one.

References:
    Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023.
"""

from __future__ import annotations

import contextlib
import copy
import io
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from glprune.errors import first_line
from glprune.pruning.ids import UnitIds
from glprune.pruning.units import GroupKind, Role, TensorAxis, UnitSet

if TYPE_CHECKING:
    from glprune.data.splits import Inputs

Side = Literal["out", "in", "through"]
# a module of the graph, which side of it is cut, and (positions, units) along that side
_Member = tuple[nn.Module, Side, tuple[Tensor, Tensor]]


class _RefusedError(Exception):
    """A unit set cannot be planned; the message names the operation."""


class _DeadlineExceeded(BaseException):  # not an Exception: torch-pruning and `_members` catch those
    """torch-pruning took too long."""


class _Deadline:
    """A point in time after which ``check`` raises."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def check(self) -> None:
        """Raise _DeadlineExceeded if the time is over."""
        if time.monotonic() > self.end:
            raise _DeadlineExceeded


class _TimedList(list[Any]):
    """A list that checks a deadline whenever an iteration over it starts."""

    def __init__(self, items: Iterable[Any], deadline: _Deadline) -> None:
        super().__init__(items)
        self.deadline = deadline

    def __iter__(self) -> Iterator[Any]:
        self.deadline.check()
        return super().__iter__()


class _TimedGraph(tp.DependencyGraph):  # type: ignore[misc]  # torch-pruning has no types
    """A dependency graph that stops at a deadline.

    On some networks torch-pruning's search for a group never ends. Every step of that search iterates over
    the dependencies of one node, and every step of the shape inference looks up the pruner of a module:
    both check the deadline.
    """

    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self.deadline = deadline

    def build_dependency(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        """Build the graph of a model and make the search on it stop at the deadline."""
        super().build_dependency(model, *args, **kwargs)
        for node in self.module2node.values():
            node.dependencies = _TimedList(node.dependencies, self.deadline)
        self.deadline.check()

    def get_pruner_of_module(self, module: nn.Module) -> Any:
        """Look up the pruner of a module."""
        self.deadline.check()
        return super().get_pruner_of_module(module)


class _Gate(nn.Module):
    """Multiply an axis by ones: a node of the graph for a model's input or output."""

    def __init__(self, size: int, axis: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        shape = [1] * x.ndim
        shape[self.axis] = -1
        return x * self.weight.to(x.dtype).view(shape)


class _GatePruner(tp.pruner.function.BasePruningFunc):  # type: ignore[misc]  # torch-pruning has no types
    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: Any) -> int:
        return int(layer.weight.numel())

    get_in_channels = get_out_channels


class _Gated(nn.Module):
    """The model with a gate on every input and output."""

    def __init__(self, model: nn.Module, inputs: Inputs, axes: Sequence[int | None]) -> None:
        super().__init__()
        self.model = model
        self.entries = nn.ModuleList(
            _Gate(x.shape[axis], axis) if axis is not None and x.is_floating_point() else nn.Identity()
            for x, axis in zip(inputs, axes, strict=True)
        )
        with torch.no_grad():
            outputs = pytree.tree_leaves(model(*inputs))
        self.exits = nn.ModuleList(_Gate(y.shape[-1] if y.ndim > 1 else 1, -1) for y in outputs)

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        gated = [gate(x) for gate, x in zip(self.entries, inputs, strict=True)]
        outputs = pytree.tree_leaves(self.model(*gated))
        return [gate(y) for gate, y in zip(self.exits, outputs, strict=True)]


_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d)
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _parameters_along(module: nn.Module, side: Side) -> list[tuple[str, int, Role]]:
    """Return the tensors of a layer that units on one side of it lie in, with dimension and role."""
    if isinstance(module, (nn.Linear, *_CONVS)) and getattr(module, "groups", 1) == 1:
        return (
            [("weight", 1, "reader")] if side == "in" else [("weight", 0, "carrier"), ("bias", 0, "carrier")]
        )
    if isinstance(module, _TRANSPOSED) and module.groups == 1:
        return (
            [("weight", 0, "reader")] if side == "in" else [("weight", 1, "carrier"), ("bias", 0, "carrier")]
        )
    if isinstance(module, _CONVS) and module.groups == module.in_channels == module.out_channels:
        return [("weight", 0, "carrier"), ("bias", 0, "carrier")]
    if isinstance(module, _NORMS):
        return [(name, 0, "carrier") for name in ("weight", "bias", "running_mean", "running_var")]
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        return [("weight", 0, "carrier"), ("bias", 0, "carrier")]
    if isinstance(module, nn.PReLU):
        return [("weight", 0, "carrier")] if module.num_parameters > 1 else []
    if isinstance(module, nn.Embedding) and side == "out":
        return [("weight", 1, "carrier")]
    if isinstance(module, _Gate):
        return []
    raise _RefusedError(f"{type(module).__name__} has no exact cut")


class _GraphPlanner:
    """Plan the units of each root by one torch-pruning dependency graph."""

    def __init__(
        self, model: nn.Module, inputs: Inputs, axes: Sequence[int | None], deadline: _Deadline
    ) -> None:
        self.gated = _Gated(_copy_for_tracing(model), inputs, axes)
        self.names = {module: name for name, module in self.gated.model.named_modules()}
        self.tensors = _canonical_names(self.gated.model)
        # torch-pruning rebuilds index mappings at every query, so one graph serves all roots
        self.graph = _TimedGraph(deadline)
        pruners = {_Gate: _GatePruner()}
        with _quiet():
            self.graph.build_dependency(self.gated, inputs, customized_pruners=pruners, verbose=False)
        self.covered: set[nn.Module] = set()

    def roots(self) -> Iterator[tuple[str, GroupKind, nn.Module]]:
        """Yield inputs first, then every layer that begins units, in forward order."""
        for number, gate in enumerate(self.gated.entries):
            if isinstance(gate, _Gate):
                yield str(number), "input", gate
        order = {module: number for number, module in enumerate(self.gated.model.modules())}
        layers = [m for m in self.graph.module2node if isinstance(m, (nn.Linear, *_CONVS, *_TRANSPOSED))]
        for module in sorted(layers, key=lambda m: order[m]):
            yield self.names[module], "hidden", module

    def unit_set(self, name: str, kind: GroupKind, root: nn.Module) -> UnitSet | None:
        """Plan one root; None where a set planned before covers it or it feeds the output."""
        if root in self.covered:
            return None
        count = int(self.graph.get_out_channels(root))
        try:
            members = self._members(root, count)
            if any(module in self.gated.exits for module, _, _ in members):
                if kind == "hidden":
                    return None
                raise _RefusedError("the columns are added to the network's output")
            return UnitSet(name, kind, count, self._slots(members, count))
        except _RefusedError as refusal:
            return UnitSet(name, kind, count, (), str(refusal))

    def _members(self, root: nn.Module, count: int) -> list[_Member]:
        pruner = self.graph.get_pruner_of_module(root)
        try:
            with _quiet():
                group = self.graph.get_pruning_group(root, pruner.prune_out_channels, list(range(count)))
        except Exception as error:  # torch-pruning raises errors of any class
            raise _RefusedError(
                f"the dependency graph fails here ({type(error).__name__}: {first_line(error)})"
            ) from error
        members = []
        for item in group:
            module = item.dep.target.module
            side = self._side(module, item.dep.handler)
            if side != "in":
                self.covered.add(module)
            members.append((module, side, (torch.tensor(item.idxs), torch.tensor(item.root_idxs))))
        stray = [module for module, _, _ in members if isinstance(module, nn.Parameter)]
        if stray:
            raise _RefusedError(f"{self._owner(stray[0])} has no exact cut")
        return members

    def _side(self, module: nn.Module, handler: Callable[..., Any]) -> Side:
        pruner = self.graph.get_pruner_of_module(module)
        if pruner.prune_out_channels == pruner.prune_in_channels:
            return "through"
        return "out" if handler == pruner.prune_out_channels else "in"

    def _owner(self, parameter: nn.Parameter) -> str:
        """Describe a parameter outside the known layers by the layer it belongs to."""
        path, _, leaf = self.tensors[parameter].rpartition(".")
        layer = self.gated.model.get_submodule(path)
        return f"parameter {leaf!r} of {type(layer).__name__} {path!r}"

    def _parameters_along(self, module: nn.Module, side: Side) -> list[tuple[str, int, Role]]:
        try:
            return _parameters_along(module, side)
        except _RefusedError as refusal:
            raise _RefusedError(f"layer {self.names[module]!r}: {refusal}") from None

    def _slots(self, members: list[_Member], count: int) -> tuple[TensorAxis, ...]:
        owners: dict[tuple[str, int, Role], Tensor] = {}
        for module, side, (positions, units) in members:
            if module not in self.names:
                continue
            for attribute, dim, role in self._parameters_along(module, side):
                tensor = getattr(module, attribute)
                if tensor is not None:
                    key = (self.tensors[tensor], dim, role)
                    owner = owners.setdefault(key, torch.full((tensor.shape[dim],), -1))
                    _assign_units(owner, positions, units, key[0])
        if not any(role == "reader" for _, _, role in owners):
            raise _RefusedError("no layer reads these units through weights of its own")
        return tuple(
            TensorAxis(tensor, dim, UnitIds(owner), role) for (tensor, dim, role), owner in owners.items()
        )


def dependency_plans(
    model: nn.Module,
    inputs: Inputs,
    axes: Sequence[int | None],
    names: Sequence[str],
    seconds: float = 5.0,
) -> dict[str, UnitSet]:
    """Plan every input and layer by torch-pruning's dependency graph.

    Args:
        model: The network; it is copied, never changed.
        inputs: Example inputs, each (batch, ...), batch at least 2.
        axes: The axis of each input that holds its features, or None.
        names: The name of each input.
        seconds: Time limit; on some networks torch-pruning never ends.

    Returns:
        Name -> unit set, refused where the graph or a layer's type allows no plan; empty where torch-pruning
        cannot read the network or exceeds the time limit.

    References:
        Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023; the gates replace the
        graph's missing input node.
    """
    if any(isinstance(m, nn.RNNBase | nn.RNNCellBase) for m in model.modules()):
        return {}  # their gates are planned wrongly or not at all
    deadline = _Deadline(seconds)
    try:
        planner = _GraphPlanner(model, inputs, axes, deadline)
        planned = [planner.unit_set(name, kind, root) for name, kind, root in planner.roots()]
        deadline.check()
    except _DeadlineExceeded:
        return {}
    except Exception:  # noqa: BLE001 - torch-pruning raises any class; its plan is only compared
        return {}
    named = [
        replace(u, name=names[int(u.name)]) if u.kind == "input" else u for u in planned if u is not None
    ]
    return {units.name: units for units in named}


def _assign_units(owner: Tensor, positions: Tensor, units: Tensor, tensor: str) -> None:
    if positions.numel() and int(positions.max()) >= owner.numel():
        raise _RefusedError(f"{tensor!r} is indexed past its end")
    taken = owner[positions]
    if bool(((taken >= 0) & (taken != units)).any()):
        raise _RefusedError(f"{tensor!r} is shared between units")
    owner[positions] = units


def _copy_for_tracing(model: nn.Module) -> nn.Module:
    """Copy a model for tracing; the graph comes from autograd, so all parameters need gradients."""
    copied = copy.deepcopy(model).eval()
    for parameter in copied.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return copied


def _canonical_names(model: nn.Module) -> dict[Tensor, str]:
    names: dict[Tensor, str] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        names.setdefault(tensor, name)
    return names


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress torch-pruning's prints and warnings and enable gradients."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.enable_grad():
        warnings.simplefilter("ignore")
        yield
