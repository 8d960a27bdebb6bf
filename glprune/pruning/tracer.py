"""Record a network's tensor operations: nodes, joined nodes, uses of weights and annotations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from glprune.pruning.ids import NodeIds
from glprune.pruning.labels import (
    CONSTANT,
    LabelPlane,
    Labels,
    compact,
    node_ids,
    node_pairs,
    storage_address,
    tensors_in,
    varying_dims,
)

if TYPE_CHECKING:
    from glprune.data.splits import Inputs
    from glprune.pruning.units import Role

_MAX_PLANES = 6
AnnotationKind = Literal["refused", "mixed", "tied", "output"]
REDUCTIONS = """
    sum mean amax amin max min argmax argmin var std var_mean std_mean prod logsumexp any all
    linalg_vector_norm norm median count_nonzero
"""
_COUNTED = frozenset(REDUCTIONS.split())


def is_reduction(name: str) -> bool:
    """Return whether an operation of this name reduces over dimensions."""
    return name in _COUNTED


@dataclass(frozen=True)
class TracedAxis:
    """Nodes of one dimension of one tensor: ``start``, ..., ``start + size - 1``.

    Attributes:
        tensor: Name in the state dict, or the number of an input.
        dim: The dimension.
        start: First node.
        size: Number of positions.
        source: The input it belongs to, or None for a tensor of the state dict.
    """

    tensor: str
    dim: int
    start: int
    size: int
    source: int | None = None


@dataclass(frozen=True)
class WeightUse:
    """One operation on positions of a weight and on units of an activation.

    Attributes:
        weight_nodes: Nodes of the weight's positions.
        unit_nodes: The node of the unit that each of them meets.
        role: ``reader`` if the weight is contracted with the units, else ``carrier``.
        scales: Whether the weight multiplies the units, elementwise or by contraction.
        plane: Number of the label plane the units lie in.
    """

    weight_nodes: NodeIds
    unit_nodes: NodeIds
    role: Role
    scales: bool
    plane: int


@dataclass(frozen=True)
class Annotation:
    """A property of some nodes, with the operation it comes from.

    Attributes:
        nodes: Nodes.
        kind: ``refused`` forbids a cut; ``mixed`` makes it inexact; ``tied`` joins the nodes;
            ``output`` marks outputs of the network.
        reason: The operation and layer.
    """

    nodes: NodeIds
    kind: AnnotationKind
    reason: str


@dataclass
class Trace:
    """The record of one run of a network.

    Attributes:
        axes: Every axis whose positions are nodes, by ascending start.
        joined: Pairs of joined nodes, each (2, n).
        weight_uses: Operations on weights and units.
        annotations: Properties of nodes.
        roots: Axes that begin units, inputs first, then in the order of the run.
        mixing_reductions: Numbers of the reductions over units, counted over all reductions.
    """

    axes: list[TracedAxis]
    joined: list[NodeIds] = field(default_factory=list)
    weight_uses: list[WeightUse] = field(default_factory=list)
    annotations: list[Annotation] = field(default_factory=list)
    roots: dict[TracedAxis, None] = field(default_factory=dict)
    mixing_reductions: set[int] = field(default_factory=set)

    @property
    def n_nodes(self) -> int:
        """Number of nodes; they are numbered from 1."""
        return self.axes[-1].start + self.axes[-1].size - 1 if self.axes else 0


@dataclass(frozen=True)
class OpCall:
    """One tensor operation as it ran."""

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    def repeat(self, first: Any) -> Any:
        """Run the same operation on another first argument."""
        return self.func(first, *self.args[1:], **self.kwargs)

    def argument(self, name: str) -> Any:
        """Return an argument by its name in the operation's schema, or its default."""
        schema = self.func._schema  # noqa: SLF001 - an OpOverload has no public schema
        for number, spec in enumerate(schema.arguments):
            if spec.name == name:
                given = number < len(self.args)
                return self.args[number] if given else self.kwargs.get(name, spec.default_value)
        return None


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch's __init_subclass__
    """Label every tensor of one run.

    Args:
        network: The network, in evaluation mode.
        inputs: Its inputs, each (batch, ...).
        axes: The feature axis of each input, or None.
        rule_for: Returns the rule of an operation, given its name and whether it is elementwise.
    """

    def __init__(
        self, network: nn.Module, inputs: Inputs, axes: Sequence[int | None], rule_for: RuleFor
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.network, self.rule_for = network, rule_for
        self.running_layers: list[str] = []
        self.reductions = 0
        self.mixed_nodes: set[int] = set()
        self.written_labels: dict[
            int, list[LabelPlane]
        ] = {}  # address of memory written in place -> its labels
        self.labels: dict[int, tuple[Tensor, Labels]] = {}
        self.trace = Trace([])
        for number, (x, axis) in enumerate(zip(inputs, axes, strict=True)):
            planes = [] if axis is None else [self._add_axis(str(number), x, axis % x.ndim, number)]
            for made in list(self.trace.axes):
                self.trace.roots[made] = None
            self.labels[id(x)] = (x, Labels([p for p in planes if p is not None], False))
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            made_planes = [self._add_axis(name, tensor, dim, None) for dim in range(tensor.ndim)]
            self.labels[id(tensor)] = (tensor, Labels([p for p in made_planes if p is not None], True))
        self.starts = np.array([a.start for a in self.trace.axes])

    def _add_axis(self, name: str, tensor: Tensor, dim: int, source: int | None) -> LabelPlane | None:
        size = tensor.shape[dim]
        if size < 2:
            return None  # one position broadcasts and is never cut
        axis = TracedAxis(name, dim, self.trace.n_nodes + 1, size, source)
        self.trace.axes.append(axis)
        shape = [1] * tensor.ndim
        shape[dim] = size
        return (
            torch.arange(axis.start, axis.start + size, dtype=torch.float64).view(shape).expand(tensor.shape)
        )

    @contextlib.contextmanager
    def track_layers(self) -> Iterator[None]:
        """Record which layers are running, so that reasons name the innermost one."""
        handles = []
        for name, module in self.network.named_modules():
            shown = f"{type(module).__name__} {name!r}" if name else "the network's forward"
            handles.append(
                module.register_forward_pre_hook(lambda *_, shown=shown: self.running_layers.append(shown))
            )
            handles.append(module.register_forward_hook(lambda *_: self._leave_layer(), always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _leave_layer(self) -> None:
        if self.running_layers:
            self.running_layers.pop()

    def finish(self, outputs: Sequence[Tensor]) -> None:
        """Annotate the units that the outputs hold."""
        for y in outputs:
            for ids in self.labels_of(y).planes:
                self.annotate(ids, "output", "the network's output")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        known = [self.labels_of(t) for t in tensors_in((args, kwargs))]
        self.reductions += is_reduction(func.overloadpacket.__name__)
        out = func(*args, **kwargs)
        if any(k.planes or not k.weight for k in known if k is not CONSTANT):
            self._label(func, args, kwargs, out)
            written = torch.Tag.inplace in func.tags and torch.Tag.inplace_view not in func.tags
            if written and any(k is not CONSTANT for k in known[1:]):
                self._note_inplace_write(args[0])
        return out

    # --- labels ------------------------------------------------------------------------------

    def labels_of(self, tensor: Tensor) -> Labels:
        """Return the labels of a tensor; CONSTANT where it has none."""
        found = self.labels.get(id(tensor))
        written = self.written_labels.get(storage_address(tensor)) if self.written_labels else None
        if written is not None:
            layout = (tensor.shape, tensor.stride(), tensor.storage_offset())
            return Labels([compact(ids.as_strided(*layout).clone()) for ids in written], False)
        return found[1] if found is not None else CONSTANT

    def _write_labels(self, tensor: Tensor) -> None:
        """Copy the labels of a tensor to its memory, where every view of that memory finds them."""
        planes = self.labels[id(tensor)][1].planes if id(tensor) in self.labels else []
        memory = self.written_labels.get(storage_address(tensor), [])
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        memory += [torch.zeros(size, dtype=torch.float64) for _ in planes[len(memory) :]]
        layout = (tensor.shape, tensor.stride(), tensor.storage_offset())
        for number, ids in enumerate(memory):
            ids.as_strided(*layout).copy_(planes[number] if number < len(planes) else torch.zeros(()))
        self.written_labels[storage_address(tensor)] = memory

    def set_labels(self, tensor: Tensor, planes: Sequence[LabelPlane], weight: bool) -> None:
        """Label an output; for ``weight`` see ``glprune.pruning.labels.Labels``."""
        kept = [c for c in map(compact, planes) if bool(c.any())]
        if weight:  # a single row of a table is not a unit of what it is added to
            kept = [c for c in kept if varying_dims(c)]
        if len(kept) > _MAX_PLANES:
            for ids in kept[_MAX_PLANES:]:
                self.annotate(ids, "refused", f"too many kinds of units meet in {self.current_layer()}")
            kept = kept[:_MAX_PLANES]
        self.labels[id(tensor)] = (tensor, Labels(kept, weight))

    def _label(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        name = func.overloadpacket.__name__.rstrip("_")
        call = OpCall(name, func, args, kwargs, out)
        try:
            self.rule_for(name, torch.Tag.pointwise in func.tags)(self, call)
        except Exception as error:  # noqa: BLE001 - arguments beyond a rule: their units are kept
            self.refuse_units(
                call, f"{name} in {self.current_layer()} is beyond its rule ({type(error).__name__})"
            )

    def _note_inplace_write(self, tensor: Tensor) -> None:
        """Record a write in place; elements that were not written keep the labels of other views."""
        after = self.labels.pop(id(tensor), None)
        if storage_address(tensor) not in self.written_labels:
            for other, labels in list(self.labels.values()):
                if labels.planes and not labels.weight and storage_address(other) == storage_address(tensor):
                    self.labels[id(other)] = (other, labels)
                    self._write_labels(other)
        if after is not None:
            self.labels[id(tensor)] = after
            self._write_labels(tensor)

    def refuse_units(self, call: OpCall, reason: str) -> None:
        """Refuse all units that enter an operation; its outputs get no labels."""
        entering = tensors_in((call.args, call.kwargs))
        weight = all(self.labels_of(t).weight for t in entering)
        for tensor in entering:
            for ids in self.labels_of(tensor).planes:
                self.annotate(ids, "refused", reason)
        for y in tensors_in(call.out):
            self.set_labels(y, [], weight)

    # --- joining nodes, recording uses, annotating ----------------------------------------------------------

    def current_layer(self) -> str:
        """Return the type and name of the innermost layer that is running."""
        return self.running_layers[-1] if self.running_layers else "the network's forward"

    def annotate(self, ids: LabelPlane, kind: AnnotationKind, reason: str) -> None:
        """Annotate all units of a plane; see ``Annotation``."""
        found = node_ids(ids)
        if found.size:
            self.trace.annotations.append(Annotation(found, kind, reason))
        if kind == "mixed":
            self.mixed_nodes |= set(found.tolist())

    def join(self, a: LabelPlane, b: LabelPlane) -> None:
        """Join the units at the same place of two planes."""
        met = node_pairs(a, b)
        if met.size:
            self.trace.joined.append(met)

    def tie(self, ids: LabelPlane, dim: int, reason: str) -> LabelPlane:
        """Join all units along a dimension; return the labels left, of size 1 there."""
        top = ids.amax(dim, keepdim=True)
        self.join(ids, top.expand_as(ids))
        self.annotate(ids, "tied", reason)
        return top

    def use_weight(self, weight: LabelPlane, ids: LabelPlane, role: Role, scales: bool, plane: int) -> bool:
        """Record a use of a weight, see ``WeightUse``; return whether any position meets a unit."""
        met = node_pairs(weight, ids)
        if met.size:
            self.trace.weight_uses.append(WeightUse(NodeIds(met[0]), NodeIds(met[1]), role, scales, plane))
        return bool(met.size)

    def begin_units(self, ids: LabelPlane) -> None:
        """Record the axes whose positions begin units."""
        for number in np.unique(np.searchsorted(self.starts, node_ids(ids), side="right") - 1):
            self.trace.roots.setdefault(self.trace.axes[int(number)])


RuleFor = Callable[[str, bool], Callable[[Tracer, OpCall], None]]
