"""Workers on Ray: paths, resamples and refits on every machine of a cluster (``pip install 'glprune[ray]'``).

The recipe, the model and the data must be readable under the same paths everywhere.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from glprune.errors import GlpruneError
from glprune.runtime.process_pool import WorkerState, available_cores

State = TypeVar("State")
Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class _Actor:
    """A process of Ray's that prepares once and then works on items, with one thread."""

    def __init__(self, payload: bytes) -> None:
        torch.set_num_threads(1)
        self._preparation: WorkerState[Any] = WorkerState(payload)

    def work(self, work: Callable[[Any, Any], Any], item: Any) -> Any:
        return self._preparation.work(work, item)


class RayPool(Generic[State]):
    """:class:`glprune.runtime.process_pool.Workers` on a Ray cluster.

    That is the cluster joined already, else the one ``RAY_ADDRESS`` names, else one of this machine's cores.

    Args:
        prepare: Called once by each worker; it pickles.
        processes: Number of workers at most, of a cluster that has cores for them; None takes as many as
            it has cores for.
        threads: Cores of each.
        most: More workers than these have nothing to do.

    Raises:
        GlpruneError: The cluster cannot be joined.
    """

    def __init__(
        self,
        prepare: Callable[[], State],
        processes: int | None = None,
        threads: int = 1,
        most: int | None = None,
    ) -> None:
        self._joined = not ray.is_initialized()
        if self._joined:
            _connect(threads * (processes or max(1, available_cores() // threads)))
        self._payload = pickle.dumps(prepare)
        cores = int(ray.cluster_resources().get("CPU", 1))
        offered = max(1, cores // threads)
        self._most = min(offered, processes or offered, most or offered)
        self._make: Any = ray.remote(num_cpus=min(threads, cores))(_Actor)
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
    ) -> list[Outcome]:
        """See :meth:`glprune.runtime.process_pool.Workers.map`."""
        outcomes: dict[int, Outcome] = {}
        while len(self._actors) < min(self._most, len(items)):
            self._actors.append(self._make.remote(self._payload))
        waiting, idle, busy = list(enumerate(items)), list(self._actors), dict[Any, tuple[int, Any]]()
        while waiting or busy:
            while waiting and idle:
                place, item = waiting.pop(0)
                actor = idle.pop()
                busy[actor.work.remote(work, item)] = place, actor
            (ready,), _ = ray.wait(list(busy), num_returns=1)
            place, actor = busy.pop(ready)
            idle.append(actor)
            outcomes[place] = _result_or_error(ready)
            done(place, outcomes[place])
        return [outcomes[place] for place in range(len(items))]


def ray_address() -> bool:
    """Whether a cluster is joined already or named: no other will do."""
    return ray.is_initialized() or "RAY_ADDRESS" in os.environ


def _connect(cores: int) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    address = os.environ.get("RAY_ADDRESS")
    before = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody
            ray.init(num_cpus=cores, include_dashboard=False, **quiet)
    except (RayError, ConnectionError, RuntimeError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise GlpruneError(
            f"Ray cannot be joined{f' at {address}' if address else ''} ({first}); set workers.engine: local."
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray takes it; the command says what became of the run


def _result_or_error(ready: Any) -> Any:
    """An outcome, or the error that was raised in its place."""
    try:
        return ray.get(ready)
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        raise GlpruneError(
            "A worker of Ray's was lost, most likely for want of memory; set workers.processes lower."
        ) from error
