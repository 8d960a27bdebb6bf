"""Label planes: arrays that say which unit every element of a tensor belongs to.

Labels are node numbers held as float64 in the shape of the tensor, so that any operation that moves
values can move them; 0 is nobody. Compact planes have stride 0 along every dimension they do not
vary along, which makes most of the arithmetic here cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

Ids = Tensor


@dataclass
class Labels:
    """Label planes of a tensor; ``weight`` where it derives from weights alone."""

    planes: list[Ids]
    weight: bool


CONSTANT = Labels([], True)


def tensors(tree: Any) -> list[Tensor]:
    """The tensors among nested arguments or results."""
    return [t for t in pytree.tree_leaves(tree) if isinstance(t, Tensor)]


def storage(tensor: Tensor) -> int:
    """The memory a tensor is a view of."""
    return tensor.untyped_storage().data_ptr()


def varying(ids: Ids) -> tuple[int, ...]:
    """Dimensions the labels vary along; compact planes have stride 0 along all others."""
    return tuple(d for d in range(ids.ndim) if ids.shape[d] > 1 and ids.stride(d) != 0)


def compact(ids: Ids) -> Ids:
    """Give dimensions along which nothing varies stride 0."""
    for dim in range(ids.ndim):
        if ids.shape[dim] > 1 and ids.stride(dim) != 0:
            first = ids.narrow(dim, 0, 1)
            if bool((ids == first).all()):
                ids = first.expand_as(ids)
    return ids


def core(ids: Ids) -> Ids:
    """The labels once, without the dimensions they do not vary along."""
    for dim in range(ids.ndim):
        if ids.stride(dim) == 0 and ids.shape[dim] > 1:
            ids = ids.narrow(dim, 0, 1)
    return ids


def line(ids: Ids, dim: int) -> Ids:
    """Labels that vary along one dimension only, as a vector."""
    return ids.movedim(dim, 0).reshape(ids.shape[dim], -1)[:, 0]


def reduce_label(ids: Ids, dims: Sequence[int]) -> Ids | None:
    """The one label along some dimensions, of size 1 there; None where several units lie along them.

    Positions of nobody, such as padding, do not count.
    """
    if not dims:
        return ids
    top = ids.amax(tuple(dims), keepdim=True)
    return top if bool(((ids == top) | (ids == 0)).all()) else None


def broadcast_channels(ids: Ids, like: Tensor) -> Ids:
    """Labels of (batch, channels) spread over ``like``, (batch, channels, ...)."""
    return ids.view(*ids.shape, *[1] * (like.ndim - 2)).expand(like.shape)


def nodes(ids: Ids) -> NDArray[np.int64]:
    """The distinct nodes of a plane."""
    found = np.unique(core(ids).numpy()).astype(np.int64)
    return found[found > 0]


def pairs(a: Ids, b: Ids) -> NDArray[np.int64]:
    """Distinct pairs of labels at the same place, (2, n); nobody is in no pair."""
    for dim in range(a.ndim):  # where neither varies, one position says it all
        if a.shape[dim] > 1 and a.stride(dim) == 0 and b.stride(dim) == 0:
            a, b = a.narrow(dim, 0, 1), b.narrow(dim, 0, 1)
    flat = torch.stack([a.reshape(-1), b.reshape(-1)])
    both = flat[:, (flat > 0).all(0)].numpy().astype(np.int64)
    return np.unique(both, axis=1) if both.size else both


def same_partition(a: Ids, b: Ids) -> bool:
    """Tell whether one plane's units are made of the other's, where both have units."""
    if not set(varying(a)) & set(varying(b)):
        return not varying(a) and not varying(b)
    met = pairs(a, b)
    if not met.size:
        return False
    return any(len(np.unique(side)) == met.shape[1] for side in met)
