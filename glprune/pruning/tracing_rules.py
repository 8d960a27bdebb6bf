"""How labels pass through each tensor operation.

A view moves labels as it moves values. An elementwise operation joins the units that meet and notes
the weights that meet them. A contraction with a weight ends units at the weight's positions, their
reader, and begins the units of its output; a contraction of two activations ties what it sums over.
Norms, softmax and reductions over units are noted as mixing them. An operation without a rule refuses
all units that enter it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from glprune.pruning.labels import (
    CONSTANT,
    Ids,
    Labels,
    broadcast_channels,
    compact,
    line,
    nodes,
    reduce_label,
    same_partition,
    tensors,
    varying,
)
from glprune.pruning.tracer import REDUCTIONS, OpCall, Tracer


def _unknown(w: Tracer, call: OpCall) -> None:
    w.refuse_units(call, f"{call.name} in {w.where()} has no rule")


def _constant(w: Tracer, call: OpCall) -> None:
    """Outputs that do not depend on values."""


def _move(w: Tracer, call: OpCall) -> None:
    """Views, slices, permutations: labels move as values do."""
    first = call.args[0]
    labels = w.labels_of(first)
    for tensor in tensors((call.args[1:], call.kwargs)):
        for ids in w.labels_of(tensor).planes:
            if not w.labels_of(tensor).weight:
                w.mark(ids, "refused", f"units choose positions by {call.name} in {w.where()}")
    if call.name in ("view", "_unsafe_view", "view_copy"):  # labels need not be contiguous where values are
        moved = [[ids.reshape(call.out.shape)] for ids in labels.planes]
    else:
        moved = [tensors(call.repeat(ids.view_as(ids))) for ids in labels.planes]
    for number, y in enumerate(tensors(call.out)):
        w.set(y, [m[number] for m in moved], labels.weight)


def _pad(w: Tracer, call: OpCall) -> None:
    labels = w.labels_of(call.args[0])
    moved = [torch.constant_pad_nd(ids, list(call.args[1]), 0.0) for ids in labels.planes]
    w.set(call.out, moved, labels.weight)


def _cat(w: Tracer, call: OpCall) -> None:
    """Concatenation and stacking: planes that vary along the same dimensions continue each other."""
    parts = list(call.args[0])
    labels = [w.labels_of(t) for t in parts]
    rows: list[dict[int, Ids]] = []
    for place, part in enumerate(labels):
        for ids in part.planes:
            fits = (row for row in rows if place not in row and _continues(row, ids))
            row = next(fits, None)
            if row is None:
                rows.append(row := {})
            row[place] = ids
    filled = [
        [row.get(place, torch.zeros(t.shape, dtype=torch.float64)) for place, t in enumerate(parts)]
        for row in rows
    ]
    w.set(call.out, [call.repeat(ids) for ids in filled], all(part.weight for part in labels))


def _continues(row: dict[int, Ids], ids: Ids) -> bool:
    return any(varying(other) == varying(ids) for other in row.values())


def _pointwise(w: Tracer, call: OpCall) -> None:
    """Elementwise operations: units that meet are one unit; weights that meet units are carriers."""
    if not isinstance(call.out, Tensor):
        _unknown(w, call)
        return
    shape = call.out.shape
    operands = [w.labels_of(t) for t in tensors((call.args, call.kwargs))]
    spread = [
        Labels([p.broadcast_to(shape) for p in o.planes], o.weight) for o in operands if o is not CONSTANT
    ]
    scales = call.name in _SCALING
    w.set(call.out, *_meet(w, spread, scales))


def _meet(w: Tracer, operands: Sequence[Labels], scales: bool) -> tuple[list[Ids], bool]:
    streams = [o for o in operands if not o.weight]
    planes = _united(w, [o.planes for o in streams or operands])
    if not streams:
        return planes, True
    for weight in (o for o in operands if o.weight):
        for cells in weight.planes:
            met = [
                w.claim(cells, ids, "carrier", scales, number)
                for number, ids in enumerate(list(planes))
                if same_partition(cells, ids)
            ]
            if not any(met):
                planes.append(cells)
                if scales:
                    w.begin(cells)
    return planes, False


def _united(w: Tracer, operands: Sequence[Sequence[Ids]]) -> list[Ids]:
    """Join the planes of several operands where one divides as the other does."""
    planes: list[Ids] = []
    for operand in operands:
        fresh = []
        for ids in operand:
            matched = False
            for place, other in enumerate(planes):
                if same_partition(other, ids):
                    w.join(other, ids)
                    planes[place] = compact(torch.where(other > 0, other, ids))
                    matched = True
            if not matched:
                fresh.append(ids)
        planes += fresh
    return planes


def _contract(w: Tracer, a: Labels, b: Labels, name: str, shape: torch.Size) -> tuple[list[Ids], bool]:
    """Matrix product of ``(..., m, k)`` and ``(..., k, n)``."""
    if a.weight and not b.weight:  # the transposed product, so that the weight stands on the right
        turned = torch.Size((*shape[:-2], shape[-1], shape[-2]))
        planes, weight = _contract(w, _turned(b), _turned(a), name, turned)
        return [ids.mT for ids in planes], weight
    ends, passes = _split(a.planes, -1)
    cells, makes = _split(b.planes, -2)
    through = [ids.select(-1, 0).unsqueeze(-1).expand(shape) for ids in passes]
    made = [ids.select(-2, 0).unsqueeze(-2).expand(shape) for ids in makes]
    if b.weight:
        if cells:
            _read(w, ends, cells, name)
        else:
            through += [q for ids in ends for q in _tied_out(w, ids, -1, name, shape)]
        for ids in made:
            w.begin(ids)
        return through + made, a.weight
    left = [q for ids in ends for q in _tied_out(w, ids, -1, name, shape)]
    right = [q for ids in cells for q in _tied_out(w, ids, -2, name, shape)]
    return _united(w, [through + left, made + right]), False


def _split(planes: Sequence[Ids], dim: int) -> tuple[list[Ids], list[Ids]]:
    """Planes that vary along a dimension, and those that do not."""
    along = [ids for ids in planes if ids.ndim + dim in varying(ids)]
    return along, [ids for ids in planes if ids.ndim + dim not in varying(ids)]


def _turned(labels: Labels) -> Labels:
    return Labels([ids.mT for ids in labels.planes], labels.weight)


def _tied_out(w: Tracer, ids: Ids, dim: int, name: str, shape: torch.Size) -> list[Ids]:
    """Units summed over become one; where a softmax mixed them before, they lose their trace."""
    if w.mixed & set(nodes(ids).tolist()):
        w.mark(ids, "mixed", f"{name} in {w.where()}")
        return []
    return [w.tie(ids, dim, f"{name} in {w.where()}").expand(shape)]


def _read(w: Tracer, stream: Sequence[Ids], cells: Sequence[Ids], name: str) -> None:
    """Units of (..., m, k) end at the cells of (..., k, n)."""
    for cell in cells:
        if (cell.ndim - 1) in varying(cell):
            for ids in stream:
                w.mark(ids, "refused", f"{name} in {w.where()} reads a reshaped weight")
            continue
        across = cell.select(-1, 0).unsqueeze(-2)
        for number, ids in enumerate(stream):
            shape = torch.broadcast_shapes(across.shape, ids.shape)
            w.claim(across.expand(shape), ids.expand(shape), "reader", True, number)


def _matmul(w: Tracer, call: OpCall) -> None:
    a, b = call.args[-2:] if call.name in ("mm", "bmm") else call.args[1:3]
    product = _contract(w, w.labels_of(a), w.labels_of(b), call.name, call.out.shape)
    if call.name in ("mm", "bmm"):
        w.set(call.out, *product)
        return
    added = w.labels_of(call.args[0])
    spread = [p.broadcast_to(call.out.shape) for p in added.planes]
    w.set(call.out, *_meet(w, [Labels(*product), Labels(spread, added.weight)], False))


def _convolution(w: Tracer, call: OpCall) -> None:
    """Dense, depthwise and grouped convolutions, transposed ones too."""
    x, bias = call.args[0], call.args[2]
    groups = int(call.args[8])
    channels = _channels(w, x)
    if groups == 1:
        out = _dense_convolution(w, call, channels)
    elif groups == x.shape[1]:
        out = _depthwise_convolution(w, call, channels)
    else:
        out = _grouped_convolution(w, call, channels)
    full = [broadcast_channels(ids, call.out) for ids in out]
    if bias is not None:
        shape = call.out.shape[:2]
        added = [broadcast_channels(p.expand(shape), call.out) for p in w.labels_of(bias).planes]
        full, _ = _meet(w, [Labels(full, False), Labels(added, True)], False)
    w.set(call.out, full, False)


def _channels(w: Tracer, x: Tensor) -> list[Ids]:
    """Return the planes of a convolution's input that vary along its channels, shape (batch, channels)."""
    planes = []
    for ids in w.labels_of(x).planes:
        channels = reduce_label(ids, range(2, x.ndim))
        if channels is None:
            w.mark(ids, "refused", f"convolution in {w.where()} runs over the units")
        elif 1 in varying(compact(channels)):
            planes.append(channels.flatten(1))
    return planes


