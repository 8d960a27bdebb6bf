"""Watch a network's tensor operations and keep the books: nodes, joins, claims and marks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from glprune.pruning.labels import CONSTANT, Ids, Labels, compact, nodes, pairs, storage, tensors, varying

if TYPE_CHECKING:
    from glprune.data.splits import Inputs
    from glprune.pruning.units import Role

_MAX_PLANES = 6
REDUCTIONS = """
    sum mean amax amin max min argmax argmin var std var_mean std_mean prod logsumexp any all
    linalg_vector_norm norm median count_nonzero
"""
_COUNTED = frozenset(REDUCTIONS.split())


def is_reduction(name: str) -> bool:
    """Whether an operation of this name reduces over dimensions."""
    return name in _COUNTED


@dataclass(frozen=True)
class Axis:
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
    """Positions of a weight met units of the stream in one operation.

    Attributes:
        cells: Nodes of the weight's positions.
        ids: The node of the unit each of them met.
        role: ``reader`` if the weight is contracted with the units, else ``carrier``.
        scales: The weight multiplies the units, elementwise or by contraction.
        plane: Number of the label plane the units lie in.
    """

    cells: NDArray[np.int64]
    ids: NDArray[np.int64]
    role: Role
    scales: bool
    plane: int


@dataclass(frozen=True)
class Annotation:
    """Something that is true of some nodes, with the operation it comes from.

    Attributes:
        ids: Nodes.
        kind: ``refused`` forbids a cut; ``mixed`` makes it inexact; ``tied`` joined them;
            ``output`` says they are the network's output.
        reason: The operation and layer.
    """

    ids: NDArray[np.int64]
    kind: str
    reason: str


@dataclass
class Trace:
    """What one run of a network showed.

    Attributes:
        axes: Every axis whose positions are nodes, by growing start.
        pairs: Joined nodes, each (2, n).
        claims: Weights that met units.
        marks: Reasons.
        roots: Axes that began units, in the order they were met; inputs first.
        mixing: Numbers of the reductions that ran over units, counted over all reductions.
    """

    axes: list[Axis]
    pairs: list[NDArray[np.int64]] = field(default_factory=list)
    claims: list[WeightUse] = field(default_factory=list)
    marks: list[Annotation] = field(default_factory=list)
    roots: dict[Axis, None] = field(default_factory=dict)
    mixing: set[int] = field(default_factory=set)

    @property
    def nodes(self) -> int:
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
        """The same operation on another first argument."""
        return self.func(first, *self.args[1:], **self.kwargs)

    def argument(self, name: str) -> Any:
        """An argument by its name in the operation's schema, or its default."""
        for place, spec in enumerate(self.func._schema.arguments):
            if spec.name == name:
                return (
                    self.args[place] if place < len(self.args) else self.kwargs.get(name, spec.default_value)
                )
        return None


