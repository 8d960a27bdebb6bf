"""Follow units through a network: from the weights that make them to the weights that read them.

The network runs once on an example while every tensor operation is watched. Each tensor carries
label planes: arrays of its own shape that say which unit every element belongs to, one plane for
each independent way of dividing it into units (features and embedding dimensions, say). Views and
concatenations move labels as they move values, so slices, reshapes and permutations need no rule
of their own; elementwise operations join the units they pair; a contraction with a weight ends a
unit at the weight's positions, which become its reader, and begins the units of its output.
Operations that mix units are noted by name. Nothing here is trusted: :mod:`glprune.proof` tests
every plan on numbers.

Positions of weights and input columns are nodes; joined nodes are found as connected components.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from glprune.units import Inputs, Role

Ids = Tensor  # float64, the shape of the labelled tensor; 0 is nobody, any operation can move it
_MAX_PLANES = 6

REDUCTIONS = frozenset(
    """sum mean amax amin max min argmax argmin var std var_mean std_mean prod logsumexp any all
    linalg_vector_norm norm median count_nonzero""".split()
)


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
class Claim:
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
class Mark:
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
    claims: list[Claim] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    roots: dict[Axis, None] = field(default_factory=dict)
    mixing: set[int] = field(default_factory=set)

    @property
    def nodes(self) -> int:
        """Number of nodes; they are numbered from 1."""
        return self.axes[-1].start + self.axes[-1].size - 1 if self.axes else 0


def trace(network: nn.Module, inputs: Inputs, axes: Sequence[int | None]) -> Trace:
    """Run a network once and follow its units.

    Args:
        network: The network, in evaluation mode; it is not changed.
        inputs: Example inputs, each (batch, ...), batch at least 2.
        axes: The axis of each input that holds its features; None where it has none.
    """
    watcher = _Watcher(network, inputs, axes)
    with torch.no_grad(), _plain_operations(), watcher.layers(), watcher:
        outputs = network(*inputs)
    watcher.finish(_tensors(outputs))
    return watcher.trace


@contextlib.contextmanager
def _plain_operations() -> Iterator[None]:
    """Run attention as matrix products and softmax instead of fused kernels."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@dataclass
class _Labels:
    """Label planes of a tensor; ``weight`` where it derives from weights alone."""

    planes: list[Ids]
    weight: bool