def _along_dimension(w: Tracer, weight: Tensor, dim: int) -> list[Ids]:
    """Return the planes of a weight that vary along one dimension alone, as vectors."""
    return [line(p, dim) for p in w.labels_of(weight).planes if varying(p) == (dim,)]


def _output_dim(call: OpCall) -> int:
    """Return the dimension of a convolution's weight that its output channels lie along."""
    return 1 if bool(call.args[6]) else 0


def _dense_convolution(w: Tracer, call: OpCall, channels: Sequence[Ids]) -> list[Ids]:
    """The weight reads every input channel and begins the output channels."""
    weight, made_by = call.args[1], _output_dim(call)
    for number, ids in enumerate(channels):
        for cell in _along_dimension(w, weight, 1 - made_by):
            w.claim(cell.expand_as(ids), ids, "reader", True, number)
    made = _along_dimension(w, weight, made_by)
    for ids in made:
        w.begin(ids)
    return [ids.expand(call.out.shape[:2]) for ids in made]


def _depthwise_convolution(w: Tracer, call: OpCall, channels: Sequence[Ids]) -> list[Ids]:
    """Every channel passes through; its weights are carriers."""
    shape = call.out.shape[:2]
    repeat = shape[1] // int(call.args[8])
    rows = _along_dimension(w, call.args[1], 0)
    if _output_dim(call) == 1:
        rows = [cell.repeat_interleave(repeat) for cell in rows]
    if not channels:  # the channels belong to no unit yet, so that the weights begin units
        for ids in rows:
            w.begin(ids)
        return [ids.expand(shape) for ids in rows]
    out = [ids.repeat_interleave(repeat, dim=1) for ids in channels]
    for number, ids in enumerate(out):
        for cell in rows:
            w.claim(cell.expand(shape), ids, "carrier", True, number)
    return out


