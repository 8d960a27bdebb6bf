"""Which workers a recipe asks for: processes of this machine, or Ray's."""

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
    prepare: Callable[[], State], spec: WorkersSpec, where: str, threads: int = 1, most: int | None = None
) -> WorkerPool[State]:
    """Workers as a recipe asks for them.

    Args:
        prepare: See :class:`glprune.runtime.process_pool.Workers`.
        spec: The engine, and how many; None takes as many as cores allow, of Ray's cluster where that is at
            work.
        where: Place of the engine in the recipe, for messages.
        threads: Threads that each will compute with.
        most: More than these have nothing to do.

    Raises:
        RecipeError: Ray is asked for and not installed.
        GlpruneError: Ray is asked for, or a cluster named, and it cannot be joined.
    """
    installed = ray_installed()
    if spec.engine == "ray" and not installed:
        raise RecipeError(f"{where}: Ray is not installed; pip install 'glprune[ray]', or say local.")
    if installed and spec.engine != "local":
        from glprune.runtime.ray_pool import RayPool, ray_address

        try:
            return RayPool(prepare, spec.processes, threads, most)
        except GlpruneError:
            if spec.engine == "ray" or ray_address():
                raise
    processes = spec.processes or max(1, available_cores() // threads)
    return ProcessPool(prepare, min(processes, most or processes))


def ray_installed() -> bool:
    """Whether Ray can be imported."""
    return importlib.util.find_spec("ray") is not None


def is_parallel(spec: WorkersSpec, threads: int) -> bool:
    """Whether more than one worker of so many threads would be at work."""
    if spec.processes is not None:
        return spec.processes > 1
    return available_cores() // threads > 1 or (spec.engine != "local" and "RAY_ADDRESS" in os.environ)
