"""Make results depend on the recipe's seed and threads only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def reproducible(seed: int, threads: int) -> Iterator[None]:
    """Seed PyTorch and set its threads inside the block; restore the caller's settings after it.

    PyTorch splits sums among its threads, so their number changes the last digits, and these can change the
    order in which groups become zero. Gradients are recorded, and new tensors are float32 on the CPU, also
    where the caller has set it otherwise.

    Args:
        seed: Seed of PyTorch's own generator.
        threads: Threads of one tensor operation.
    """
    with torch.inference_mode(False), settings_kept(), torch.random.fork_rng(devices=[]):
        _restore(torch.float32, torch.device("cpu"), threads, strict=True, warn_only=False)
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def settings_kept() -> Iterator[None]:
    """Restore PyTorch's global settings after user code, which may change them for itself and forget to.

    Those are: whether gradients are recorded, the default type and device, threads and deterministic
    algorithms. The code begins with gradients recorded.
    """
    before = _settings()
    with torch.enable_grad():
        try:
            yield
        finally:
            if _settings() != before:
                _restore(*before)


def _settings() -> tuple[torch.dtype, torch.device, int, bool, bool]:
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


def _restore(dtype: torch.dtype, device: torch.device, threads: int, strict: bool, warn_only: bool) -> None:
    torch.set_default_dtype(dtype)
    torch.set_default_device(None if device.type == "cpu" else device)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict, warn_only=warn_only)