def _grouped_convolution(w: Tracer, call: OpCall, channels: Sequence[Ids]) -> list[Ids]:
    """Every output channel reads a part of the input channels: neither can be cut."""
    for ids in [*channels, *_along_dimension(w, call.args[1], _output_dim(call))]:
        w.mark(ids, "refused", f"grouped convolution {w.where()}")
    return []


def _normalised(w: Tracer, call: OpCall) -> None:
    """BatchNorm, LayerNorm, RMSNorm, GroupNorm: affine carriers; statistics may mix units."""
    x = call.args[0]
    y = tensors(call.out)[0]
    planes = list(w.labels_of(x).planes)
    if call.name == "native_group_norm":
        planes = [_norm_groups(w, ids, int(call.args[6])) for ids in planes]
    last = range(x.ndim - len(call.args[1]), x.ndim) if call.name in _LAYER_NORMS else ()
    for ids in planes:
        if set(varying(ids)) & set(last):
            where = w.where()
            w.mark(ids, "mixed", where if "Norm" in where else f"{call.name} in {where}")
    spread = []
    for tensor in tensors((call.args[1:], call.kwargs)):
        for ids in w.labels_of(tensor).planes:
            aligned = ids if last else ids.view(1, -1, *[1] * (x.ndim - 2))
            spread.append(aligned.broadcast_to(x.shape))
    result, _ = _meet(w, [Labels(planes, False), Labels(spread, True)], False)
    w.set(y, result, False)


