"""The processes of one run, as a launcher starts them, and sums over them.

Every process runs the same search on its part of the training rows (:mod:`glprune.data.sharding`); gradients are
summed over the processes, so that all make the same proximal step. One process alone does nothing here.

References:
    Li et al. (2020), "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", VLDB 13(12).
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import math
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from glprune.errors import GlpruneError, NonFiniteError, UsageError
from glprune.runtime.failure import FailureStore, failure_reason
from glprune.runtime.launcher import ProcessInfo, process_info

_Value = TypeVar("_Value")
_PATIENCE = datetime.timedelta(days=7)  # the others wait while the first one exports and measures


class Transport:
    """What connects a process with the others.

    Args:
        group: For sums.
        board: For words about the end.
    """

    def __init__(self, group: dist.ProcessGroup, board: FailureStore) -> None:
        self._group: dist.ProcessGroup | None = group
        self.board = board

    @contextlib.contextmanager
    def group(self) -> Iterator[dist.ProcessGroup | None]:
        """The group, for one sum; raises what another process says where it closed the connection."""
        try:
            yield self._group
        except RuntimeError as broken:
            raise self.board.received(broken) from broken

    def close(self, error: BaseException | None) -> None:
        """Close the connections, which ends the sums in which others wait.

        Args:
            error: Why; gloo closes them with the last reference to the group, and frames hold some.
        """
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__context__
        dist.destroy_process_group(self._group)
        self._group = None


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a run.

    Attributes:
        rank: Number of this one; the first, 0, writes.
        size: How many there are.
        links: What connects them; None where there is one.
    """

    rank: int = 0
    size: int = 1
    links: Transport | None = field(default=None, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    @property
    def reported_by_main(self) -> bool:
        """Whether the first process tells why this one ends."""
        return self.links is not None and self.links.board.told

    def broadcast_object(self, value: _Value) -> _Value:
        """The first process's value, in every process."""
        if self.links is None:
            return value
        box = [value]
        with self.links.group() as group:
            dist.broadcast_object_list(box, group_src=0, group=group)
        return box[0]

    def all_gather(self, value: _Value) -> list[_Value]:
        """The values of all processes, in every process."""
        if self.links is None:
            return [value]
        found = [value] * self.size
        with self.links.group() as group:
            dist.all_gather_object(found, value, group=group)
        return found

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over the processes."""
        if self.links is not None:
            with self.links.group() as group:
                dist.all_reduce(tensor, group=group)
        return tensor

    def broadcast_(self, tensor: Tensor) -> None:
        """Replace a tensor by the first process's."""
        if self.links is not None:
            with self.links.group() as group:
                dist.broadcast(tensor, group_src=0, group=group)


ALONE = ProcessGroup()
_joined: list[ProcessGroup] = []
_working: list[ProcessGroup] = [ALONE]
_numbers = itertools.count()  # of joinings: what was left on an older board is not read again


@contextlib.contextmanager
def init_process_group() -> Iterator[ProcessGroup]:
    """The processes that a launcher names in the environment, joined for a while.

    Where one of them raises an error, those that wait for it raise the same, or
    :class:`~glprune.errors.StoppedError`, and all leave together.

    Raises:
        UsageError: They do not come together.
    """
    here = process_info()
    if _joined or here.size < 2:
        yield _joined[-1] if _joined else ALONE
        return
    with _connect(here) as members:
        _joined.append(members)
        try:
            yield members
        finally:
            _joined.pop()


@contextlib.contextmanager
def _connect(here: ProcessInfo) -> Iterator[ProcessGroup]:
    try:
        if (
            not dist.is_initialized()
        ):  # and left so: a next run's processes could meet in the store of this one
            store, _, _ = next(rendezvous(here.init_method, here.rank, here.size))
            own = dist.PrefixStore(f"attempt/{here.restart_count}", store)
            dist.init_process_group("gloo", store=own, rank=here.rank, world_size=here.size)
        group = dist.new_group(timeout=_PATIENCE, backend="gloo")
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"the {here.size} processes did not come together ({failure_reason(error)}); MASTER_ADDR and MASTER_PORT "
            "are to name the first one's machine and a free port of it."
        ) from error
    store = dist.PrefixStore(f"glprune/{next(_numbers)}", dist.distributed_c10d._get_default_store())
    links = Transport(group, FailureStore(store, here.rank, here.size))
    del group
    why: BaseException | None = None
    try:
        yield ProcessGroup(here.rank, here.size, links)
    except BaseException as error:
        links.board.publish(error)
        why = error
        raise
    finally:
        links.close(why)
        links.board.leave(why is not None)


