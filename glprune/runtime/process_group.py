"""The processes of one run, as a launcher starts them, and collective operations over them.

Every process runs the same search on its part of the training rows (``glprune.data.sharding``). Gradients
are summed over the processes, so that all make the same proximal step. With a single process every operation
returns its argument.

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
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from glprune.errors import GlpruneError, NonFiniteError, UsageError
from glprune.runtime.failure import FailureStore, failure_reason
from glprune.runtime.launcher import ProcessInfo, process_info

_Value = TypeVar("_Value")
_TIMEOUT = datetime.timedelta(days=7)  # the others wait while process 0 exports and measures


class Transport:
    """The connections of a process to the others.

    Args:
        group: Runs the collective operations.
        failures: Where processes publish why they ended.
    """

    def __init__(self, group: dist.ProcessGroup, failures: FailureStore) -> None:
        self._group: dist.ProcessGroup | None = group
        self.failures = failures

    @contextlib.contextmanager
    def group(self) -> Iterator[dist.ProcessGroup | None]:
        """Yield the group for one operation; raise the error of the process that closed the connection."""
        try:
            yield self._group
        except RuntimeError as error:
            raise self.failures.received(error) from error

    def close(self, error: BaseException | None) -> None:
        """Close the connections, which ends the operations in which other processes wait.

        Args:
            error: Why. Frames of its traceback hold references to the group, and gloo closes the connections
                with the last of them.
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
        rank: Number of this process; process 0 writes.
        size: Number of processes.
        transport: The connections; None for a single process.
    """

    rank: int = 0
    size: int = 1
    transport: Transport | None = field(default=None, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    @property
    def reported_by_main(self) -> bool:
        """Whether process 0 reports why this process ended."""
        return self.transport is not None and self.transport.failures.reported

    def broadcast_object(self, value: _Value) -> _Value:
        """Return the value of process 0 in every process."""
        if self.transport is None:
            return value
        box = [value]
        with self.transport.group() as group:
            dist.broadcast_object_list(box, group_src=0, group=group)
        return box[0]

    def all_gather(self, value: _Value) -> list[_Value]:
        """Return the values of all processes in every process."""
        if self.transport is None:
            return [value]
        found = [value] * self.size
        with self.transport.group() as group:
            dist.all_gather_object(found, value, group=group)
        return found

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over the processes."""
        if self.transport is not None:
            with self.transport.group() as group:
                dist.all_reduce(tensor, group=group)
        return tensor

    def broadcast_(self, tensor: Tensor) -> None:
        """Replace a tensor by the one of process 0."""
        if self.transport is not None:
            with self.transport.group() as group:
                dist.broadcast(tensor, group_src=0, group=group)

    def all_reduce_scalar(self, value: float) -> float:
        """Sum a number over the processes."""
        if self.size == 1:
            return value
        return float(self.all_reduce_(torch.tensor([value], dtype=torch.float64)))

    def average_gradients_(self, parameters: Iterable[nn.Parameter], loss: float, rows: int) -> float:
        """Replace gradients of a mean over the rows of this process by those of the mean over all rows.

        Args:
            parameters: Parameters of the network.
            loss: Mean loss over the rows of this process.
            rows: Number of rows of this process; with 0, gradients may be missing.

        Returns:
            The mean loss over the rows of all processes. NaN if a loss or a gradient of any process is not
            finite; gradients are unchanged then.
        """
        if self.size == 1:
            return loss
        trained = [p for p in parameters if p.requires_grad]
        flat = self._all_reduce_flat(trained, (loss * rows, rows), rows)
        if not math.isfinite(flat.sum()):
            return math.nan
        flat.div_(flat[-1].clone())
        _set_gradients(trained, flat)
        return float(flat[-2])

    def sum_gradients_(self, parameters: Iterable[nn.Parameter], loss: float) -> float:
        """Replace gradients by their sums over the processes.

        Args:
            parameters: Parameters of the network.
            loss: This process's part of the loss.

        Returns:
            The loss summed over the processes; NaN as in ``average_gradients_``.
        """
        if self.size == 1:
            return loss
        trained = [p for p in parameters if p.requires_grad]
        flat = self._all_reduce_flat(trained, (loss,))
        if not math.isfinite(flat.sum()):
            return math.nan
        _set_gradients(trained, flat)
        return self.all_reduce_scalar(loss)

    @torch.no_grad()
    def broadcast_buffers_(self, network: nn.Module) -> None:
        """Replace buffers by those of process 0: BatchNorm statistics differ between processes."""
        if self.size > 1:
            for buffer in network.buffers():
                self.broadcast_(buffer)

    def measure_on_rank0(self, measure: Callable[[], _Value]) -> _Value:
        """Measure in process 0 and broadcast the result, where results would differ, as timings do."""
        return self.broadcast_object(measure() if self.is_main else cast("_Value", None))

    def first_error(self, local: GlpruneError | None, location: str, hint: str) -> GlpruneError:
        """Agree on the error to raise after non-finite numbers: every process gets the same.

        Args:
            local: The error of this process; None if its rows are finite.
            location: Epoch and batch, for the message.
            hint: What the user can do, for the message.
        """
        if self.size == 1 and local is not None:
            return local
        for rank, error in enumerate(self.all_gather(local)):
            if error is not None:
                return type(error)(f"process {rank}: {error}")
        return NonFiniteError(f"{location}: the loss or a gradient over all rows is not finite; {hint}.")

    def _all_reduce_flat(
        self, parameters: Sequence[nn.Parameter], numbers: Sequence[float], rows: int = 1
    ) -> Tensor:
        """Sum gradients, each times ``rows``, and numbers over the processes, in one tensor."""
        parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
        flat = torch.cat([*parts, torch.tensor(numbers)])
        flat[: -len(numbers)].mul_(rows)
        return self.all_reduce_(flat)


