"""Batches and steps of an epoch, and repeats with a halved learning rate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from glprune.errors import NonFiniteError

if TYPE_CHECKING:
    from glprune.data.splits import Split

MIN_STEPS = 20  # of an epoch: with few rows, a step for each says nothing yet
Outcome = TypeVar("Outcome")


def with_halving(work: Callable[[float], Outcome], allowed: int) -> tuple[Outcome, int]:
    """Run a training, again with half the step size where its numbers stop being finite.

    A training that diverges is finite, and lost, for many steps before it overflows: it begins anew.

    Args:
        work: The training from its beginning; takes the factor on its step size.
        allowed: How often the step size may be halved.

    Returns:
        What it returned, and how often the step size was halved.

    Raises:
        NonFiniteError: The numbers are not finite with the last step size either.
    """
    for done in itertools.count():
        try:
            return work(0.5**done), done
        except NonFiniteError as error:
            if done == 0 == allowed:
                raise
            if done == allowed:
                raise NonFiniteError(f"{error} The step size was halved {done} times.") from None
    raise AssertionError  # the count has no end


def batch_size(size: int | str, split: Split) -> int | None:
    """The recipe's batch size as :meth:`Split.batches` takes it; all rows at once is their number."""
    return split.rows if size == "all" else min(int(size), split.rows)


def passes_per_epoch(size: int | str, split: Split) -> int:
    """How often an epoch goes over the rows: once, or more where that would be few steps."""
    steps = math.ceil(split.rows / (batch_size(size, split) or split.rows))
    return math.ceil(MIN_STEPS / steps)