def _norm_groups(w: Tracer, ids: Ids, groups: int) -> Ids:
    """Channels that share a norm's statistics are one unit."""
    channels = ids.unflatten(1, (groups, -1))
    top = channels.flatten(2).amax(2)
    spread = top.view(*top.shape, *[1] * (ids.ndim - 1)).expand_as(channels).flatten(1, 2)
    w.join(ids, spread)
    w.mark(ids, "tied", w.where())
    return ids


def _embedding(w: Tracer, call: OpCall) -> None:
    weight, index = call.args[:2]
    planes = [p.unsqueeze(-1).expand(call.out.shape) for p in w.labels_of(index).planes]
    made = [line(p, 1).expand(call.out.shape) for p in w.labels_of(weight).planes if varying(p) == (1,)]
    for ids in made:
        w.begin(ids)
    w.set(call.out, planes + made, False)


def _reduction(w: Tracer, call: OpCall) -> None:
    """Sums, means, maxima over dimensions: exact where the units do not lie along them."""
    x = call.args[0]
    labels = w.labels_of(x)
    dims = call.argument("dim")
    listed = range(x.ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    over = {d % x.ndim for d in listed} if x.ndim else set()
    keep = bool(call.argument("keepdim"))
    planes = []
    for ids in labels.planes:
        left = reduce_label(ids, sorted(over))
        if left is None and not labels.weight and set(varying(ids)) - over:
            left = _tied(w, ids, sorted(over), call.name)  # a sum within each head ties the head
        if left is not None:
            planes.append(left if keep or not over else left.squeeze(sorted(over)))
        elif not labels.weight:
            w.mark(ids, "mixed", f"{call.name} in {w.where()}")
            w.trace.mixing.add(w.reductions)
    for y in tensors(call.out):
        w.set(y, [p.expand(y.shape) for p in planes], labels.weight)


def _tied(w: Tracer, ids: Ids, dims: Sequence[int], name: str) -> Ids:
    for dim in dims:
        ids = w.tie(ids, dim, f"{name} in {w.where()}")
    return ids


def _along(w: Tracer, call: OpCall) -> None:
    """Softmax and running sums: the shape stays, positions along one dimension mix."""
    x = call.args[0]
    labels = w.labels_of(x)
    dim = call.argument("dim")
    for ids in labels.planes:
        if dim is None or (int(dim) % x.ndim) in varying(ids):
            w.mark(ids, "mixed", f"{call.name.strip('_')} in {w.where()}")
    for y in tensors(call.out):
        if y.shape == x.shape:
            w.set(y, labels.planes, labels.weight)


def _spatial(w: Tracer, call: OpCall) -> None:
    """Pooling and upsampling: positions mix, channels do not."""
    x = call.args[0]
    labels = w.labels_of(x)
    y = tensors(call.out)[0]
    first = 1 if "1d" in call.name else 3 if "3d" in call.name else 2
    planes = []
    for ids in labels.planes:
        channels = reduce_label(ids, range(x.ndim - first, x.ndim))
        if channels is None:
            w.mark(ids, "refused", f"{call.name} in {w.where()} runs over the units")
        else:
            planes.append(channels.expand(y.shape))
    w.set(y, planes, labels.weight)


def _glu(w: Tracer, call: OpCall) -> None:
    """Gated linear unit: the two halves meet element by element."""
    dim = int(call.argument("dim"))
    labels = w.labels_of(call.args[0])
    halves = [list(p.chunk(2, dim)) for p in labels.planes]
    parts = [Labels([h[side] for h in halves], labels.weight) for side in (0, 1)]
    w.set(call.out, *_meet(w, parts, True))


def _weight_norm(w: Tracer, call: OpCall) -> None:
    """Direction and length of a weight; the norm over zeroed columns is the norm without them."""
    of = [w.labels_of(t) for t in call.args[:2]]
    shape = call.args[0].shape
    planes = _united(w, [[p.broadcast_to(shape) for p in o.planes] for o in of])
    w.set(tensors(call.out)[0], planes, True)


def _scatter(w: Tracer, call: OpCall) -> None:
    """One-hot encoding of labelled indices: every entry of the code belongs to the index's unit."""
    base, dim, index = call.args[0], int(call.args[1]), call.args[2]
    if w.labels_of(base).planes or any(dim % index.ndim in varying(p) for p in w.labels_of(index).planes):
        _unknown(w, call)
        return
    planes = [p.select(dim, 0).unsqueeze(dim).expand(call.out.shape) for p in w.labels_of(index).planes]
    w.set(call.out, planes, False)


def _copy(w: Tracer, call: OpCall) -> None:
    source = w.labels_of(call.args[1])
    w.set(call.out, [p.broadcast_to(call.out.shape) for p in source.planes], source.weight)


_SCALING = {"mul", "div", "true_divide", "addcmul"}
_LAYER_NORMS = {"native_layer_norm", "_fused_rms_norm"}
Rule = Callable[[Tracer, OpCall], None]
# operations of each rule, by the names PyTorch's dispatcher gives them
_NAMES: dict[Rule, str] = {
    _move: """
        view _unsafe_view reshape _reshape_alias t transpose permute unsqueeze squeeze expand slice select
        split split_with_sizes unsafe_split unsafe_split_with_sizes unbind chunk narrow flip roll repeat
        index_select gather index detach alias lift_fresh unfold diagonal tril triu
        pixel_shuffle pixel_unshuffle channel_shuffle im2col reflection_pad1d reflection_pad2d
        reflection_pad3d replication_pad1d replication_pad2d replication_pad3d movedim swapaxes rot90
        repeat_interleave view_copy take_along_dim
    """,
    _matmul: "mm bmm addmm baddbmm",
    _cat: "cat stack",
    _normalised: """
        native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
        native_layer_norm _fused_rms_norm native_group_norm
    """,
    _reduction: REDUCTIONS,
    _along: "_softmax _log_softmax cumsum cumprod cummax cummin logcumsumexp sort _safe_softmax",
    _spatial: """
        max_pool1d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d
        _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d
        adaptive_avg_pool1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d
        upsample_linear1d upsample_bicubic2d upsample_trilinear3d _upsample_nearest_exact1d
        _upsample_nearest_exact2d
    """,
    _constant: """
        zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty rand_like
        randn_like _local_scalar_dense aminmax sym_size is_nonzero
    """,
    _pointwise: "clone _to_copy contiguous _prelu_kernel hardswish nan_to_num",
    _glu: "glu",
    _weight_norm: "_weight_norm_interface",
    _pad: "constant_pad_nd",
    _convolution: "convolution",
    _embedding: "embedding",
    _scatter: "scatter",
    _copy: "copy",
}
_RULES = {name: rule for rule, names in _NAMES.items() for name in names.split()}


def rule_for(name: str, elementwise: bool) -> Rule:
    """The rule of an operation.

    Args:
        name: The operation's name, without the underscore of in-place variants.
        elementwise: PyTorch says that it works element by element.
    """
    return _RULES.get(name) or (_pointwise if elementwise else _unknown)
