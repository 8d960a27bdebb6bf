"""Make results depend on the recipe's seed and threads only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def reproducible(seed: int, threads: int) -> Iterator[None]:
    """Seed PyTorch and set its threads inside the block; restore the caller's settings after it.

    PyTorch splits sums among its threads, so their number changes the last digits, and these can change the
    order in which groups become zero.

    Args:
        seed: Seed of PyTorch's own generator.
        threads: Threads of one tensor operation.
    """
    strict, before = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True)
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(strict)
            torch.set_num_threads(before)
