"""One rule for each kind of tensor operation: how it passes labels on.

A view moves labels as it moves values. An elementwise operation joins the units it pairs and records
the weights that meet them. A contraction with a weight ends units at the weight's positions, their
reader, and begins the units of its output; a contraction of two activations ties what it sums over.
Norms, softmax and reductions over units are annotated as mixing them. An operation without a rule
refuses all units that enter it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from glprune.pruning.labels import (
    CONSTANT,
    LabelPlane,
    Labels,
    as_vector,
    broadcast_channels,
    compact,
    node_ids,
    reduce_label,
    same_partition,
    tensors_in,
    varying_dims,
)
from glprune.pruning.tracer import REDUCTIONS, OpCall, Tracer


def _unknown(tracer: Tracer, call: OpCall) -> None:
    tracer.refuse_units(call, f"{call.name} in {tracer.current_layer()} has no rule")


def _constant(tracer: Tracer, call: OpCall) -> None:
    """Ignore an operation whose output does not depend on values."""


def _move_labels(tracer: Tracer, call: OpCall) -> None:
    """Move labels as values: views, slices, permutations."""
    first = call.args[0]
    labels = tracer.labels_of(first)
    for tensor in tensors_in((call.args[1:], call.kwargs)):
        for ids in tracer.labels_of(tensor).planes:
            if not tracer.labels_of(tensor).weight:
                tracer.annotate(
                    ids, "refused", f"units choose positions by {call.name} in {tracer.current_layer()}"
                )
    if call.name in ("view", "_unsafe_view", "view_copy"):  # labels need not be contiguous where values are
        moved = [[ids.reshape(call.out.shape)] for ids in labels.planes]
    else:
        moved = [tensors_in(call.repeat(ids.view_as(ids))) for ids in labels.planes]
    for number, y in enumerate(tensors_in(call.out)):
        tracer.set_labels(y, [m[number] for m in moved], labels.weight)


def _pad(tracer: Tracer, call: OpCall) -> None:
    labels = tracer.labels_of(call.args[0])
    moved = [torch.constant_pad_nd(ids, list(call.args[1]), 0.0) for ids in labels.planes]
    tracer.set_labels(call.out, moved, labels.weight)


def _cat(tracer: Tracer, call: OpCall) -> None:
    """Concatenate or stack; planes that vary along the same dimensions continue each other."""
    parts = list(call.args[0])
    labels = [tracer.labels_of(t) for t in parts]
    rows: list[dict[int, LabelPlane]] = []
    for number, part in enumerate(labels):
        for ids in part.planes:
            fits = (row for row in rows if number not in row and _continues(row, ids))
            row = next(fits, None)
            if row is None:
                rows.append(row := {})
            row[number] = ids
    filled = [
        [row.get(number, torch.zeros(t.shape, dtype=torch.float64)) for number, t in enumerate(parts)]
        for row in rows
    ]
    tracer.set_labels(call.out, [call.repeat(ids) for ids in filled], all(part.weight for part in labels))


def _continues(row: dict[int, LabelPlane], ids: LabelPlane) -> bool:
    return any(varying_dims(other) == varying_dims(ids) for other in row.values())


def _pointwise(tracer: Tracer, call: OpCall) -> None:
    """Join the units an elementwise operation pairs; weights that meet units are carriers."""
    if not isinstance(call.out, Tensor):
        _unknown(tracer, call)
        return
    shape = call.out.shape
    operands = [tracer.labels_of(t) for t in tensors_in((call.args, call.kwargs))]
    spread = [
        Labels([p.broadcast_to(shape) for p in o.planes], o.weight) for o in operands if o is not CONSTANT
    ]
    scales = call.name in _SCALING
    tracer.set_labels(call.out, *_combine_operands(tracer, spread, scales))


def _combine_operands(
    tracer: Tracer, operands: Sequence[Labels], scales: bool
) -> tuple[list[LabelPlane], bool]:
    streams = [o for o in operands if not o.weight]
    planes = _join_planes(tracer, [o.planes for o in streams or operands])
    if not streams:
        return planes, True
    for weight in (o for o in operands if o.weight):
        for weights in weight.planes:
            met = [
                tracer.use_weight(weights, ids, "carrier", scales, number)
                for number, ids in enumerate(list(planes))
                if same_partition(weights, ids)
            ]
            if not any(met):
                planes.append(weights)
                if scales:
                    tracer.begin_units(weights)
    return planes, False


def _join_planes(tracer: Tracer, operands: Sequence[Sequence[LabelPlane]]) -> list[LabelPlane]:
    """Join the planes of several operands that divide the tensor alike."""
    planes: list[LabelPlane] = []
    for operand in operands:
        fresh = []
        for ids in operand:
            matched = False
            for number, other in enumerate(planes):
                if same_partition(other, ids):
                    tracer.join(other, ids)
                    planes[number] = compact(torch.where(other > 0, other, ids))
                    matched = True
            if not matched:
                fresh.append(ids)
        planes += fresh
    return planes


def _matrix_product(
    tracer: Tracer, a: Labels, b: Labels, name: str, shape: torch.Size
) -> tuple[list[LabelPlane], bool]:
    """Label the matrix product of ``(..., m, k)`` and ``(..., k, n)``."""
    if a.weight and not b.weight:  # the transposed product, so that the weight stands on the right
        turned = torch.Size((*shape[:-2], shape[-1], shape[-2]))
        planes, weight = _matrix_product(tracer, _transpose(b), _transpose(a), name, turned)
        return [ids.mT for ids in planes], weight
    ends, passes = _split_by_dim(a.planes, -1)
    weights, makes = _split_by_dim(b.planes, -2)
    through = [ids.select(-1, 0).unsqueeze(-1).expand(shape) for ids in passes]
    made = [ids.select(-2, 0).unsqueeze(-2).expand(shape) for ids in makes]
    if b.weight:
        if weights:
            _read_units(tracer, ends, weights, name)
        else:
            through += [q for ids in ends for q in _sum_over(tracer, ids, -1, name, shape)]
        for ids in made:
            tracer.begin_units(ids)
        return through + made, a.weight
    left = [q for ids in ends for q in _sum_over(tracer, ids, -1, name, shape)]
    right = [q for ids in weights for q in _sum_over(tracer, ids, -2, name, shape)]
    return _join_planes(tracer, [through + left, made + right]), False


def _split_by_dim(planes: Sequence[LabelPlane], dim: int) -> tuple[list[LabelPlane], list[LabelPlane]]:
    """Separate the planes that vary along a dimension from those that do not."""
    along = [ids for ids in planes if ids.ndim + dim in varying_dims(ids)]
    return along, [ids for ids in planes if ids.ndim + dim not in varying_dims(ids)]


def _transpose(labels: Labels) -> Labels:
    return Labels([ids.mT for ids in labels.planes], labels.weight)


def _sum_over(tracer: Tracer, ids: LabelPlane, dim: int, name: str, shape: torch.Size) -> list[LabelPlane]:
    """Tie units that are summed over; units that a softmax mixed before lose their labels."""
    if tracer.mixed_nodes & set(node_ids(ids).tolist()):
        tracer.annotate(ids, "mixed", f"{name} in {tracer.current_layer()}")
        return []
    return [tracer.tie(ids, dim, f"{name} in {tracer.current_layer()}").expand(shape)]


def _read_units(
    tracer: Tracer, stream: Sequence[LabelPlane], weights: Sequence[LabelPlane], name: str
) -> None:
    """End the units of (..., m, k) at the weight positions of (..., k, n)."""
    for weight_ids in weights:
        if (weight_ids.ndim - 1) in varying_dims(weight_ids):
            for ids in stream:
                tracer.annotate(ids, "refused", f"{name} in {tracer.current_layer()} reads a reshaped weight")
            continue
        across = weight_ids.select(-1, 0).unsqueeze(-2)
        for number, ids in enumerate(stream):
            shape = torch.broadcast_shapes(across.shape, ids.shape)  # type: ignore[no-untyped-call]
            tracer.use_weight(across.expand(shape), ids.expand(shape), "reader", True, number)


def _matmul(tracer: Tracer, call: OpCall) -> None:
    a, b = call.args[-2:] if call.name in ("mm", "bmm") else call.args[1:3]
    product = _matrix_product(tracer, tracer.labels_of(a), tracer.labels_of(b), call.name, call.out.shape)
    if call.name in ("mm", "bmm"):
        tracer.set_labels(call.out, *product)
        return
    added = tracer.labels_of(call.args[0])
    spread = [p.broadcast_to(call.out.shape) for p in added.planes]
    tracer.set_labels(
        call.out, *_combine_operands(tracer, [Labels(*product), Labels(spread, added.weight)], False)
    )


def _convolution(tracer: Tracer, call: OpCall) -> None:
    """Label a dense, depthwise or grouped convolution, transposed or not."""
    x, bias = call.args[0], call.args[2]
    groups = int(call.args[8])
    channels = _channels(tracer, x)
    if groups == 1:
        out = _dense_convolution(tracer, call, channels)
    elif groups == x.shape[1]:
        out = _depthwise_convolution(tracer, call, channels)
    else:
        out = _grouped_convolution(tracer, call, channels)
    full = [broadcast_channels(ids, call.out) for ids in out]
    if bias is not None:
        shape = call.out.shape[:2]
        added = [broadcast_channels(p.expand(shape), call.out) for p in tracer.labels_of(bias).planes]
        full, _ = _combine_operands(tracer, [Labels(full, False), Labels(added, True)], False)
    tracer.set_labels(call.out, full, False)


def _channels(tracer: Tracer, x: Tensor) -> list[LabelPlane]:
    """Return the planes of a convolution's input that vary along its channels, shape (batch, channels)."""
    planes = []
    for ids in tracer.labels_of(x).planes:
        channels = reduce_label(ids, range(2, x.ndim))
        if channels is None:
            tracer.annotate(ids, "refused", f"convolution in {tracer.current_layer()} runs over the units")
        elif 1 in varying_dims(compact(channels)):
            planes.append(channels.flatten(1))
    return planes


