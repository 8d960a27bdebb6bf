"""Workers on the machines of a Ray cluster (``pip install 'glprune[ray]'``).

The recipe, the model and the data must be readable under the same paths everywhere.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from glprune.errors import GlpruneError, first_line
from glprune.runtime.events import Listener, silent
from glprune.runtime.process_pool import WorkerState, available_cores

State = TypeVar("State")
Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class _Actor:
    """A process of Ray that prepares once and then processes items with one thread."""

    def __init__(self, payload: bytes) -> None:
        torch.set_num_threads(1)
        self._state: WorkerState[Any] = WorkerState(payload)

    def work(self, work: Callable[[Any, Any], Any], item: Any) -> Any:
        return self._state.work(work, item)


class RayPool(Generic[State]):
    """``glprune.runtime.process_pool.ProcessPool`` on a Ray cluster.

    The cluster is the one joined already, else the one that ``RAY_ADDRESS`` names, else a new one of this
    machine's cores.

    Args:
        prepare: Called once by each worker; must pickle.
        processes: Largest number of workers; the cluster may have cores for fewer. None: no limit.
        threads: Cores of each worker.
        max_workers: Largest useful number of workers.

    Raises:
        GlpruneError: The cluster cannot be joined.
    """

    def __init__(
        self,
        prepare: Callable[[], State],
        processes: int | None = None,
        threads: int = 1,
        max_workers: int | None = None,
    ) -> None:
        self._joined = not ray.is_initialized()
        if self._joined:
            _connect(threads * (processes or max(1, available_cores() // threads)))
        self._payload = pickle.dumps(prepare)
        cores = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call, unused-ignore]
        available = max(1, cores // threads)
        self._max_workers = min(available, processes or available, max_workers or available)
        # the work of a lost worker is tried again once, by a new one
        remote = ray.remote(num_cpus=min(threads, cores), max_restarts=-1, max_task_retries=1)
        self._actor_class: Any = remote(_Actor)
        self._actors: list[Any] = []

    def __enter__(self) -> RayPool[State]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for actor in self._actors:
            ray.kill(actor)
        if self._joined:
            ray.shutdown()

    def map(
        self,
        work: Callable[[State, Item], Outcome],
        items: Sequence[Item],
        done: Callable[[int, Outcome], None],
        listener: Listener = silent,
    ) -> list[Outcome]:
        """See ``glprune.runtime.process_pool.ProcessPool.map``."""
        outcomes: dict[int, Outcome] = {}
        while len(self._actors) < min(self._max_workers, len(items)):
            self._actors.append(self._actor_class.remote(self._payload))
        waiting, idle, busy = list(enumerate(items)), list(self._actors), dict[Any, tuple[int, Any]]()
        while waiting or busy:
            while waiting and idle:
                index, item = waiting.pop(0)
                actor = idle.pop()
                busy[actor.work.remote(work, item)] = index, actor
            (ready,), _ = ray.wait(list(busy), num_returns=1)
            index, actor = busy.pop(ready)
            idle.append(actor)
            outcomes[index] = _result_or_error(ready)
            done(index, outcomes[index])
        return [outcomes[index] for index in range(len(items))]


def _connect(cores: int) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    address = os.environ.get("RAY_ADDRESS")
    running = _children()
    try:
        with _own_sigterm():
            if address:
                ray.init(address=address, **quiet)
            else:
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # send no usage statistics
                ray.init(num_cpus=cores, include_dashboard=False, **quiet)
    except (Exception, SystemExit) as error:  # Ray raises errors of any class, also bare Exception
        _end_processes(_children() - running)
        raise GlpruneError(
            f"Ray cannot be joined{f' at {address}' if address else ''} ({first_line(error)}); set "
            "workers.engine: local."
        ) from error


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the handler of SIGTERM, which Ray replaces by handlers that exit, for seconds while it starts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    exited, (received, written) = False, os.pipe()
    os.set_blocking(received, False)
    os.set_blocking(written, False)
    other = signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    try:
        yield
    except SystemExit:
        exited = True
        raise
    finally:
        signal.set_wakeup_fd(other)
        os.close(written)
        with open(received, "rb") as stream:
            numbers = stream.read() or b""
        signal.signal(signal.SIGTERM, before)
        if exited and signal.SIGTERM in numbers:
            signal.raise_signal(signal.SIGTERM)


def _children() -> set[int]:
    """Return the numbers of the processes that this one has started."""
    lists = Path("/proc/self/task").glob("*/children")
    return {int(number) for children in lists for number in children.read_text().split()}


def _end_processes(numbers: Iterable[int]) -> None:
    """End what Ray has started in vain; it would run, and hold the output open, as long as this process."""
    for number in numbers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    with contextlib.suppress(Exception):
        ray.shutdown()


def _result_or_error(ready: Any) -> Any:
    """Return an outcome, or raise the error of its worker."""
    try:
        return ray.get(ready)
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        raise GlpruneError(
            "A worker of Ray was lost, probably for lack of memory, twice; set workers.processes lower."
        ) from error
