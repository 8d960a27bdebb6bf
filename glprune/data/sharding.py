"""What the processes of one run share out and what they hear from the first one."""

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

_MEND = "write the files with smaller row groups or start fewer processes"


@dataclass(frozen=True)
class ShardedSplit:
    """One process's part of the training rows.

    Of a split in memory each batch is shared out, row by row, so that the processes together take the batches
    that one would take. Of streamed files each process reads row groups of its own, and of each batch as many
    rows as fall to it.

    Attributes:
        whole: All rows.
        crew: The processes.
    """

    whole: Split
    crew: ProcessGroup

    @property
    def rows(self) -> int:
        """Number of rows of all processes."""
        return self.whole.rows

    def view_columns(self, narrow: ColumnSelection) -> ShardedSplit:
        """The same parts of the kept columns."""
        return replace(self, whole=view_columns(self.whole, narrow))

    def batches(self, size: int | None, generator: torch.Generator | None) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield this process's part of each batch; every process gets as many, some of no rows."""
        if isinstance(self.whole, StreamedSplit):
            yield from self._own_lane(self.whole, size, generator)
            return
        rank, step = self.crew.rank, self.crew.size
        for inputs, target in self.whole.batches(size, generator):
            yield tuple(x[rank::step] for x in inputs), target[rank::step]

    def note(self) -> str | None:
        """What the user should know where row groups do not go round."""
        if not isinstance(self.whole, StreamedSplit):
            return None
        idle = sum(not lane.rows for lane in self._lanes)
        return (
            f"{idle} of {self.crew.size} processes have no row group to read and wait; {_MEND}."
            if idle
            else None
        )

    @functools.cached_property
    def _lanes(self) -> list[StreamedSplit]:
        """The row groups of every process: each has to know how many batches the others take."""
        assert isinstance(self.whole, StreamedSplit)  # nothing else is read in lanes
        return [self.whole.lane(n, self.crew.size) for n in range(self.crew.size)]

    def _own_lane(
        self, whole: StreamedSplit, size: int | None, generator: torch.Generator | None
    ) -> Iterator[tuple[Inputs, Tensor]]:
        most = whole.plan.block_rows
        part = most if size is None else min(most, max(1, -(-size // self.crew.size)))
        count = max(-(-lane.rows // part) for lane in self._lanes)
        for batch in self._lanes[self.crew.rank].batches(part, generator):
            yield batch
            count -= 1
        for _ in range(count):
            yield whole.empty()