class _Watcher(TorchDispatchMode):
    def __init__(self, network: nn.Module, inputs: Inputs, axes: Sequence[int | None]) -> None:
        super().__init__()
        self.network = network
        self.inside: list[str] = []
        self.reductions = 0
        self._mixed: set[int] = set()
        self.written: dict[int, list[Ids]] = {}  # memory written in place -> labels of all of it
        self.labels: dict[int, tuple[Tensor, _Labels]] = {}
        self.trace = Trace([])
        for place, (x, axis) in enumerate(zip(inputs, axes, strict=True)):
            planes = [] if axis is None else [self._axis(str(place), x, axis % x.ndim, place)]
            for made in list(self.trace.axes):
                self.trace.roots[made] = None
            self.labels[id(x)] = (x, _Labels([p for p in planes if p is not None], False))
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            made_planes = [self._axis(name, tensor, dim, None) for dim in range(tensor.ndim)]
            self.labels[id(tensor)] = (tensor, _Labels([p for p in made_planes if p is not None], True))
        self.starts = np.array([a.start for a in self.trace.axes])

    def _axis(self, name: str, tensor: Tensor, dim: int, source: int | None) -> Ids | None:
        size = tensor.shape[dim]
        if size < 2:
            return None  # nothing to choose from; it broadcasts
        axis = Axis(name, dim, self.trace.nodes + 1, size, source)
        self.trace.axes.append(axis)
        shape = [1] * tensor.ndim
        shape[dim] = size
        return torch.arange(axis.start, axis.start + size, dtype=torch.float64).view(shape).expand(tensor.shape)

    @contextlib.contextmanager
    def layers(self) -> Iterator[None]:
        """Keep the innermost running layer at hand, to name it in reasons."""
        handles = []
        for name, module in self.network.named_modules():
            shown = f"{type(module).__name__} {name!r}" if name else "the network's forward"
            handles.append(module.register_forward_pre_hook(lambda *_, shown=shown: self.inside.append(shown)))
            handles.append(module.register_forward_hook(lambda *_: self._leave(), always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _leave(self) -> None:
        if self.inside:
            self.inside.pop()

    def finish(self, outputs: Sequence[Any]) -> None:
        for y in outputs:
            for ids in self._of(y).planes:
                self._mark(ids, "output", "the network's output")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        known = [self._of(t) for t in _tensors((args, kwargs))]
        self.reductions += func.overloadpacket.__name__ in REDUCTIONS
        out = func(*args, **kwargs)
        if any(k.planes or not k.weight for k in known if k is not _CONSTANT):
            self._label(func, args, kwargs, out)
            written = torch.Tag.inplace in func.tags and torch.Tag.inplace_view not in func.tags
            if written and any(k is not _CONSTANT for k in known[1:]):
                self._share(args[0])
        return out

    # --- labels ------------------------------------------------------------------------------

    def _of(self, tensor: Tensor) -> _Labels:
        found = self.labels.get(id(tensor))
        written = self.written.get(_storage(tensor)) if self.written else None
        if written is not None:
            layout = (tensor.shape, tensor.stride(), tensor.storage_offset())
            return _Labels([_compact(ids.as_strided(*layout).clone()) for ids in written], False)
        return found[1] if found is not None else _CONSTANT

    def _write(self, tensor: Tensor) -> None:
        """After a write in place: every view of the same memory sees the labels that were written."""
        planes = self.labels[id(tensor)][1].planes if id(tensor) in self.labels else []
        memory = self.written.get(_storage(tensor), [])
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        memory += [torch.zeros(size, dtype=torch.float64) for _ in planes[len(memory) :]]
        layout = (tensor.shape, tensor.stride(), tensor.storage_offset())
        for number, ids in enumerate(memory):
            ids.as_strided(*layout).copy_(planes[number] if number < len(planes) else torch.zeros(()))
        self.written[_storage(tensor)] = memory

    def _set(self, tensor: Tensor, planes: Sequence[Ids], weight: bool) -> None:
        kept = [c for c in map(_compact, planes) if bool(c.any())]
        if len(kept) > _MAX_PLANES:
            for ids in kept[_MAX_PLANES:]:
                self._mark(ids, "refused", f"too many kinds of units meet in {self._where()}")
            kept = kept[:_MAX_PLANES]
        self.labels[id(tensor)] = (tensor, _Labels(kept, weight))

    def _label(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        name = func.overloadpacket.__name__.rstrip("_")
        rule = _RULES.get(name)
        if rule is None and torch.Tag.pointwise in func.tags:
            rule = _Watcher._pointwise
        (rule or _Watcher._unknown)(self, _Call(name, func, args, kwargs, out))

    def _share(self, tensor: Tensor) -> None:
        """Note a write in place; what other views of the memory held stays where it was."""
        after = self.labels.pop(id(tensor), None)
        if _storage(tensor) not in self.written:
            for other, labels in list(self.labels.values()):
                if labels.planes and not labels.weight and _storage(other) == _storage(tensor):
                    self.labels[id(other)] = (other, labels)
                    self._write(other)
        if after is not None:
            self.labels[id(tensor)] = after
            self._write(tensor)

    # --- joining, claiming, marking ----------------------------------------------------------

    def _where(self) -> str:
        return self.inside[-1] if self.inside else "the network's forward"

    def _mark(self, ids: Ids, kind: str, reason: str) -> None:
        nodes = _nodes(ids)
        if nodes.size:
            self.trace.marks.append(Mark(nodes, kind, reason))
        if kind == "mixed":
            self._mixed |= set(nodes.tolist())

    def _join(self, a: Ids, b: Ids) -> None:
        pairs = _pairs(a, b)
        if pairs.size:
            self.trace.pairs.append(pairs)

    def _tie(self, ids: Ids, dim: int, reason: str) -> Ids:
        """Join all units along a dimension; return the ids left, of size 1 there."""
        top = ids.amax(dim, keepdim=True)
        self._join(ids, top.expand_as(ids))
        self._mark(ids, "tied", reason)
        return top

    def _claim(self, cells: Ids, ids: Ids, role: Role, scales: bool, plane: int) -> bool:
        pairs = _pairs(cells, ids)
        if pairs.size:
            self.trace.claims.append(Claim(pairs[0], pairs[1], role, scales, plane))
        return bool(pairs.size)

    def _begin(self, ids: Ids) -> None:
        """Note the axes whose positions begin units of the stream."""
        for place in np.unique(np.searchsorted(self.starts, _nodes(ids), side="right") - 1):
            self.trace.roots.setdefault(self.trace.axes[int(place)])

    # --- rules -------------------------------------------------------------------------------

    def _unknown(self, call: _Call) -> None:
        for tensor in _tensors((call.args, call.kwargs)):
            for ids in self._of(tensor).planes:
                self._mark(ids, "refused", f"{call.name} in {self._where()} has no rule")
        self._plain(call)

    def _plain(self, call: _Call) -> None:
        """Mark the outputs as computed, with no units of their own."""
        weight = all(self._of(t).weight for t in _tensors((call.args, call.kwargs)))
        for y in _tensors(call.out):
            self._set(y, [], weight)

    def _constant(self, call: _Call) -> None:
        """Outputs that do not depend on values."""

    def _move(self, call: _Call) -> None:
        """Views, slices, permutations: labels move as values do."""
        first = call.args[0]
        labels = self._of(first)
        for tensor in _tensors((call.args[1:], call.kwargs)):
            for ids in self._of(tensor).planes:
                if not self._of(tensor).weight:
                    self._mark(ids, "refused", f"units choose positions by {call.name} in {self._where()}")
        if call.name in ("view", "_unsafe_view", "view_copy"):  # labels need not be contiguous where values are
            moved = [[ids.reshape(call.out.shape)] for ids in labels.planes]
        else:
            moved = [_tensors(call.again(ids.view_as(ids))) for ids in labels.planes]
        for number, y in enumerate(_tensors(call.out)):
            self._set(y, [m[number] for m in moved], labels.weight)

    def _pad(self, call: _Call) -> None:
        labels = self._of(call.args[0])
        moved = [torch.constant_pad_nd(ids, list(call.args[1]), 0.0) for ids in labels.planes]
        self._set(call.out, moved, labels.weight)

    def _cat(self, call: _Call) -> None:
        """Concatenation and stacking: planes that vary along the same dimensions continue each other."""
        parts = list(call.args[0])
        labels = [self._of(t) for t in parts]
        weight = all(part.weight for part in labels)
        rows: list[list[Ids | None]] = []
        for place, part in enumerate(labels):
            free = list(range(len(rows)))
            for ids in part.planes:
                match = next((r for r in free if any(_varying(o) == _varying(ids) for o in rows[r] if o is not None)), None)
                if match is None:
                    rows.append([None] * len(parts))
                    match = len(rows) - 1
                else:
                    free.remove(match)
                rows[match][place] = ids
        planes = []
        for row in rows:
            filled = [torch.zeros(t.shape, dtype=torch.float64) if ids is None else ids for ids, t in zip(row, parts, strict=True)]
            planes.append(call.again(filled))
        self._set(call.out, planes, weight)

    def _pointwise(self, call: _Call) -> None:
        """Elementwise operations: units that meet are one unit; weights that meet units are carriers."""
        if not isinstance(call.out, Tensor):
            self._unknown(call)
            return
        shape = call.out.shape
        operands = [self._of(t) for t in _tensors((call.args, call.kwargs))]
        spread = [
            _Labels([p.broadcast_to(shape) for p in o.planes], o.weight)
            for o in operands
            if o is not _CONSTANT
        ]
        scales = call.name in _SCALING
        self._set(call.out, *self._meet(spread, scales))

    def _meet(self, operands: Sequence[_Labels], scales: bool) -> tuple[list[Ids], bool]:
        streams = [o for o in operands if not o.weight]
        planes = self._united([o.planes for o in streams or operands])
        if not streams:
            return planes, True
        for weight in (o for o in operands if o.weight):
            for cells in weight.planes:
                met = [
                    self._claim(cells, ids, "carrier", scales, number)
                    for number, ids in enumerate(list(planes))
                    if _same_division(cells, ids)
                ]
                if not any(met):
                    planes.append(cells)
                    if scales:
                        self._begin(cells)
        return planes, False

    def _united(self, operands: Sequence[Sequence[Ids]]) -> list[Ids]:
        """Join the planes of several operands where one divides as the other does."""
        planes: list[Ids] = []
        for operand in operands:
            fresh = []
            for ids in operand:
                matched = False
                for place, other in enumerate(planes):
                    if _same_division(other, ids):
                        self._join(other, ids)
                        planes[place] = torch.where(other > 0, other, ids)
                        matched = True
                if not matched:
                    fresh.append(ids)
            planes += fresh
        return planes

    def _contract(self, a: _Labels, b: _Labels, name: str, shape: torch.Size) -> tuple[list[Ids], bool]:
        """Matrix product of ``(..., m, k)`` and ``(..., k, n)``."""
        if a.weight and b.weight:
            a = _Labels(a.planes, False)
            planes, _ = self._contract(a, b, name, shape)
            return planes, True
        along = {"a": [p for p in a.planes if (p.ndim - 1) in _varying(p)], "b": [p for p in b.planes if (p.ndim - 2) in _varying(p)]}
        rest_a = [p for p in a.planes if (p.ndim - 1) not in _varying(p)]
        rest_b = [p for p in b.planes if (p.ndim - 2) not in _varying(p)]
        through = [[p.select(-1, 0).unsqueeze(-1).expand(shape) for p in rest_a], [p.select(-2, 0).unsqueeze(-2).expand(shape) for p in rest_b]]
        if b.weight or a.weight:
            stream, cells = (along["a"], along["b"]) if b.weight else ([p.mT for p in along["b"]], [p.mT for p in along["a"]])
            made = through[1] if b.weight else through[0]
            kept = through[0] if b.weight else through[1]
            if stream and cells:
                self._read(stream, cells, name)
            elif stream:
                kept = kept + [q for p in stream for q in self._tied_out(p, -1, name, shape)]
            for ids in made:
                self._begin(ids)
            return self._united([kept]) + made, False
        tied_a = [q for p in along["a"] for q in self._tied_out(p, -1, name, shape)]
        tied_b = [q for p in along["b"] for q in self._tied_out(p, -2, name, shape)]
        return self._united([through[0] + tied_a, through[1] + tied_b]), False

    def _tied_out(self, ids: Ids, dim: int, name: str, shape: torch.Size) -> list[Ids]:
        """Units summed over become one; where a softmax mixed them before, they lose their trace."""
        if self._mixed & set(_nodes(ids).tolist()):
            self._mark(ids, "mixed", f"{name} in {self._where()}")
            return []
        return [self._tie(ids, dim, f"{name} in {self._where()}").expand(shape)]

    def _read(self, stream: Sequence[Ids], cells: Sequence[Ids], name: str) -> None:
        """Units of (..., m, k) end at the cells of (..., k, n)."""
        for cell in cells:
            if (cell.ndim - 1) in _varying(cell):
                for ids in stream:
                    self._mark(ids, "refused", f"{name} in {self._where()} reads a reshaped weight")
                continue
            across = cell.select(-1, 0).unsqueeze(-2)
            for number, ids in enumerate(stream):
                self._claim(*torch.broadcast_tensors(across, ids), "reader", True, number)

    def _matmul(self, call: _Call) -> None:
        a, b = call.args[-2:] if call.name in ("mm", "bmm") else call.args[1:3]
        product = self._contract(self._of(a), self._of(b), call.name, call.out.shape)
        if call.name in ("mm", "bmm"):
            self._set(call.out, *product)
            return
        added = self._of(call.args[0])
        spread = [p.broadcast_to(call.out.shape) for p in added.planes]
        self._set(call.out, *self._meet([_Labels(*product), _Labels(spread, added.weight)], False))

    def _convolution(self, call: _Call) -> None:
        x, weight, bias = call.args[:3]
        transposed, groups = bool(call.args[6]), int(call.args[8])
        planes = []
        for ids in self._of(x).planes:
            channels = _settled(ids, range(2, x.ndim))
            if channels is None:
                self._mark(ids, "refused", f"convolution in {self._where()} runs over the units")
            elif 1 in _varying(_compact(channels)):
                planes.append(channels.flatten(1))
        of_weight = self._of(weight).planes
        reads, makes = (0, 1) if transposed else (1, 0)
        cells = [_line(p, reads) for p in of_weight if _varying(p) == (reads,)]
        made = [_line(p, makes) for p in of_weight if _varying(p) == (makes,)]
        shape = (call.out.shape[0], call.out.shape[1])
        if groups == 1:
            for number, ids in enumerate(planes):
                for cell in cells:
                    self._claim(cell.expand_as(ids), ids, "reader", True, number)
            for ids in made:
                self._begin(ids)
            out = [ids.expand(shape) for ids in made]
        elif groups == x.shape[1]:
            repeat = call.out.shape[1] // groups
            out = [ids.repeat_interleave(repeat, dim=1) for ids in planes]
            rows = [_line(p, 0) for p in of_weight if _varying(p) == (0,)]
            if transposed:
                rows = [cell.repeat_interleave(repeat) for cell in rows]
            for number, ids in enumerate(out):
                for cell in rows:
                    self._claim(cell.expand(shape), ids, "carrier", True, number)
            if not out:  # nobody's channels pass through; their own weights begin units
                for ids in rows:
                    self._begin(ids)
                out = [ids.expand(shape) for ids in rows]
        else:
            for ids in [*planes, *made]:
                self._mark(ids, "refused", f"grouped convolution {self._where()}")
            out = []
        full = [_wide(ids, call.out) for ids in out]
        if bias is not None:
            added = [_wide(p.expand(shape), call.out) for p in self._of(bias).planes]
            full, _ = self._meet([_Labels(full, False), _Labels(added, True)], False)
        self._set(call.out, full, False)

    def _normalised(self, call: _Call) -> None:
        """BatchNorm, LayerNorm, RMSNorm, GroupNorm: affine carriers; statistics may mix units."""
        x = call.args[0]
        y = _tensors(call.out)[0]
        planes = list(self._of(x).planes)
        if call.name == "native_group_norm":
            planes = [self._norm_groups(ids, int(call.args[6])) for ids in planes]
        last = range(x.ndim - len(call.args[1]), x.ndim) if call.name in _LAYER_NORMS else ()
        for ids in planes:
            if set(_varying(ids)) & set(last):
                where = self._where()
                self._mark(ids, "mixed", where if "Norm" in where else f"{call.name} in {where}")
        tensors = [t for t in _tensors((call.args[1:], call.kwargs))]
        spread = []
        for tensor in tensors:
            for ids in self._of(tensor).planes:
                aligned = ids if last else ids.view(1, -1, *[1] * (x.ndim - 2))
                spread.append(aligned.broadcast_to(x.shape))
        result, _ = self._meet([_Labels(planes, False), _Labels(spread, True)], False)
        self._set(y, result, False)

    def _norm_groups(self, ids: Ids, groups: int) -> Ids:
        """Channels that share a norm's statistics are one unit."""
        channels = ids.unflatten(1, (groups, -1))
        top = channels.flatten(2).amax(2)
        spread = top.view(*top.shape, *[1] * (ids.ndim - 1)).expand_as(channels).flatten(1, 2)
        self._join(ids, spread)
        self._mark(ids, "tied", self._where())
        return ids

    def _embedding(self, call: _Call) -> None:
        weight, index = call.args[:2]
        planes = [p.unsqueeze(-1).expand(call.out.shape) for p in self._of(index).planes]
        made = [_line(p, 1).expand(call.out.shape) for p in self._of(weight).planes if _varying(p) == (1,)]
        for ids in made:
            self._begin(ids)
        self._set(call.out, planes + made, False)

    def _reduction(self, call: _Call) -> None:
        """Sums, means, maxima over dimensions: exact where the units do not lie along them."""
        x = call.args[0]
        labels = self._of(x)
        dims = call.argument("dim")
        listed = range(x.ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
        over = {d % x.ndim for d in listed} if x.ndim else set()
        keep = bool(call.argument("keepdim"))
        planes = []
        for ids in labels.planes:
            left = _settled(ids, sorted(over))
            if left is not None:
                planes.append(left if keep or not over else left.squeeze(sorted(over)))
            elif not labels.weight:
                self._mark(ids, "mixed", f"{call.name} in {self._where()}")
                self.trace.mixing.add(self.reductions)
        for y in _tensors(call.out):
            self._set(y, [p.expand(y.shape) for p in planes], labels.weight)

    def _along(self, call: _Call) -> None:
        """Softmax and running sums: the shape stays, positions along one dimension mix."""
        x = call.args[0]
        labels = self._of(x)
        dim = call.argument("dim")
        for ids in labels.planes:
            if dim is None or (int(dim) % x.ndim) in _varying(ids):
                self._mark(ids, "mixed", f"{call.name.strip('_')} in {self._where()}")
        for y in _tensors(call.out):
            if y.shape == x.shape:
                self._set(y, labels.planes, labels.weight)

    def _spatial(self, call: _Call) -> None:
        """Pooling and upsampling: positions mix, channels do not."""
        x = call.args[0]
        labels = self._of(x)
        y = _tensors(call.out)[0]
        first = 1 if "1d" in call.name else 3 if "3d" in call.name else 2
        planes = []
        for ids in labels.planes:
            channels = _settled(ids, range(x.ndim - first, x.ndim))
            if channels is None:
                self._mark(ids, "refused", f"{call.name} in {self._where()} runs over the units")
            else:
                planes.append(channels.expand(y.shape))
        self._set(y, planes, labels.weight)

    def _glu(self, call: _Call) -> None:
        """Gated linear unit: the two halves meet element by element."""
        dim = int(call.argument("dim"))
        labels = self._of(call.args[0])
        halves = [list(p.chunk(2, dim)) for p in labels.planes]
        parts = [_Labels([h[side] for h in halves], labels.weight) for side in (0, 1)]
        self._set(call.out, *self._meet(parts, True))

    def _weight_norm(self, call: _Call) -> None:
        """Direction and length of a weight; the norm over zeroed columns is the norm without them."""
        of = [self._of(t) for t in call.args[:2]]
        shape = call.args[0].shape
        planes = self._united([[p.broadcast_to(shape) for p in o.planes] for o in of])
        self._set(_tensors(call.out)[0], planes, True)

    def _scatter(self, call: _Call) -> None:
        """One-hot encoding of labelled indices: every entry of the code belongs to the index's unit."""
        base, dim, index = call.args[0], int(call.args[1]), call.args[2]
        if self._of(base).planes or any(dim % index.ndim in _varying(p) for p in self._of(index).planes):
            self._unknown(call)
            return
        planes = [p.select(dim, 0).unsqueeze(dim).expand(call.out.shape) for p in self._of(index).planes]
        self._set(call.out, planes, False)

    def _copy(self, call: _Call) -> None:
        source = self._of(call.args[1])
        self._set(call.out, [p.broadcast_to(call.out.shape) for p in source.planes], source.weight)


_CONSTANT = _Labels([], True)


@dataclass(frozen=True)
class _Call:
    """One tensor operation as it ran."""

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    def again(self, first: Any) -> Any:
        """The same operation on another first argument."""
        return self.func(first, *self.args[1:], **self.kwargs)

    def argument(self, name: str) -> Any:
        """An argument by its name in the operation's schema, or its default."""
        for place, spec in enumerate(self.func._schema.arguments):
            if spec.name == name:
                return self.args[place] if place < len(self.args) else self.kwargs.get(name, spec.default_value)
        return None


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(tree) if isinstance(t, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _varying(ids: Ids) -> tuple[int, ...]:
    """Dimensions the labels vary along; compact planes have stride 0 along all others."""
    return tuple(d for d in range(ids.ndim) if ids.shape[d] > 1 and ids.stride(d) != 0)


def _compact(ids: Ids) -> Ids:
    """Give dimensions along which nothing varies stride 0."""
    for dim in range(ids.ndim):
        if ids.shape[dim] > 1 and ids.stride(dim) != 0:
            first = ids.narrow(dim, 0, 1)
            if bool((ids == first).all()):
                ids = first.expand_as(ids)
    return ids


def _core(ids: Ids) -> Ids:
    """The labels once, without the dimensions they do not vary along."""
    for dim in range(ids.ndim):
        if ids.stride(dim) == 0 and ids.shape[dim] > 1:
            ids = ids.narrow(dim, 0, 1)
    return ids


def _line(ids: Ids, dim: int) -> Ids:
    """Labels that vary along one dimension only, as a vector."""
    return ids.movedim(dim, 0).reshape(ids.shape[dim], -1)[:, 0]


def _settled(ids: Ids, dims: Sequence[int]) -> Ids | None:
    """The one label along some dimensions, of size 1 there; None where several units lie along them.

    Positions of nobody, such as padding, do not count.
    """
    if not dims:
        return ids
    top = ids.amax(tuple(dims), keepdim=True)
    return top if bool(((ids == top) | (ids == 0)).all()) else None


def _wide(ids: Ids, like: Tensor) -> Ids:
    return ids.view(*ids.shape, *[1] * (like.ndim - 2)).expand(like.shape)


def _nodes(ids: Ids) -> NDArray[np.int64]:
    nodes = np.unique(_core(ids).numpy()).astype(np.int64)
    return nodes[nodes > 0]


def _pairs(a: Ids, b: Ids) -> NDArray[np.int64]:
    """Distinct pairs of labels at the same place, (2, n); nobody is in no pair."""
    for dim in range(a.ndim):  # where neither varies, one position says it all
        if a.shape[dim] > 1 and a.stride(dim) == 0 and b.stride(dim) == 0:
            a, b = a.narrow(dim, 0, 1), b.narrow(dim, 0, 1)
    flat = torch.stack([a.reshape(-1), b.reshape(-1)])
    both = flat[:, (flat > 0).all(0)].numpy().astype(np.int64)
    return np.unique(both, axis=1) if both.size else both


def _same_division(a: Ids, b: Ids) -> bool:
    """Tell whether one plane's units are made of the other's, where both have units."""
    if not set(_varying(a)) & set(_varying(b)):
        return not _varying(a) and not _varying(b)
    pairs = _pairs(a, b)
    if not pairs.size:
        return False
    return any(len(np.unique(side)) == pairs.shape[1] for side in pairs)


_SCALING = {"mul", "div", "true_divide", "addcmul"}
_LAYER_NORMS = {"native_layer_norm", "_fused_rms_norm"}
_Rule = Callable[[_Watcher, _Call], None]
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(
        """view _unsafe_view reshape _reshape_alias t transpose permute unsqueeze squeeze expand slice select
        split split_with_sizes unsafe_split unsafe_split_with_sizes unbind chunk narrow flip roll repeat
        index_select gather index detach alias lift_fresh unfold diagonal tril triu
        pixel_shuffle pixel_unshuffle channel_shuffle im2col reflection_pad1d reflection_pad2d
        reflection_pad3d replication_pad1d replication_pad2d replication_pad3d movedim swapaxes rot90
        repeat_interleave view_copy take_along_dim""".split(),
        _Watcher._move,
    ),
    **dict.fromkeys("mm bmm addmm baddbmm".split(), _Watcher._matmul),
    **dict.fromkeys(("cat", "stack"), _Watcher._cat),
    **dict.fromkeys(
        """native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
        native_layer_norm _fused_rms_norm native_group_norm""".split(),
        _Watcher._normalised,
    ),
    **dict.fromkeys(
        REDUCTIONS,
        _Watcher._reduction,
    ),
    **dict.fromkeys(
        "_softmax _log_softmax cumsum cumprod cummax cummin logcumsumexp sort _safe_softmax".split(),
        _Watcher._along,
    ),
    **dict.fromkeys(
        """max_pool1d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d
        _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d
        adaptive_avg_pool1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d
        upsample_linear1d upsample_bicubic2d upsample_trilinear3d _upsample_nearest_exact1d
        _upsample_nearest_exact2d""".split(),
        _Watcher._spatial,
    ),
    **dict.fromkeys(
        """zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty rand_like
        randn_like _local_scalar_dense aminmax sym_size is_nonzero""".split(),
        _Watcher._constant,
    ),
    **dict.fromkeys(
        "clone _to_copy contiguous _prelu_kernel hardswish nan_to_num".split(), _Watcher._pointwise
    ),
    "glu": _Watcher._glu,
    "_weight_norm_interface": _Watcher._weight_norm,
    "constant_pad_nd": _Watcher._pad,
    "convolution": _Watcher._convolution,
    "embedding": _Watcher._embedding,
    "scatter": _Watcher._scatter,
    "copy": _Watcher._copy,
}
