"""Divide the training rows among the processes of a run."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glprune.data.splits import ColumnSelection, Inputs, Split, view_columns
from glprune.data.streaming import StreamedSplit

if TYPE_CHECKING:
    from glprune.runtime.process_group import ProcessGroup

_FIX = "write the files with smaller row groups or start fewer processes"


@dataclass(frozen=True)
class ShardedSplit:
    """The training rows of one process.

    In memory, the rows of each batch are dealt out in turn, so that all processes together use the batches
    that one process would. Streamed, each process reads different row groups and takes an equal part of each
    batch.

    Attributes:
        whole: All rows.
        group: The processes.
    """

    whole: Split
    group: ProcessGroup

    @property
    def rows(self) -> int:
        """Number of rows over all processes."""
        return self.whole.rows

    def view_columns(self, selection: ColumnSelection) -> ShardedSplit:
        """Return the same rows with the kept columns only."""
        return replace(self, whole=view_columns(self.whole, selection))

    def batches(self, size: int | None, generator: torch.Generator | None) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield this process's part of each batch; all get the same number of parts, some without rows."""
        if isinstance(self.whole, StreamedSplit):
            yield from self._lane_batches(self.whole, size, generator)
            return
        rank, step = self.group.rank, self.group.size
        for inputs, target in self.whole.batches(size, generator):
            yield tuple(x[rank::step] for x in inputs), target[rank::step]

    def note(self) -> str | None:
        """Return what the user should know if there are fewer row groups than processes."""
        if not isinstance(self.whole, StreamedSplit):
            return None
        idle = sum(not lane.rows for lane in self._lanes)
        return (
            f"{idle} of {self.group.size} processes have no row group to read and wait; {_FIX}."
            if idle
            else None
        )

    @functools.cached_property
    def _lanes(self) -> list[StreamedSplit]:
        """The rows of every process: each must know how many batches the others take."""
        assert isinstance(self.whole, StreamedSplit)  # nothing else has lanes
        return [self.whole.lane(n, self.group.size) for n in range(self.group.size)]

    def _lane_batches(
        self, whole: StreamedSplit, size: int | None, generator: torch.Generator | None
    ) -> Iterator[tuple[Inputs, Tensor]]:
        max_rows = whole.plan.block_rows
        size_here = max_rows if size is None else min(max_rows, max(1, -(-size // self.group.size)))
        count = max(-(-lane.rows // size_here) for lane in self._lanes)
        for batch in self._lanes[self.group.rank].batches(size_here, generator):
            yield batch
            count -= 1
        for _ in range(count):
            yield whole.empty()
