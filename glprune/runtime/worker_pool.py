"""Create the workers of a recipe: local processes, or Ray's."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from glprune.errors import GlpruneError, RecipeError, first_line
from glprune.runtime.events import Listener, Notice, silent
from glprune.runtime.process_pool import ProcessPool, WorkerPool, available_cores

if TYPE_CHECKING:
    from glprune.schema.recipe import WorkersSpec

State = TypeVar("State")


@dataclass(frozen=True)
class Useful:
    """What there is work for.

    Attributes:
        threads: Threads of each worker.
        workers: Number of workers; None: as many as there are cores.
    """

    threads: int = 1
    workers: int | None = None


def make_worker_pool(
    prepare: Callable[[], State],
    spec: WorkersSpec,
    where: str,
    useful: Useful = Useful(),
    listener: Listener = silent,
) -> WorkerPool[State]:
    """Create the workers that a recipe asks for.

    Args:
        prepare: See ``glprune.runtime.process_pool.ProcessPool``.
        spec: The engine and the number of workers; None for one worker for each core, or for each core of
            Ray's cluster.
        where: Position of the engine in the recipe, for messages.
        useful: Threads and workers that there is work for.
        listener: Receives a notice where Ray is installed, does not start, and nothing asks for it.

    Raises:
        RecipeError: The recipe asks for Ray, and it is not installed.
        GlpruneError: The recipe asks for Ray or the environment names a cluster, and it cannot be joined.
    """
    installed = ray_installed()
    if spec.engine == "ray" and not installed:
        raise RecipeError(f"{where}: Ray is not installed; pip install 'glprune[ray]', or set local.")
    if installed and spec.engine != "local":
        try:
            return _ray_pool(prepare, spec.processes, useful)
        except GlpruneError as error:
            if spec.engine == "ray" or _names_cluster():
                raise
            listener(Notice(f"{str(error).partition(';')[0]}; local processes are used instead."))
    processes = spec.processes or max(1, available_cores() // useful.threads)
    return ProcessPool(prepare, min(processes, useful.workers or processes))


def _ray_pool(prepare: Callable[[], State], processes: int | None, useful: Useful) -> WorkerPool[State]:
    try:
        from glprune.runtime.ray_pool import RayPool  # noqa: PLC0415 - Ray is optional
    except ImportError as error:
        raise GlpruneError(
            f"Ray cannot be imported ({first_line(error)}); set workers.engine: local."
        ) from error
    return RayPool(prepare, processes, useful.threads, useful.workers)


def _names_cluster() -> bool:
    """Whether a cluster is joined already, or the environment names one."""
    ray = sys.modules.get("ray")
    return "RAY_ADDRESS" in os.environ or (ray is not None and bool(ray.is_initialized()))


def ray_installed() -> bool:
    """Whether Ray can be imported."""
    return importlib.util.find_spec("ray") is not None


def is_parallel(spec: WorkersSpec, threads: int) -> bool:
    """Whether a recipe gives more than one worker of ``threads`` threads each."""
    if spec.processes is not None:
        return spec.processes > 1
    return available_cores() // threads > 1 or (spec.engine != "local" and "RAY_ADDRESS" in os.environ)
