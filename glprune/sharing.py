"""What the processes of one run share out and what they hear from the first one."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from glprune.crew import Crew
from glprune.data import Inputs, Narrowing, Split, StreamedSplit, narrowed
from glprune.errors import ModelError
from glprune.journal import Journal, Record, tensors_digest

_MEND = "write the files with smaller row groups or start fewer processes"


@dataclass(frozen=True)
class SharedSplit:
    """One process's part of the training rows.

    Of a split in memory each batch is shared out, row by row, so that the processes together take the batches
    that one would take. Of streamed files each process reads row groups of its own, and of each batch as many
    rows as fall to it.

    Attributes:
        whole: All rows.
        crew: The processes.
    """

    whole: Split
    crew: Crew

    @property
    def rows(self) -> int:
        """Number of rows of all processes."""
        return self.whole.rows

    def narrowed(self, narrow: Narrowing) -> SharedSplit:
        """The same parts of the kept columns."""
        return replace(self, whole=narrowed(self.whole, narrow))

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


class SharedJournal(Journal):
    """The first process's journal, heard by all; what is kept must be the same in every process."""

    def __init__(self, own: Journal, members: Crew) -> None:
        super().__init__()
        self._own, self._crew = own, members

    @property
    def place(self) -> int:
        """How many steps lie behind."""
        return self._own.place

    def recall(self, name: str, asked: Mapping[str, Any]) -> Record | None:
        """What the first process recalls."""
        record = self._own.recall(name, asked)
        sent = self._crew.agreed(None if record is None else (record.facts, self._own.weights(record)))
        if sent is None or self._crew.first:
            return record
        return Record(name, dict(asked), sent[0], sent[1])

    def keep(
        self,
        name: str,
        asked: Mapping[str, Any],
        facts: dict[str, Any],
        tensors: Mapping[str, Tensor] | None = None,
        since: int | None = None,
    ) -> Record:
        """Keep a result that all processes came to.

        Raises:
            ModelError: This process came to another one.
        """
        own = repr(sorted(facts.items())), tensors_digest(tensors or {})
        if self._crew.agreed(own) != own:
            raise ModelError(
                f"weights are not those of process 0 after the same step ({name}); run all processes on one "
                "kind of machine with the same versions."
            )
        return self._own.keep(name, asked, facts, tensors, since)

    def weights(self, record: Record) -> dict[str, Tensor]:
        """The tensors of a record."""
        return self._own.weights(record)

    def let_go(self, record: Record, prefix: str) -> None:
        """As the first process's journal does."""
        self._own.let_go(record, prefix)

    def save_if_due(self) -> None:
        """As the first process's journal does."""
        self._own.save_if_due()
