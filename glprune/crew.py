"""The processes of one run, as torchrun starts them, and sums over them.

Every process runs the same search on its part of the training rows (:mod:`glprune.sharing`); gradients are
summed over the processes, so that all make the same proximal step. One process alone does nothing here.

References:
    Li et al. (2020), "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", VLDB 13(12).
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

_Value = TypeVar("_Value")
_PATIENCE = datetime.timedelta(days=7)  # the others wait while the first one exports and measures


@dataclass(frozen=True)
class Crew:
    """The processes of a run.

    Attributes:
        rank: Number of this one; the first, 0, writes.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def agreed(self, value: _Value) -> _Value:
        """The first process's value, in every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]


ALONE = Crew()
_working: list[Crew] = [ALONE]


def named_first() -> bool:
    """Whether the environment names this process the first one, or none."""
    return int(os.environ.get("WORLD_SIZE", "1")) < 2 or os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def joined() -> Iterator[Crew]:
    """The processes that the environment names (``WORLD_SIZE``, ``RANK``), joined for a while."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield ALONE
        return
    own = not dist.is_initialized()
    if own:
        dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield Crew(dist.get_rank(), dist.get_world_size())
    finally:
        if own:
            dist.destroy_process_group()


@contextlib.contextmanager
def together(members: Crew) -> Iterator[None]:
    """Sum over a crew for a while: all its processes train the same network on parts of the same batches."""
    _working.append(members)
    try:
        yield
    finally:
        _working.pop()


def average_gradients_(parameters: Iterable[nn.Parameter], rows: int) -> None:
    """Replace gradients of a mean over this process's rows by those of the mean over all processes' rows.

    Args:
        parameters: Those of the network.
        rows: Rows of this process; where there are none, no gradient is needed.
    """
    if _working[-1].size == 1:
        return
    trained = [p for p in parameters if p.requires_grad]
    flat = torch.cat([_flat(trained) * rows, torch.tensor([float(rows)])])
    dist.all_reduce(flat)
    _put(trained, flat[:-1] / flat[-1])


def sum_gradients_(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their sums over the processes."""
    if _working[-1].size == 1:
        return
    trained = [p for p in parameters if p.requires_grad]
    flat = _flat(trained)
    dist.all_reduce(flat)
    _put(trained, flat)


@torch.no_grad()
def align_buffers_(network: nn.Module) -> None:
    """Give every process the first one's buffers: statistics of batches that were of its own rows."""
    if _working[-1].size > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


def several() -> bool:
    """Whether processes work together now."""
    return _working[-1].size > 1


def total(value: float) -> float:
    """The sum of a number over the processes."""
    if _working[-1].size == 1:
        return value
    box = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(box)
    return float(box)


def agreed(value: _Value) -> _Value:
    """The first process's value, where processes could differ, as clocks do."""
    return _working[-1].agreed(value)


def _flat(parameters: Sequence[nn.Parameter]) -> Tensor:
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def _put(parameters: Sequence[nn.Parameter], flat: Tensor) -> None:
    start = 0
    for p in parameters:
        p.grad = flat[start : start + p.numel()].view_as(p).clone()
        start += p.numel()
