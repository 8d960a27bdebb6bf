"""Create the workers of a recipe: local processes, or Ray's."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from glprune.errors import GlpruneError, RecipeError
from glprune.runtime.process_pool import ProcessPool, WorkerPool, available_cores

if TYPE_CHECKING:
    from glprune.schema.recipe import WorkersSpec

State = TypeVar("State")


def make_worker_pool(
    prepare: Callable[[], State],
    spec: WorkersSpec,
    where: str,
    threads: int = 1,
    max_workers: int | None = None,
) -> WorkerPool[State]:
    """Create the workers that a recipe asks for.

    Args:
        prepare: See ``glprune.runtime.process_pool.ProcessPool``.
        spec: The engine and the number of workers; None for one worker for each core, or for each core of
            Ray's cluster.
        where: Position of the engine in the recipe, for messages.
        threads: Threads of each worker.
        max_workers: Largest useful number of workers.

    Raises:
        RecipeError: The recipe asks for Ray, and it is not installed.
        GlpruneError: The recipe asks for Ray or the environment names a cluster, and it cannot be joined.
    """
    installed = ray_installed()
    if spec.engine == "ray" and not installed:
        raise RecipeError(f"{where}: Ray is not installed; pip install 'glprune[ray]', or set local.")
    if installed and spec.engine != "local":
        from glprune.runtime.ray_pool import RayPool, has_cluster  # noqa: PLC0415 - Ray is optional

        try:
            return RayPool(prepare, spec.processes, threads, max_workers)
        except GlpruneError:
            if spec.engine == "ray" or has_cluster():
                raise
    processes = spec.processes or max(1, available_cores() // threads)
    return ProcessPool(prepare, min(processes, max_workers or processes))


def ray_installed() -> bool:
    """Whether Ray can be imported."""
    return importlib.util.find_spec("ray") is not None


def is_parallel(spec: WorkersSpec, threads: int) -> bool:
    """Whether a recipe gives more than one worker of ``threads`` threads each."""
    if spec.processes is not None:
        return spec.processes > 1
    return available_cores() // threads > 1 or (spec.engine != "local" and "RAY_ADDRESS" in os.environ)
