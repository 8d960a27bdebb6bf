"""Label planes: arrays that hold the node every element of a tensor belongs to.

A plane holds node numbers as float64 in the shape of its tensor, so that any operation that moves values
can move them; 0 is an element of no node. A compact plane has stride 0 along every dimension it does not
vary along, which makes most of the arithmetic here cheap. Planes stay plain tensors, since PyTorch's
operations move them; ``node_ids`` and ``node_pairs`` take the numbers out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from glprune.pruning.ids import NodeIds

LabelPlane = Tensor  # float64, of the shape of the tensor it labels


@dataclass
class Labels:
    """Label planes of a tensor; ``weight`` where it derives from weights alone."""

    planes: list[LabelPlane]
    weight: bool


CONSTANT = Labels([], True)


def tensors_in(tree: Any) -> list[Tensor]:
    """Return the tensors among nested arguments or results."""
    return [t for t in pytree.tree_leaves(tree) if isinstance(t, Tensor)]


def storage_address(tensor: Tensor) -> int:
    """Return the address of the memory a tensor is a view of."""
    return tensor.untyped_storage().data_ptr()


def varying_dims(ids: LabelPlane) -> tuple[int, ...]:
    """Return the dimensions a compact plane varies along; it has stride 0 along all others."""
    return tuple(d for d in range(ids.ndim) if ids.shape[d] > 1 and ids.stride(d) != 0)


def compact(ids: LabelPlane) -> LabelPlane:
    """Give stride 0 to the dimensions along which nothing varies."""
    for dim in range(ids.ndim):
        if ids.shape[dim] > 1 and ids.stride(dim) != 0:
            first = ids.narrow(dim, 0, 1)
            if bool((ids == first).all()):
                ids = first.expand_as(ids)
    return ids


def drop_constant_dims(ids: LabelPlane) -> LabelPlane:
    """Keep one position of every dimension along which the plane does not vary."""
    for dim in range(ids.ndim):
        if ids.stride(dim) == 0 and ids.shape[dim] > 1:
            ids = ids.narrow(dim, 0, 1)
    return ids


def as_vector(ids: LabelPlane, dim: int) -> LabelPlane:
    """Return a plane that varies along one dimension alone as a vector."""
    return ids.movedim(dim, 0).reshape(ids.shape[dim], -1)[:, 0]


def reduce_label(ids: LabelPlane, dims: Sequence[int]) -> LabelPlane | None:
    """Return the one label along some dimensions, of size 1 there; None where there are several.

    Elements of no node, such as padding, do not count.
    """
    if not dims:
        return ids
    top = ids.amax(tuple(dims), keepdim=True)
    return top if bool(((ids == top) | (ids == 0)).all()) else None


def broadcast_channels(ids: LabelPlane, like: Tensor) -> LabelPlane:
    """Broadcast labels of shape (batch, channels) to the shape of ``like``, (batch, channels, ...)."""
    return ids.view(*ids.shape, *[1] * (like.ndim - 2)).expand(like.shape)


def node_ids(ids: LabelPlane) -> NodeIds:
    """Return the distinct nodes of a plane."""
    found = np.unique(drop_constant_dims(ids).numpy()).astype(np.int64)
    return NodeIds(found[found > 0])


def node_pairs(a: LabelPlane, b: LabelPlane) -> NodeIds:
    """Return the distinct pairs of nodes at the same place of two planes, shape (2, n)."""
    for dim in range(a.ndim):  # where neither varies, one position is enough
        if a.shape[dim] > 1 and a.stride(dim) == 0 and b.stride(dim) == 0:
            a, b = a.narrow(dim, 0, 1), b.narrow(dim, 0, 1)
    flat = torch.stack([a.reshape(-1), b.reshape(-1)])
    both = flat[:, (flat > 0).all(0)].numpy().astype(np.int64)
    return NodeIds(np.unique(both, axis=1) if both.size else both)


def same_partition(a: LabelPlane, b: LabelPlane) -> bool:
    """Return whether one plane divides the tensor as the other does, or finer, where both have labels."""
    if not set(varying_dims(a)) & set(varying_dims(b)):
        return not varying_dims(a) and not varying_dims(b)
    met = node_pairs(a, b)
    if not met.size:
        return False
    return any(len(np.unique(side)) == met.shape[1] for side in met)
