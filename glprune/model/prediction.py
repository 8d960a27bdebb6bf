"""Compute the outputs of a network over a whole split."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from glprune.data.splits import ColumnSelection, Inputs, Split
from glprune.data.streaming import StreamedSplit
from glprune.model.task import concat_batches

_CHUNK = 1024


def predict(
    model: Callable[[Inputs], Sequence[Tensor]], split: Split, select: Callable[[Inputs], Inputs]
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return all outputs of a model over a split, in order, with the targets.

    Args:
        model: Takes a tuple of inputs.
        split: The rows.
        select: Takes the model's columns out of a full batch.
    """
    if isinstance(split, StreamedSplit) and isinstance(select, ColumnSelection):
        split, select = split.view_columns(select), lambda inputs: inputs
    with torch.no_grad():
        return concat_batches(((model(select(x)), y) for x, y in split.batches(_CHUNK, None)), split.rows)
