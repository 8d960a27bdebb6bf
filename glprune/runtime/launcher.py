"""The rank of this process and the number of processes, from the environment variables of a launcher.

References:
    torchrun: https://docs.pytorch.org/docs/stable/elastic/run.html. Open MPI: the variables that accelerate
    1.15 reads (``get_cpu_distributed_information``).
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass

from glprune.errors import UsageError

_TORCHRUN = "WORLD_SIZE"  # accelerate starts torchrun, or mpirun
_OPEN_MPI = "OMPI_COMM_WORLD_SIZE"
_PORT, _PORTS = 29500, 1000
_JOB_IDS = ("PMIX_NAMESPACE", "SLURM_JOB_ID", "PBS_JOBID")  # two jobs on a machine must not share a port


@dataclass(frozen=True)
class ProcessInfo:
    """One of the processes of a run.

    Attributes:
        rank: Number of the process, from 0.
        size: Number of processes.
        init_method: Where they connect, as ``torch.distributed`` takes it.
        restart_count: How often torchrun restarted all of them (``--max-restarts``), with the same store.
    """

    rank: int = 0
    size: int = 1
    init_method: str = "env://"
    restart_count: str = "0"


def process_info() -> ProcessInfo:
    """Read this process's rank and the number of processes; without a launcher it is the only one.

    Raises:
        UsageError: The environment is incomplete.
    """
    size_name = next((name for name in (_TORCHRUN, _OPEN_MPI) if name in os.environ), None)
    if size_name is None or (size := _integer_variable(size_name, size_name)) < 2:
        return ProcessInfo()
    if size_name == _OPEN_MPI:
        return ProcessInfo(_integer_variable("OMPI_COMM_WORLD_RANK", size_name), size, _init_method())
    rank = _integer_variable("RANK", size_name)
    return ProcessInfo(rank, size, restart_count=os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def is_main_process() -> bool:
    """Whether the environment gives this process rank 0, or no rank."""
    return process_info().rank == 0


def launcher_warning() -> str | None:
    """Return a warning if ``accelerate`` was asked for several processes and started one."""
    requested = "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ
    if not requested or _TORCHRUN in os.environ or _OPEN_MPI in os.environ:
        return None
    return (
        "accelerate was asked for several processes and started one: without GPUs it starts more only with "
        "--mpirun_hostfile and Open MPI, or through torchrun with --multi_gpu."
    )


def _integer_variable(name: str, size_name: str) -> int:
    text = os.environ.get(name)
    if text is None or not text.isdecimal():
        found = "is not set" if text is None else f"is {text!r}"
        raise UsageError(
            f"environment: {size_name} is set and {name} {found}; start the processes through torchrun, "
            f"accelerate or mpirun, or unset {size_name}."
        )
    return int(text)


def _init_method() -> str:
    """Where the processes of Open MPI connect: on their machine, or where ``MASTER_ADDR`` says."""
    address = os.environ.get("MASTER_ADDR")
    if address is None and os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") != os.environ[_OPEN_MPI]:
        raise UsageError(
            "environment: the processes are on several machines and MASTER_ADDR is not set; set it to the "
            "machine of process 0 (mpirun -x MASTER_ADDR=NAME)."
        )
    job_id = next((os.environ[name] for name in _JOB_IDS if name in os.environ), "")
    port = os.environ.get("MASTER_PORT") or _PORT + zlib.crc32(job_id.encode()) % _PORTS
    return f"tcp://{address or '127.0.0.1'}:{port}"