ALONE = ProcessGroup()
_counter = itertools.count()  # of groups: keys that an older one left in the store are not read again


@contextlib.contextmanager
def init_process_group() -> Iterator[ProcessGroup]:
    """Join the processes that the environment names.

    If a process raises an error, those that wait for it raise the same, or
    ``glprune.errors.PeerFailedError``, and all leave together.

    Raises:
        UsageError: The processes cannot connect.
    """
    info = process_info()
    if info.size < 2:
        yield ALONE
        return
    with _connect(info) as process_group:
        yield process_group


@contextlib.contextmanager
def _connect(info: ProcessInfo) -> Iterator[ProcessGroup]:
    try:
        if not dist.is_initialized():  # it stays so: a next run must not meet in a new store at the same port
            store, _, _ = next(rendezvous(info.init_method, info.rank, info.size))
            attempt = PrefixStore(f"attempt/{info.restart_count}", store)
            dist.init_process_group("gloo", store=attempt, rank=info.rank, world_size=info.size)
        group = dist.new_group(timeout=_TIMEOUT, backend="gloo")
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"the {info.size} processes could not connect ({failure_reason(error)}); set MASTER_ADDR and "
            "MASTER_PORT to the machine of process 0 and a free port on it."
        ) from error
    default = dist.distributed_c10d._get_default_store()  # noqa: SLF001 - PyTorch has no public accessor
    failures = FailureStore(PrefixStore(f"glprune/{next(_counter)}", default), info.rank, info.size)
    transport = Transport(group, failures)
    del group
    cause: BaseException | None = None
    try:
        yield ProcessGroup(info.rank, info.size, transport)
    except BaseException as error:
        failures.publish(error)
        cause = error
        raise
    finally:
        transport.close(cause)
        failures.leave(cause is not None)


def _set_gradients(parameters: Sequence[nn.Parameter], flat: Tensor) -> None:
    start = 0
    for p in parameters:
        p.grad = flat[start : start + p.numel()].view_as(p).to(p.dtype)
        start += p.numel()