def _along_dimension(tracer: Tracer, weight: Tensor, dim: int) -> list[LabelPlane]:
    """Return the planes of a weight that vary along one dimension alone, as vectors."""
    return [as_vector(p, dim) for p in tracer.labels_of(weight).planes if varying_dims(p) == (dim,)]


def _output_dim(call: OpCall) -> int:
    """Return the dimension of a convolution's weight that its output channels lie along."""
    return 1 if bool(call.args[6]) else 0


def _dense_convolution(tracer: Tracer, call: OpCall, channels: Sequence[LabelPlane]) -> list[LabelPlane]:
    """Read every input channel by the weight, which begins the output channels."""
    weight, made_by = call.args[1], _output_dim(call)
    for number, ids in enumerate(channels):
        for weight_ids in _along_dimension(tracer, weight, 1 - made_by):
            tracer.use_weight(weight_ids.expand_as(ids), ids, "reader", True, number)
    made = _along_dimension(tracer, weight, made_by)
    for ids in made:
        tracer.begin_units(ids)
    return [ids.expand(call.out.shape[:2]) for ids in made]


def _depthwise_convolution(tracer: Tracer, call: OpCall, channels: Sequence[LabelPlane]) -> list[LabelPlane]:
    """Pass every channel on; its weights are carriers."""
    shape = call.out.shape[:2]
    repeat = shape[1] // int(call.args[8])
    rows = _along_dimension(tracer, call.args[1], 0)
    if _output_dim(call) == 1:
        rows = [weight_ids.repeat_interleave(repeat) for weight_ids in rows]
    if not channels:  # the channels belong to no unit yet, so that the weights begin units
        for ids in rows:
            tracer.begin_units(ids)
        return [ids.expand(shape) for ids in rows]
    out = [ids.repeat_interleave(repeat, dim=1) for ids in channels]
    for number, ids in enumerate(out):
        for weight_ids in rows:
            tracer.use_weight(weight_ids.expand(shape), ids, "carrier", True, number)
    return out


