"""Processes, workers, checkpoints and the output folder of a run.

launcher: rank and size from the environment of torchrun, accelerate or Open MPI.
process_group: collective operations of data-parallel processes; failure: how all end if one fails.
worker_pool: workers for independent parts, on process_pool (local) or ray_pool (a cluster).
checkpoint: results of long steps, for ``--resume``; output_folder: writes a bundle completely or not at all.
determinism: seeds and threads; events: progress reports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glprune._lazy import lazy_names

if TYPE_CHECKING:
    from glprune.runtime.checkpoint import CheckpointLog
    from glprune.runtime.determinism import reproducible
    from glprune.runtime.output_folder import OutputFolder
    from glprune.runtime.process_group import ProcessGroup, init_process_group
    from glprune.runtime.process_pool import WorkerPool
    from glprune.runtime.worker_pool import make_worker_pool

__all__ = [
    "CheckpointLog",
    "OutputFolder",
    "ProcessGroup",
    "WorkerPool",
    "init_process_group",
    "make_worker_pool",
    "reproducible",
]

__getattr__ = lazy_names(
    __name__,
    {
        "CheckpointLog": "checkpoint",
        "OutputFolder": "output_folder",
        "ProcessGroup": "process_group",
        "WorkerPool": "process_pool",
        "init_process_group": "process_group",
        "make_worker_pool": "worker_pool",
        "reproducible": "determinism",
    },
)
