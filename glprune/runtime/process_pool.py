"""Distribute work over local processes, through an interface that Ray's workers share.

The processes are spawned, never forked: a fork of a process in which PyTorch has threads may hang. Only bytes
are passed to them, so no tensor is shared with the caller.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import parent_process, util
from multiprocessing.context import SpawnContext, SpawnProcess
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError

from glprune._user_code import network_errors
from glprune.errors import GlpruneError
from glprune.runtime.events import Listener, Notice, Progress, silent

if TYPE_CHECKING:
    from glprune.runtime.checkpoint import CheckpointLog, Step

State = TypeVar("State")
Item = TypeVar("Item")
Outcome = TypeVar("Outcome")
_KILLED = "A worker process was killed, probably for lack of memory"


class WorkerPool(Protocol[State]):
    """Workers that process items in parallel: ``ProcessPool``, or ``RayPool`` on Ray."""

    def __enter__(self) -> WorkerPool[State]:
        """Start."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers."""
        ...

    def map(
        self,
        work: Callable[[State, Item], Outcome],
        items: Sequence[Item],
        done: Callable[[int, Outcome], None],
        listener: Listener = silent,
    ) -> list[Outcome]:
        """See ``ProcessPool.map``."""
        ...


class ProcessPool(Generic[State]):
    """Local processes that each prepare once and then process items.

    The first item starts them. They end with the context; if an error ends it, they are terminated.

    Args:
        prepare: Called once in each process, before its first item; must pickle.
        processes: Number of processes, at least 1; each computes with one thread.
    """

    def __init__(self, prepare: Callable[[], State], processes: int) -> None:
        self._context = _Context()
        self._payload = pickle.dumps(prepare)  # bytes: torch would share the memory of tensors
        self._start(processes)

    def _start(self, processes: int) -> None:
        self._processes = processes
        self._pool = ProcessPoolExecutor(processes, self._context, _start_worker, (self._payload,))

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
        listener: Listener = silent,
    ) -> list[Outcome]:
        """Process every item and return the outcomes in the order of the items.

        If a process is killed, the items that are left are processed again, once, by half as many processes:
        the most likely reason is that all of them together need more memory than there is.

        Args:
            work: A module-level function of what ``prepare`` returned and an item. Its outcome must
                depend on these alone; items and outcomes must pickle.
            items: The items.
            done: Called with the index and the outcome of each item, in the order they finish.
            listener: Receives a notice if a process was killed.

        Raises:
            GlpruneError: A process was killed again.
            Exception: The first error of ``prepare`` or ``work``.
        """
        outcomes: dict[int, Outcome] = {}
        try:
            self._process(work, items, outcomes, done)
        except BrokenProcessPool:
            self._pool.shutdown(wait=True)  # the others end too, and free their memory
            self._start(max(1, self._processes // 2))
            listener(Notice(f"{_KILLED}; its work is tried again with workers.processes: {self._processes}."))
            try:
                self._process(work, items, outcomes, done)
            except BrokenProcessPool:
                raise GlpruneError(f"{_KILLED}, twice; set workers.processes lower.") from None
        return [outcomes[index] for index in range(len(items))]

    def _process(
        self,
        work: Callable[[State, Item], Outcome],
        items: Sequence[Item],
        outcomes: dict[int, Outcome],
        done: Callable[[int, Outcome], None],
    ) -> None:
        """Process the items without an outcome."""
        left = [index for index in range(len(items)) if index not in outcomes]
        futures = {self._pool.submit(_run_item, work, items[index]): index for index in left}
        for future in as_completed(futures):
            index = futures[future]
            outcomes[index] = future.result()
            done(index, outcomes[index])


@dataclass(frozen=True)
class OutcomeLog(Generic[Outcome]):
    """A checkpointed step that keeps outcomes by the index of their item.

    Attributes:
        record: The step; outcomes are added to its values.
        log: Writes the checkpoints.
        adapter: Converts outcomes to JSON values and back.
        items: What the items are called in progress reports.
        fits: Whether an outcome can be that of the item of an index; others are not used.
    """

    record: Step
    log: CheckpointLog
    adapter: TypeAdapter[Outcome]
    items: str
    fits: Callable[[int, Outcome], bool]

    def known(self, count: int) -> dict[int, Outcome]:
        """Return the outcomes of the first ``count`` items that are known and can be used."""
        found = {}
        for index in range(count):
            with contextlib.suppress(KeyError, ValidationError):
                outcome = self.adapter.validate_python(self.record.values[str(index)])
                if self.fits(index, outcome):
                    found[index] = outcome
        return found

    def __setitem__(self, index: int, outcome: Outcome) -> None:
        """Keep an outcome, and write a checkpoint if one is due."""
        self.record.values[str(index)] = self.adapter.dump_python(outcome, mode="json")
        self.log.save_if_due()


def map_with_checkpoint(
    workers: WorkerPool[State],
    work: Callable[[State, Item], Outcome],
    items: Sequence[Item],
    log: OutcomeLog[Outcome],
    listener: Listener,
) -> list[Outcome]:
    """Call ``ProcessPool.map`` on the items that a stopped run has not processed.

    Args:
        workers: The processes.
        work: See ``ProcessPool.map``.
        items: All items.
        log: The outcomes of the stopped run; new ones are added.
        listener: Receives the number of processed items, after each.
    """
    known, total = log.known(len(items)), len(items)
    left = [index for index in range(total) if index not in known]
    done = itertools.count(len(known) + 1)

    def keep(position: int, outcome: Outcome) -> None:
        log[left[position]] = outcome
        listener(Progress(log.items, next(done), total))

    workers.map(work, [items[index] for index in left], keep, listener)
    outcomes = log.known(total)  # as a resumed run would read them
    return [outcomes[index] for index in range(total)]


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Process(SpawnProcess):
    """A process that does not import the caller's script and ignores Ctrl-C, which the caller handles."""

    def start(self) -> None:
        with _without_main_script(), _ignore_interrupts():
            super().start()


class _Context(SpawnContext):
    """Starts the processes of the pool and keeps a list of them."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[SpawnProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> SpawnProcess:  # type: ignore[override]  # noqa: N802
        process = _Process(*args, **kwargs)
        self.started.append(process)
        return process


@contextlib.contextmanager
def _without_main_script() -> Iterator[None]:
    """Hide ``__main__``: a spawned process would run it again, and the run it calls."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


@contextlib.contextmanager
def _ignore_interrupts() -> Iterator[None]:
    """Block SIGINT: a new process inherits the block from its first instruction; here it waits."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class WorkerState(Generic[State]):
    """What a worker prepares once, and the random state with which every item starts.

    Args:
        payload: The pickled ``prepare``.
    """

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._made: tuple[State, torch.Tensor] | None = None

    def work(self, work: Callable[[State, Item], Outcome], item: Item) -> Outcome:
        """Process one item; the first one prepares, so that an error in it is reported as the item's."""
        with network_errors():  # an error that is passed to the caller loses its frames
            if self._made is None:
                self._made = pickle.loads(self._payload)(), torch.get_rng_state()
            state, random = self._made
            torch.set_rng_state(random)  # an outcome must not depend on which items came before
            return work(state, item)


_prepared: list[WorkerState[Any]] = []


def _start_worker(payload: bytes) -> None:
    """Initialise a worker process."""
    _prepared.append(WorkerState(payload))
    for number in (signal.SIGINT, signal.SIGHUP):  # sent to all processes of a terminal; the caller reacts
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit_worker)
    torch.set_num_threads(1)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_worker(number: int, frame: FrameType | None) -> None:
    """Exit on SIGTERM, but release what libraries hold: semaphores, processes of a DataLoader."""
    util._exit_function()  # type: ignore[attr-defined]  # noqa: SLF001 - sys.exit would wait for the pool
    os._exit(128 + number)


def _exit_with_parent() -> None:
    """Exit if the caller was killed: the pool itself would wait forever."""
    caller = parent_process()
    assert caller is not None  # only a pool's process runs this
    caller.join()
    os._exit(1)


def _run_item(work: Callable[[Any, Any], Any], item: Any) -> Any:
    return _prepared[0].work(work, item)
