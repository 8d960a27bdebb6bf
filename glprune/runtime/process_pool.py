"""Fan work out over processes: local ones here, behind one small interface that Ray's workers share.

The processes are started anew (``spawn``), never forked: a fork of a process whose PyTorch has threads
may hang. Nothing but bytes is passed in, so no tensor is shared with the caller.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import parent_process, util
from multiprocessing.context import SpawnContext, SpawnProcess
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch
from pydantic import TypeAdapter

from glprune.errors import GlpruneError

if TYPE_CHECKING:
    from glprune.runtime.checkpoint import CheckpointLog, Step

State = TypeVar("State")
Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class WorkerPool(Protocol[State]):
    """Whatever works on many items side by side; :class:`Workers` here, :mod:`glprune.runtime.ray_pool` on Ray."""

    def __enter__(self) -> WorkerPool[State]:
        """Begin."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what is at work."""
        ...

    def map(
        self,
        work: Callable[[State, Item], Outcome],
        items: Sequence[Item],
        done: Callable[[int, Outcome], None],
    ) -> list[Outcome]:
        """See :meth:`Workers.map`."""
        ...


class ProcessPool(Generic[State]):
    """Processes that each prepare once and then work on items; none is started before the first item.

    On leaving the context the processes end; where it is left by an error they are stopped at once.

    Args:
        prepare: Called once in each process, before its first item; it pickles.
        processes: Number of processes, at least 1; each computes with one thread.
    """

    def __init__(self, prepare: Callable[[], State], processes: int) -> None:
        self._context = _Context()
        payload = pickle.dumps(prepare)  # by value: torch shares the memory of tensors it is left to pass
        self._pool = ProcessPoolExecutor(processes, self._context, _start_worker, (payload,))

    def __enter__(self) -> ProcessPool[State]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            for process in self._context.started:
                process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def map(
        self,
        work: Callable[[State, Item], Outcome],
        items: Sequence[Item],
        done: Callable[[int, Outcome], None],
    ) -> list[Outcome]:
        """Work on every item and return the outcomes in the order of the items.

        Args:
            work: A function of a module, of what ``prepare`` returned and an item. Its outcome must
                depend on these alone; items and outcomes pickle.
            items: What to work on.
            done: Told the place and the outcome of each item, as they come.

        Raises:
            GlpruneError: A process was killed.
            Exception: Whatever ``prepare`` or ``work`` raised first.
        """
        try:
            futures = [self._pool.submit(_run_item, work, item) for item in items]
            places = {future: place for place, future in enumerate(futures)}
            for future in as_completed(futures):
                done(places[future], future.result())
        except BrokenProcessPool:
            raise GlpruneError(
                "A worker process was killed, most likely for want of memory; set workers.processes lower."
            ) from None
        return [future.result() for future in futures]


def map_with_checkpoint(
    workers: WorkerPool[State],
    work: Callable[[State, Item], Outcome],
    items: Sequence[Item],
    told: Callable[[int], None],
    record: Step,
    journal: CheckpointLog,
    kind: TypeAdapter[Outcome],
) -> list[Outcome]:
    """:meth:`Workers.map` of what a stopped run had not done yet.

    Args:
        workers: The processes.
        work: See there.
        items: See there.
        told: Told how many items are done, after each.
        record: Holds the outcomes so far, by place, and is given each new one.
        journal: Keeps the record.
        kind: Brings outcomes to JSON values and back.
    """
    known = record.values
    left = [place for place in range(len(items)) if str(place) not in known]

    def done(place: int, outcome: Outcome) -> None:
        known[str(left[place])] = kind.dump_python(outcome, mode="json")
        journal.save_if_due()
        told(len(known))

    workers.map(work, [items[place] for place in left], done)
    return [kind.validate_python(known[str(place)]) for place in range(len(items))]


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Process(SpawnProcess):
    """A process that neither imports the caller's script nor sees Ctrl-C, which the caller answers."""

    def start(self) -> None:
        with _without_main_script(), _ignore_interrupts():
            super().start()


class _Context(SpawnContext):
    """Starts the pool's processes and remembers them."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[SpawnProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> SpawnProcess:  # type: ignore[override]  # noqa: N802
        process = _Process(*args, **kwargs)
        self.started.append(process)
        return process


@contextlib.contextmanager
def _without_main_script() -> Iterator[None]:
    """Hide ``__main__``: a spawned process would run it again, and with it the run it calls."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


@contextlib.contextmanager
def _ignore_interrupts() -> Iterator[None]:
    """Block SIGINT, which a new process inherits from its first instruction; here it only waits."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class WorkerState(Generic[State]):
    """What a process prepares once, and the random state every item begins with.

    Args:
        payload: The pickled function that prepares.
    """

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._made: tuple[State, torch.Tensor] | None = None

    def work(self, work: Callable[[State, Item], Outcome], item: Item) -> Outcome:
        """Work on one item; what may fail in preparing waits for the first one, whose error is told."""
        if self._made is None:
            self._made = pickle.loads(self._payload)(), torch.get_rng_state()
        state, random = self._made
        torch.set_rng_state(random)  # an outcome must not depend on which items came before
        return work(state, item)


_prepared: list[WorkerState[Any]] = []


def _start_worker(payload: bytes) -> None:
    """Set a process up."""
    _prepared.append(WorkerState(payload))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit_worker)
    torch.set_num_threads(1)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_worker(number: int, frame: FrameType | None) -> None:
    """Leave when told to, but give back what libraries hold: semaphores, processes of a DataLoader."""
    util._exit_function()  # type: ignore[attr-defined]
    os._exit(128 + number)


def _exit_with_parent() -> None:
    """Leave when the caller is gone, killed without a word: the pool itself would wait for ever."""
    caller = parent_process()
    assert caller is not None  # only a pool's process runs this
    caller.join()
    os._exit(1)


def _run_item(work: Callable[[Any, Any], Any], item: Any) -> Any:
    return _prepared[0].work(work, item)