def _grouped_convolution(tracer: Tracer, call: OpCall, channels: Sequence[LabelPlane]) -> list[LabelPlane]:
    """Refuse both sides: every output channel reads a part of the input channels."""
    for ids in [*channels, *_along_dimension(tracer, call.args[1], _output_dim(call))]:
        tracer.annotate(ids, "refused", f"grouped convolution {tracer.current_layer()}")
    return []


def _normalize(tracer: Tracer, call: OpCall) -> None:
    """Label BatchNorm, LayerNorm, RMSNorm, GroupNorm: affine carriers, statistics that may mix units."""
    x = call.args[0]
    y = tensors_in(call.out)[0]
    planes = list(tracer.labels_of(x).planes)
    if call.name == "native_group_norm":
        planes = [_norm_groups(tracer, ids, int(call.args[6])) for ids in planes]
    last = range(x.ndim - len(call.args[1]), x.ndim) if call.name in _LAYER_NORMS else ()
    for ids in planes:
        if set(varying_dims(ids)) & set(last):
            where = tracer.current_layer()
            tracer.annotate(ids, "mixed", where if "Norm" in where else f"{call.name} in {where}")
    spread = []
    for tensor in tensors_in((call.args[1:], call.kwargs)):
        for ids in tracer.labels_of(tensor).planes:
            aligned = ids if last else ids.view(1, -1, *[1] * (x.ndim - 2))
            spread.append(aligned.broadcast_to(x.shape))
    result, _ = _combine_operands(tracer, [Labels(planes, False), Labels(spread, True)], False)
    tracer.set_labels(y, result, False)


