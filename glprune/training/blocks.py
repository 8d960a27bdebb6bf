"""Norms and scaling of all groups of a network at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_CACHED = 2**19  # products held at once: more would not fit the processor's cache


@dataclass(frozen=True)
class ParameterGroup:
    """A parameter split along one dimension; ``owner`` numbers the group of each position."""

    parameter: torch.nn.Parameter
    dim: int
    owner: Tensor


class ParameterGroups:
    """Parameters split into numbered groups, for arithmetic over all groups at once.

    The number of tensor operations grows with the number of parameters, never with the
    number of groups.

    Args:
        blocks: One block for each parameter, owners in 0..count-1.
        count: Number of groups.

    Attributes:
        parameters: The parameters, in the order every list below follows.
        values: Their data, without gradients, to be changed in place.
        sizes: Number of weights of each group, at least 1, shape (count,).
    """

    def __init__(self, blocks: Sequence[ParameterGroup], count: int) -> None:
        self.blocks = tuple(blocks)
        self.count = count
        self.parameters = [block.parameter for block in self.blocks]
        self.values = [parameter.data for parameter in self.parameters]
        self._shapes = [(-1,) + (1,) * (b.parameter.ndim - 1 - b.dim) for b in self.blocks]
        order = _consecutive_order(self.blocks, count)
        self._lengths = [len(self.blocks[number].owner) for number in order]
        self._positions = sorted(range(len(order)), key=order.__getitem__)
        self.sizes = self.dot([torch.ones_like(b.parameter) for b in blocks]).clamp(min=1)

    @property
    def gradients(self) -> list[Tensor]:
        """Gradients of the parameters; zeros for a missing one."""
        return [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]

    def dot(self, a: Sequence[Tensor], b: Sequence[Tensor] | None = None) -> Tensor:
        """Inner products by group of two lists of tensors (``b`` defaults to ``a``), shape (count,)."""
        total = torch.empty(self.count, dtype=a[0].dtype if a else torch.float32)
        pairs = zip(self.blocks, a, a if b is None else b, strict=True)
        if self._positions:
            for part, (block, x, y) in zip(self._parts(total), pairs, strict=True):
                _products(x, y, block.dim, part)
        else:
            total.zero_()
            for block, x, y in pairs:
                total.index_add_(0, block.owner, _products(x, y, block.dim))
        return total

    def norms(self) -> Tensor:
        """L2 norms of the groups, shape (count,)."""
        return self.dot(self.values).sqrt_()

    def expand(self, values: Tensor) -> list[Tensor]:
        """Return the value of its groups for every parameter, broadcastable to its shape."""
        parts = self._parts(values) if self._positions else [values[block.owner] for block in self.blocks]
        shapes = zip(parts, self._shapes, strict=True)
        return [part.view(shape) if len(shape) > 1 else part for part, shape in shapes]

    def scale_(self, factors: Tensor) -> None:
        """Multiply every group by its factor, shape (count,)."""
        torch._foreach_mul_(self.values, self.expand(factors))

    def _parts(self, values: Tensor) -> list[Tensor]:
        """Each parameter's part of a vector of shape (count,), as views; needs consecutive groups."""
        parts = values.split_with_sizes(self._lengths)
        return [parts[position] for position in self._positions]


def _consecutive_order(blocks: Sequence[ParameterGroup], count: int) -> list[int]:
    """Order in which the positions of the blocks are groups 0, 1, ...; empty if a group has several.

    In that order the sums by group are those of one block after another, and nothing is gathered.
    """
    order = sorted(range(len(blocks)), key=lambda number: int(blocks[number].owner[0]))
    owners = [blocks[number].owner for number in order]
    whole = bool(owners) and torch.equal(torch.cat(owners), torch.arange(count))
    return order if whole else []


def _products(x: Tensor, y: Tensor, dim: int, out: Tensor | None = None) -> Tensor:
    """Inner products of two tensors over all but ``dim``.

    The dimensions before it are summed first: these sums are vectorised and reduce the rest most.
    """
    # on other devices than CPUs every part would cost a kernel
    folds = dim and x.numel() > _CACHED and x.device.type == "cpu"
    total = _folded(x, y) if folds else x * y
    if dim > 1:
        total = total.flatten(0, dim - 1)
    if dim and total.ndim == 2:
        return torch.sum(total, 0, out=out)
    if dim:
        total = total.sum(0)
    return torch.sum(total.reshape(len(total), -1), 1, out=out)


def _folded(x: Tensor, y: Tensor) -> Tensor:
    """Products of two tensors, with rows added up so that the result fits the cache.

    The last rows come first: they were written last and are still in the cache.
    """
    rows = max(1, _CACHED * len(x) // x.numel())
    total = x[-rows:] * y[-rows:]
    for a, b in zip(
        reversed(torch.split(x[:-rows], rows)), reversed(torch.split(y[:-rows], rows)), strict=True
    ):
        total[: len(a)].addcmul_(a, b)
    return total
