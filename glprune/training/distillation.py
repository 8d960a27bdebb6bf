"""Data without labels: the outputs of the original network are the targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from glprune.data.splits import IndexableSplit, Inputs, Split, TensorSplit
from glprune.errors import ModelError
from glprune.model.outputs import leaves

if TYPE_CHECKING:
    from glprune.data.records import Data
    from glprune.model.task import Task

_CHUNK = 1024


@dataclass(frozen=True)
class TeacherSplit:
    """A streamed split whose targets the original network computes for every batch.

    Attributes:
        split: The inputs.
        teacher: Computes the targets of a batch of inputs, shape (rows, n).
    """

    split: Split
    teacher: Callable[[Inputs], Tensor]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.split.rows

    def batches(self, size: int | None, generator: torch.Generator | None) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield the split's batches with targets."""
        for inputs, _ in self.split.batches(size, generator):
            yield inputs, self.teacher(inputs)


@dataclass(frozen=True)
class IndexableTeacherSplit(TeacherSplit):
    """A ``TeacherSplit`` whose rows can be selected by their numbers.

    Attributes:
        split: The inputs, with targets of no columns.
    """

    split: IndexableSplit

    @property
    def target(self) -> Tensor:
        """Shape (rows, 0): the real targets are never all in memory."""
        return self.split.target

    def take(self, rows: NDArray[np.int64]) -> IndexableTeacherSplit:
        """Return the split of some rows."""
        return replace(self, split=self.split.take(rows))


def with_teacher_targets(data: Data, network: nn.Module, task: Task) -> tuple[Data, Task]:
    """Use the original network's outputs as the targets of every split.

    Args:
        data: Data without targets.
        network: The original network, in evaluation mode.
        task: The task, without scales.

    Returns:
        The data, targets of shape (rows, n), and the task with the scale of every output.

    Raises:
        ModelError: No output varies over the training rows.
    """
    scaled = replace(task, scales=_scales(data.train, network))

    @torch.no_grad()
    def teach(inputs: Inputs) -> Tensor:
        return scaled.view(network(*inputs))

    train, valid, test = (_teacher_split(split, teach) for split in (data.train, data.valid, data.test))
    return replace(data, train=train, valid=valid, test=test), scaled


def _teacher_split(split: Split, teach: Callable[[Inputs], Tensor]) -> Split:
    """Compute targets once if the inputs are in memory, else for every batch."""
    if isinstance(split, TensorSplit):
        return replace(split, target=torch.cat([teach(x) for x, _ in split.batches(_CHUNK, None)]))
    return (
        IndexableTeacherSplit(split, teach)
        if isinstance(split, IndexableSplit)
        else TeacherSplit(split, teach)
    )


@torch.no_grad()
def _scales(train: Split, network: nn.Module) -> tuple[float, ...]:
    """Compute the scale of each output, by which it is divided so that all have equal weight.

    The scale is the root of the mean variance of the output's values over the training rows. Outputs of more
    values have more weight in a mean over all values, so the scale also has a factor for their number. It is
    0.0 for outputs that are not distilled: integers, and those that never vary.
    """
    count = 0
    sums: list[Tensor] = []
    squares: list[Tensor] = []
    whole: list[bool] = []
    for inputs, _ in train.batches(_CHUNK, None):
        outputs = leaves(network(*inputs))
        flat = [y.reshape(len(y), -1).double() for y in outputs]
        if not sums:
            sums, squares = ([torch.zeros(y.shape[1], dtype=torch.float64) for y in flat] for _ in range(2))
            whole = [not y.is_floating_point() for y in outputs]
        if any(y.shape[1] != s.numel() for y, s in zip(flat, sums, strict=True)):
            raise ModelError("The network's outputs change their size from batch to batch; pad the inputs.")
        count += len(inputs[0])
        sums = [s + y.sum(0) for s, y in zip(sums, flat, strict=True)]
        squares = [s + y.square().sum(0) for s, y in zip(squares, flat, strict=True)]
    spreads = [
        0.0 if skip else float((q / count - (s / count).square()).clamp(min=0).mean().sqrt())
        for s, q, skip in zip(sums, squares, whole, strict=True)
    ]
    if max(spreads) == 0:
        raise ModelError(
            "The network's output is the same for all training rows; there is nothing to follow."
        )
    followed = [s.numel() for s, spread in zip(sums, spreads, strict=True) if spread > 0]
    share = sum(followed) / len(followed)
    return tuple(spread * (s.numel() / share) ** 0.5 for s, spread in zip(sums, spreads, strict=True))