@contextlib.contextmanager
def use_process_group(members: ProcessGroup) -> Iterator[None]:
    """Sum over a crew for a while: all its processes train the same network on parts of the same batches."""
    _working.append(members)
    try:
        yield
    finally:
        _working.pop()


def average_gradients_(parameters: Iterable[nn.Parameter], loss: float, rows: int) -> float:
    """Replace gradients of a mean over this process's rows by those of the mean over all processes' rows.

    Args:
        parameters: Those of the network.
        loss: The mean over this process's rows.
        rows: Rows of this process; where there are none, no gradient is needed.

    Returns:
        The mean loss over all processes' rows; NaN where a loss or a gradient of any of them is not finite,
        and gradients are left as they are then.
    """
    if _working[-1].size == 1:
        return loss
    trained = [p for p in parameters if p.requires_grad]
    flat = _all_reduce_flat_(trained, (loss * rows, rows), rows)
    if not math.isfinite(flat.sum()):
        return math.nan
    flat.div_(flat[-1].clone())
    _copy_back_(trained, flat)
    return float(flat[-2])


def sum_gradients_(parameters: Iterable[nn.Parameter], loss: float) -> float:
    """Replace gradients by their sums over the processes.

    Args:
        parameters: Those of the network.
        loss: This process's part of a loss.

    Returns:
        The loss of all processes; NaN as in :func:`average_gradients_`.
    """
    if _working[-1].size == 1:
        return loss
    trained = [p for p in parameters if p.requires_grad]
    flat = _all_reduce_flat_(trained, (loss,))
    if not math.isfinite(flat.sum()):
        return math.nan
    _copy_back_(trained, flat)
    return all_reduce_scalar(loss)


def first_error(own: GlpruneError | None, where: str, mend: str) -> GlpruneError:
    """The error to raise where numbers of some process stopped being finite: in every process the same.

    Args:
        own: What is wrong with this process's rows; None where nothing is.
        where: Where the training stands.
        mend: What the user can do.
    """
    members = _working[-1]
    if members.size == 1 and own is not None:
        return own
    for rank, error in enumerate(members.all_gather(own)):
        if error is not None:
            return type(error)(f"process {rank}: {error}")
    return NonFiniteError(f"{where}: the loss or a gradient over all rows is not finite; {mend}.")


@torch.no_grad()
def broadcast_buffers_(network: nn.Module) -> None:
    """Give every process the first one's buffers: statistics of batches that were of its own rows."""
    if _working[-1].size > 1:
        for buffer in network.buffers():
            _working[-1].broadcast_(buffer)


def all_reduce_scalar(value: float) -> float:
    """The sum of a number over the processes."""
    if _working[-1].size == 1:
        return value
    return float(_working[-1].all_reduce_(torch.tensor([value], dtype=torch.float64)))


def measure_on_rank0(measure: Callable[[], _Value]) -> _Value:
    """What the first process measures, where processes would differ, as clocks do."""
    members = _working[-1]
    if members.is_main:
        return members.broadcast_object(measure())
    return members.broadcast_object(cast(_Value, None))


def _all_reduce_flat_(parameters: Sequence[nn.Parameter], numbers: Sequence[float], rows: int = 1) -> Tensor:
    """The sums over the processes of gradients, each times ``rows``, and of numbers, in one tensor."""
    parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    flat = torch.cat([*parts, torch.tensor(numbers)])
    flat[: -len(numbers)].mul_(rows)
    return _working[-1].all_reduce_(flat)


def _copy_back_(parameters: Sequence[nn.Parameter], flat: Tensor) -> None:
    start = 0
    for p in parameters:
        p.grad = flat[start : start + p.numel()].view_as(p).to(p.dtype)
        start += p.numel()
