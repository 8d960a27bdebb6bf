"""Draw synthetic rows around real ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from glprune.data.splits import Inputs

_MAX_ROWS = 32
_MIN_ROWS = 4
_MAX_NUMBERS = 1 << 18  # a megabyte of float32 is enough


def synthetic(inputs: Inputs, axes: Sequence[int | None], seed: int) -> Inputs:
    """Make rows that match no real row: numbers drawn around the real ones, the rest shuffled by position.

    Codes and inputs without features (ids, masks) get at each position the value of a randomly chosen real
    row, because other values may be invalid for the network.

    Args:
        inputs: Real rows of each input, shape (n_rows, ...).
        axes: The feature axis of each input.
        seed: Seed of the random numbers.
    """
    numbers = max(1, sum(x[0].numel() for x in inputs))
    rows = max(_MIN_ROWS, min(_MAX_ROWS, _MAX_NUMBERS // numbers))
    generator = torch.Generator().manual_seed(seed)
    drawn = random_like(inputs, axes, rows, seed)
    return tuple(
        new if axis is not None and x.is_floating_point() else _shuffled(x, rows, generator)
        for x, new, axis in zip(inputs, drawn, axes, strict=True)
    )


def _shuffled(x: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    flat = x.reshape(len(x), -1)
    picked = torch.randint(len(x), (rows, flat.shape[1]), generator=generator)
    return flat.gather(0, picked).reshape(rows, *x.shape[1:])


_CONSTANT = 1e-7  # a smaller spread over mean is round-off
_AROUND_CONSTANT = 1e-3  # spread used for constant columns


def random_like(inputs: Sequence[Tensor], axes: Sequence[int | None], rows: int, seed: int) -> Inputs:
    """Draw normal random rows with the mean and three times the spread of real ones.

    Integers and inputs without features (ids, masks) are drawn from the real rows, since other values may be
    invalid for the network.

    Args:
        inputs: Real rows of each input.
        axes: The feature axis of each input.
        rows: Number of random rows.
        seed: Seed of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for x, axis in zip(inputs, axes, strict=True):
        if x.is_floating_point() and axis is not None:
            noise = torch.randn((rows, *x.shape[1:]), generator=generator, dtype=x.dtype)
            mean, spread = x.double().mean(0), x.double().std(0, unbiased=False)
            spread = spread.where(spread > _CONSTANT * mean.abs(), _AROUND_CONSTANT)
            limit = torch.finfo(x.dtype).max
            drawn.append((mean + 3.0 * spread * noise).clamp(-limit, limit).to(x.dtype))
        else:
            drawn.append(x[torch.randint(x.shape[0], (rows,), generator=generator)])
    return tuple(drawn)
