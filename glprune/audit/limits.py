"""Limits of processor time and memory of a process, where the system supports them."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

_MEGABYTE = 1 << 20
_BASE_MEMORY = 600 * _MEGABYTE
_RUNNING_MEMORY = 2048 * _MEGABYTE
_MEMORY_OF_TEXT, _MEMORY_OF_NUMBERS = 35, 8
"""Bytes in memory for each byte of a JSON, YAML or HTML file, and of other files."""
_TEXTS = (".json", ".yaml", ".html", ".md")
SECONDS = 300.0
"""Default limit of the time to run the model."""
_CHECKS = 15.0
"""Seconds of processor time of all other checks of a small bundle, with the default limit."""


def memory_limit(sizes: dict[str, int]) -> int:
    """Return how many bytes of memory the files of a bundle may take, given their sizes by name."""
    texts = sum(size for name, size in sizes.items() if name.endswith(_TEXTS))
    return _BASE_MEMORY + _MEMORY_OF_TEXT * texts + _MEMORY_OF_NUMBERS * (sum(sizes.values()) - texts)


def time_limit(sizes: dict[str, int], seconds: float) -> float:
    """Return the seconds of processor time for all checks but running the model.

    Args:
        sizes: Sizes of the files by name.
        seconds: The limit for running the model.
    """
    return min(seconds, max(1.0, seconds / SECONDS) * _CHECKS + sum(sizes.values()) / _MEGABYTE)


def running_memory(model: int, batch: int) -> int:
    """Return how many bytes of memory a model may take on an auditor's rows.

    Args:
        model: Bytes of its file.
        batch: Bytes of the largest batch.
    """
    return _RUNNING_MEMORY + _MEMORY_OF_NUMBERS * (model + batch)


def limit_memory(limit: int) -> bool:
    """Limit the memory of this process; whether the system does.

    The limit is of private data: addresses that are only reserved, as runtimes do, do not count on Linux.
    """
    if resource is None:
        return False
    with contextlib.suppress(ValueError, OSError):
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
        return Path("/proc/self/statm").exists()  # elsewhere the limit can be set without an effect
    return False


def limit_time(seconds: float) -> None:
    """End this process after so many more seconds of processor time."""
    if resource is None:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    with contextlib.suppress(ValueError, OSError):
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 1, hard))


def ending(status: int, seconds: float) -> str:
    """Describe how a process ended that should not have.

    Args:
        status: Its return code, negative for a signal.
        seconds: Its limit of processor time.
    """
    if -status == getattr(signal, "SIGXCPU", None):
        return f"stopped after {seconds:g} s of processor time"
    if status < 0:
        return f"ended by signal {-status}, most likely for want of memory"
    return f"ended with status {status}"
