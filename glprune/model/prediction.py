"""Outputs of a network over a whole split."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from glprune.data.splits import ColumnSelection, Inputs, Split
from glprune.data.streaming import StreamedSplit
from glprune.model.task import concat_batches

_CHUNK = 1024


def predict(
    model: Callable[[Inputs], Sequence[Tensor]], split: Split, narrow: Callable[[Inputs], Inputs]
) -> tuple[tuple[Tensor, ...], Tensor]:
    """All outputs of a model over a split, in order, with the targets.

    Args:
        model: Takes a tuple of inputs.
        split: The rows.
        narrow: Takes the model's columns out of a full batch.
    """
    if isinstance(split, StreamedSplit) and isinstance(narrow, ColumnSelection):
        split, narrow = split.view_columns(narrow), lambda inputs: inputs
    with torch.no_grad():
        return concat_batches(((model(narrow(x)), y) for x, y in split.batches(_CHUNK, None)), split.rows)