class Tracer(TorchDispatchMode):
    """Labels every tensor of one run.

    Args:
        network: The network, in evaluation mode.
        inputs: Its inputs, each (batch, ...).
        axes: The feature axis of each input, or None.
        rule_for: Gives the rule of an operation by its name and whether it is elementwise.
    """

    def __init__(
        self, network: nn.Module, inputs: Inputs, axes: Sequence[int | None], rule_for: RuleFor
    ) -> None:
        super().__init__()
        self.network, self.rule_for = network, rule_for
        self.inside: list[str] = []
        self.reductions = 0
        self.mixed: set[int] = set()
        self.written: dict[int, list[Ids]] = {}  # memory written in place -> labels of all of it
        self.labels: dict[int, tuple[Tensor, Labels]] = {}
        self.trace = Trace([])
        for place, (x, axis) in enumerate(zip(inputs, axes, strict=True)):
            planes = [] if axis is None else [self._axis(str(place), x, axis % x.ndim, place)]
            for made in list(self.trace.axes):
                self.trace.roots[made] = None
            self.labels[id(x)] = (x, Labels([p for p in planes if p is not None], False))
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            made_planes = [self._axis(name, tensor, dim, None) for dim in range(tensor.ndim)]
            self.labels[id(tensor)] = (tensor, Labels([p for p in made_planes if p is not None], True))
        self.starts = np.array([a.start for a in self.trace.axes])

    def _axis(self, name: str, tensor: Tensor, dim: int, source: int | None) -> Ids | None:
        size = tensor.shape[dim]
        if size < 2:
            return None  # nothing to choose from; it broadcasts
        axis = Axis(name, dim, self.trace.nodes + 1, size, source)
        self.trace.axes.append(axis)
        shape = [1] * tensor.ndim
        shape[dim] = size
        return (
            torch.arange(axis.start, axis.start + size, dtype=torch.float64).view(shape).expand(tensor.shape)
        )

    @contextlib.contextmanager
    def layers(self) -> Iterator[None]:
        """Keep the innermost running layer at hand, to name it in reasons."""
        handles = []
        for name, module in self.network.named_modules():
            shown = f"{type(module).__name__} {name!r}" if name else "the network's forward"
            handles.append(
                module.register_forward_pre_hook(lambda *_, shown=shown: self.inside.append(shown))
            )
            handles.append(module.register_forward_hook(lambda *_: self._leave(), always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _leave(self) -> None:
        if self.inside:
            self.inside.pop()

    def finish(self, outputs: Sequence[Tensor]) -> None:
        """Note which units the outputs hold."""
        for y in outputs:
            for ids in self.labels_of(y).planes:
                self.mark(ids, "output", "the network's output")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        known = [self.labels_of(t) for t in tensors((args, kwargs))]
        self.reductions += is_reduction(func.overloadpacket.__name__)
        out = func(*args, **kwargs)
        if any(k.planes or not k.weight for k in known if k is not CONSTANT):
            self._label(func, args, kwargs, out)
            written = torch.Tag.inplace in func.tags and torch.Tag.inplace_view not in func.tags
            if written and any(k is not CONSTANT for k in known[1:]):
                self._share(args[0])
        return out

    # --- labels ------------------------------------------------------------------------------

    def labels_of(self, tensor: Tensor) -> Labels:
        """The labels of a tensor."""
        found = self.labels.get(id(tensor))
        written = self.written.get(storage(tensor)) if self.written else None
        if written is not None:
            layout = (tensor.shape, tensor.stride(), tensor.storage_offset())
            return Labels([compact(ids.as_strided(*layout).clone()) for ids in written], False)
        return found[1] if found is not None else CONSTANT

    def _write(self, tensor: Tensor) -> None:
        """After a write in place: every view of the same memory sees the labels that were written."""
        planes = self.labels[id(tensor)][1].planes if id(tensor) in self.labels else []
        memory = self.written.get(storage(tensor), [])
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        memory += [torch.zeros(size, dtype=torch.float64) for _ in planes[len(memory) :]]
        layout = (tensor.shape, tensor.stride(), tensor.storage_offset())
        for number, ids in enumerate(memory):
            ids.as_strided(*layout).copy_(planes[number] if number < len(planes) else torch.zeros(()))
        self.written[storage(tensor)] = memory

    def set(self, tensor: Tensor, planes: Sequence[Ids], weight: bool) -> None:
        """Label an output; see :class:`glprune.pruning.labels.Labels`."""
        kept = [c for c in map(compact, planes) if bool(c.any())]
        if weight:  # a row taken from a table is no unit of what it is added to
            kept = [c for c in kept if varying(c)]
        if len(kept) > _MAX_PLANES:
            for ids in kept[_MAX_PLANES:]:
                self.mark(ids, "refused", f"too many kinds of units meet in {self.where()}")
            kept = kept[:_MAX_PLANES]
        self.labels[id(tensor)] = (tensor, Labels(kept, weight))

    def _label(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        name = func.overloadpacket.__name__.rstrip("_")
        call = OpCall(name, func, args, kwargs, out)
        try:
            self.rule_for(name, torch.Tag.pointwise in func.tags)(self, call)
        except Exception as error:  # arguments a rule was not written for: their units stay
            self.refuse_units(call, f"{name} in {self.where()} is beyond its rule ({type(error).__name__})")

    def _share(self, tensor: Tensor) -> None:
        """Note a write in place; what other views of the memory held stays where it was."""
        after = self.labels.pop(id(tensor), None)
        if storage(tensor) not in self.written:
            for other, labels in list(self.labels.values()):
                if labels.planes and not labels.weight and storage(other) == storage(tensor):
                    self.labels[id(other)] = (other, labels)
                    self._write(other)
        if after is not None:
            self.labels[id(tensor)] = after
            self._write(tensor)

    def refuse_units(self, call: OpCall, reason: str) -> None:
        """Refuse all units that enter an operation; its outputs hold none."""
        entering = tensors((call.args, call.kwargs))
        weight = all(self.labels_of(t).weight for t in entering)
        for tensor in entering:
            for ids in self.labels_of(tensor).planes:
                self.mark(ids, "refused", reason)
        for y in tensors(call.out):
            self.set(y, [], weight)

    # --- joining, claiming, marking ----------------------------------------------------------

    def where(self) -> str:
        """The innermost layer that is running, by type and name."""
        return self.inside[-1] if self.inside else "the network's forward"

    def mark(self, ids: Ids, kind: str, reason: str) -> None:
        """Note something of all units of a plane; see :class:`Mark`."""
        found = nodes(ids)
        if found.size:
            self.trace.marks.append(Annotation(found, kind, reason))
        if kind == "mixed":
            self.mixed |= set(found.tolist())

    def join(self, a: Ids, b: Ids) -> None:
        """Make the units that stand at the same place in two planes one."""
        met = pairs(a, b)
        if met.size:
            self.trace.pairs.append(met)

    def tie(self, ids: Ids, dim: int, reason: str) -> Ids:
        """Join all units along a dimension; return the ids left, of size 1 there."""
        top = ids.amax(dim, keepdim=True)
        self.join(ids, top.expand_as(ids))
        self.mark(ids, "tied", reason)
        return top

    def claim(self, cells: Ids, ids: Ids, role: Role, scales: bool, plane: int) -> bool:
        """Note that positions of a weight met units; see :class:`Claim`. False where none did."""
        met = pairs(cells, ids)
        if met.size:
            self.trace.claims.append(WeightUse(met[0], met[1], role, scales, plane))
        return bool(met.size)

    def begin(self, ids: Ids) -> None:
        """Note the axes whose positions begin units of the stream."""
        for place in np.unique(np.searchsorted(self.starts, nodes(ids), side="right") - 1):
            self.trace.roots.setdefault(self.trace.axes[int(place)])


RuleFor = Callable[[str, bool], Callable[[Tracer, OpCall], None]]
