"""Which process of how many this one is, as whatever started it says in the environment.

References:
    The names are those that torchrun sets (https://docs.pytorch.org/docs/stable/elastic/run.html), and those
    of MPI that accelerate 1.15 reads (``get_cpu_distributed_information``).
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass

from glprune.errors import UsageError

# the number of a process, of all processes, and of those on its machine
_NAMES = (
    ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),  # torchrun, and accelerate through it
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"),  # MPICH, Intel MPI
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),  # Open MPI
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"),  # MVAPICH2
)
_PORT, _PORTS = 29500, 1000
_JOB = ("PMIX_NAMESPACE", "SLURM_JOB_ID", "PBS_JOBID")  # two jobs on a machine must not meet at one port


@dataclass(frozen=True)
class ProcessInfo:
    """One process among those of a run.

    Attributes:
        rank: Its number, from 0.
        size: How many there are.
        meeting: Where they meet, as ``torch.distributed`` takes it.
        attempt: How often torchrun started all of them anew (``--max-restarts``), with the same store.
    """

    rank: int = 0
    size: int = 1
    init_method: str = "env://"
    restart_count: str = "0"


def process_info() -> ProcessInfo:
    """This process's place; the only one where no launcher is named.

    Raises:
        UsageError: What the environment says is incomplete.
    """
    for rank, size, local in _NAMES:
        if size in os.environ:
            count = _integer_variable(size, size)
            if count < 2:
                return ProcessInfo()
            number = _integer_variable(rank, size)
            if size == "WORLD_SIZE":
                return ProcessInfo(
                    number, count, restart_count=os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
                )
            return ProcessInfo(number, count, _init_method(size, local))
    return ProcessInfo()


def is_main_process() -> bool:
    """Whether the environment names this process the first one, or none."""
    return process_info().rank == 0


def launcher_warning() -> str | None:
    """What a user should know who asked ``accelerate`` for several processes and got one."""
    asked = "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ
    if not asked or any(size in os.environ for _, size, _ in _NAMES):
        return None
    return (
        "accelerate was asked for several processes and started one: without GPUs it starts more only with "
        "--mpirun_hostfile, or through torchrun with --multi_gpu."
    )


def _integer_variable(name: str, size: str) -> int:
    text = os.environ.get(name)
    if text is None or not text.isdecimal():
        found = "is not set" if text is None else f"is {text!r}"
        raise UsageError(
            f"environment: {size} is set and {name} {found}; start the processes through torchrun, "
            f"accelerate or mpirun, or unset {size}."
        )
    return int(text)


def _init_method(size: str, local: str) -> str:
    """Where the processes of MPI meet: on their machine, or where ``MASTER_ADDR`` says."""
    address = os.environ.get("MASTER_ADDR")
    if address is None and os.environ.get(local) != os.environ[size]:
        raise UsageError(
            "environment: the processes are on several machines and MASTER_ADDR is not set; give all of them "
            "the name of the first one's machine (mpirun -x MASTER_ADDR=NAME, or -genv)."
        )
    job = next((os.environ[name] for name in _JOB if name in os.environ), "")
    port = os.environ.get("MASTER_PORT") or _PORT + zlib.crc32(job.encode()) % _PORTS
    return f"tcp://{address or '127.0.0.1'}:{port}"