def _norm_groups(tracer: Tracer, ids: LabelPlane, groups: int) -> LabelPlane:
    """Join the channels that share a norm's statistics."""
    channels = ids.unflatten(1, (groups, -1))  # type: ignore[no-untyped-call]
    top = channels.flatten(2).amax(2)
    spread = top.view(*top.shape, *[1] * (ids.ndim - 1)).expand_as(channels).flatten(1, 2)
    tracer.join(ids, spread)
    tracer.annotate(ids, "tied", tracer.current_layer())
    return ids


def _embedding(tracer: Tracer, call: OpCall) -> None:
    weight, index = call.args[:2]
    planes = [p.unsqueeze(-1).expand(call.out.shape) for p in tracer.labels_of(index).planes]
    made = [
        as_vector(p, 1).expand(call.out.shape)
        for p in tracer.labels_of(weight).planes
        if varying_dims(p) == (1,)
    ]
    for ids in made:
        tracer.begin_units(ids)
    tracer.set_labels(call.out, planes + made, False)


def _reduction(tracer: Tracer, call: OpCall) -> None:
    """Reduce over dimensions: exact where no units lie along them, else the reduction mixes them."""
    x = call.args[0]
    labels = tracer.labels_of(x)
    dims = call.argument("dim")
    listed = range(x.ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    over = {d % x.ndim for d in listed} if x.ndim else set()
    keep = bool(call.argument("keepdim"))
    planes = []
    for ids in labels.planes:
        left = reduce_label(ids, sorted(over))
        if left is None and not labels.weight and set(varying_dims(ids)) - over:
            left = _tie_dims(tracer, ids, sorted(over), call.name)  # a sum within each head ties the head
        if left is not None:
            planes.append(left if keep or not over else left.squeeze(sorted(over)))
        elif not labels.weight:
            tracer.annotate(ids, "mixed", f"{call.name} in {tracer.current_layer()}")
            tracer.trace.mixing_reductions.add(tracer.reductions)
    for y in tensors_in(call.out):
        tracer.set_labels(y, [p.expand(y.shape) for p in planes], labels.weight)


def _tie_dims(tracer: Tracer, ids: LabelPlane, dims: Sequence[int], name: str) -> LabelPlane:
    for dim in dims:
        ids = tracer.tie(ids, dim, f"{name} in {tracer.current_layer()}")
    return ids


def _mix_along_dim(tracer: Tracer, call: OpCall) -> None:
    """Mix positions along one dimension and keep the shape: softmax, running sums."""
    x = call.args[0]
    labels = tracer.labels_of(x)
    dim = call.argument("dim")
    for ids in labels.planes:
        if dim is None or (int(dim) % x.ndim) in varying_dims(ids):
            tracer.annotate(ids, "mixed", f"{call.name.strip('_')} in {tracer.current_layer()}")
    for y in tensors_in(call.out):
        if y.shape == x.shape:
            tracer.set_labels(y, labels.planes, labels.weight)


def _pool(tracer: Tracer, call: OpCall) -> None:
    """Mix positions but not channels: pooling and upsampling."""
    x = call.args[0]
    labels = tracer.labels_of(x)
    y = tensors_in(call.out)[0]
    first = 1 if "1d" in call.name else 3 if "3d" in call.name else 2
    planes = []
    for ids in labels.planes:
        channels = reduce_label(ids, range(x.ndim - first, x.ndim))
        if channels is None:
            tracer.annotate(ids, "refused", f"{call.name} in {tracer.current_layer()} runs over the units")
        else:
            planes.append(channels.expand(y.shape))
    tracer.set_labels(y, planes, labels.weight)


def _glu(tracer: Tracer, call: OpCall) -> None:
    """Join the halves of a gated linear unit element by element."""
    dim = int(call.argument("dim"))
    labels = tracer.labels_of(call.args[0])
    halves = [list(p.chunk(2, dim)) for p in labels.planes]
    parts = [Labels([h[side] for h in halves], labels.weight) for side in (0, 1)]
    tracer.set_labels(call.out, *_combine_operands(tracer, parts, True))


def _weight_norm(tracer: Tracer, call: OpCall) -> None:
    """Join direction and length of a weight; the norm over zeroed columns is the norm without them."""
    of = [tracer.labels_of(t) for t in call.args[:2]]
    shape = call.args[0].shape
    planes = _join_planes(tracer, [[p.broadcast_to(shape) for p in o.planes] for o in of])
    tracer.set_labels(tensors_in(call.out)[0], planes, True)


def _scatter(tracer: Tracer, call: OpCall) -> None:
    """Encode labelled indices one-hot: every entry of the code belongs to the index's unit."""
    base, dim, index = call.args[0], int(call.args[1]), call.args[2]
    if tracer.labels_of(base).planes or any(
        dim % index.ndim in varying_dims(p) for p in tracer.labels_of(index).planes
    ):
        _unknown(tracer, call)
        return
    planes = [p.select(dim, 0).unsqueeze(dim).expand(call.out.shape) for p in tracer.labels_of(index).planes]
    tracer.set_labels(call.out, planes, False)


def _copy(tracer: Tracer, call: OpCall) -> None:
    source = tracer.labels_of(call.args[1])
    tracer.set_labels(call.out, [p.broadcast_to(call.out.shape) for p in source.planes], source.weight)


_SCALING = {"mul", "div", "true_divide", "addcmul"}
_LAYER_NORMS = {"native_layer_norm", "_fused_rms_norm"}
Rule = Callable[[Tracer, OpCall], None]
# operations of each rule, by the names PyTorch's dispatcher gives them
_OPERATIONS: dict[Rule, str] = {
    _move_labels: """
        view _unsafe_view reshape _reshape_alias t transpose permute unsqueeze squeeze expand slice select
        split split_with_sizes unsafe_split unsafe_split_with_sizes unbind chunk narrow flip roll repeat
        index_select gather index detach alias lift_fresh unfold diagonal tril triu
        pixel_shuffle pixel_unshuffle channel_shuffle im2col reflection_pad1d reflection_pad2d
        reflection_pad3d replication_pad1d replication_pad2d replication_pad3d movedim swapaxes rot90
        repeat_interleave view_copy take_along_dim
    """,
    _matmul: "mm bmm addmm baddbmm",
    _cat: "cat stack",
    _normalize: """
        native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
        native_layer_norm _fused_rms_norm native_group_norm
    """,
    _reduction: REDUCTIONS,
    _mix_along_dim: "_softmax _log_softmax cumsum cumprod cummax cummin logcumsumexp sort _safe_softmax",
    _pool: """
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
_RULES = {name: rule for rule, names in _OPERATIONS.items() for name in names.split()}


def rule_for(name: str, elementwise: bool) -> Rule:
    """Return the rule of an operation.

    Args:
        name: The operation's name, without the underscore of in-place variants.
        elementwise: Whether PyTorch tags it as elementwise.
    """
    return _RULES.get(name) or (_pointwise if elementwise else _unknown)
