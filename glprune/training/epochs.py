"""Batches of an epoch, and repeats with a halved step size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from glprune.errors import NonFiniteError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from glprune.data.splits import Inputs, Split

MIN_STEPS = 20  # of an epoch: with few rows, one pass over them makes too few steps
Outcome = TypeVar("Outcome")


def with_halving(train: Callable[[float], Outcome], max_halvings: int) -> tuple[Outcome, int]:
    """Run a training, and again with half the step size if its numbers are not finite.

    A training that diverges is useless for many steps before it overflows, so it starts again from its
    beginning.

    Args:
        train: The training from its beginning; takes the factor on its step size.
        max_halvings: How often the step size may be halved.

    Returns:
        What ``train`` returned, and how often the step size was halved.

    Raises:
        NonFiniteError: The numbers are not finite with the last step size either.
    """
    for halvings in itertools.count():
        try:
            return train(0.5**halvings), halvings
        except NonFiniteError as error:
            if halvings == 0 == max_halvings:
                raise
            if halvings == max_halvings:
                raise NonFiniteError(f"{error} The step size was halved {halvings} times.") from None
    raise AssertionError  # the count has no end


def batch_size(size: int | str, split: Split) -> int:
    """Return the recipe's batch size as ``Split.batches`` takes it; ``"all"`` is the number of rows."""
    return split.rows if size == "all" else min(int(size), split.rows)


def passes_per_epoch(size: int | str, split: Split) -> int:
    """Return how often an epoch passes over the rows: once, or more if that would be few steps."""
    steps = math.ceil(split.rows / (batch_size(size, split) or split.rows))
    return math.ceil(MIN_STEPS / steps)


def rows_per_epoch(
    split: Split, size: int | str, generator: torch.Generator
) -> Iterator[tuple[Inputs, Tensor]]:
    """Yield the batches of an epoch, of one or more passes over the rows."""
    for _ in range(passes_per_epoch(size, split)):
        yield from split.batches(batch_size(size, split), generator)
