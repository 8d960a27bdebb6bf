"""Synthetic rows drawn around real ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from glprune.data.splits import Inputs

_ROWS = 32
_FEW = 4
_NUMBERS = 1 << 18  # a megabyte of float32 is enough evidence


def synthetic(inputs: Inputs, axes: Sequence[int | None], seed: int) -> Inputs:
    """Rows that are nobody's: numbers drawn around the real ones, the rest shuffled position by position.

    Codes, and inputs without features (ids, masks), take at each position a value that some real row
    has there, each position from another row: no other value need mean anything to the network.

    Args:
        inputs: Real rows of each input, shape (n_rows, ...).
        axes: The feature axis of each input.
        seed: Seed of the draw.
    """
    numbers = max(1, sum(x[0].numel() for x in inputs))
    rows = max(_FEW, min(_ROWS, _NUMBERS // numbers))
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


_CONSTANT, _AROUND_CONSTANT = 1e-7, 1e-3  # spread over mean that is round-off, and what is drawn with instead


def random_like(inputs: Sequence[Tensor], axes: Sequence[int | None], rows: int, seed: int) -> Inputs:
    """Random rows around real ones: normal with three times their spread, or around a constant.

    Integers, and inputs without features (ids, masks), are drawn from the real rows: no other value
    need mean anything to the network.

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
            most = torch.finfo(x.dtype).max
            drawn.append((mean + 3.0 * spread * noise).clamp(-most, most).to(x.dtype))
        else:
            drawn.append(x[torch.randint(x.shape[0], (rows,), generator=generator)])
    return tuple(drawn)
