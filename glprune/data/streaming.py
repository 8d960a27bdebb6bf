"""Rows of Parquet files streamed in batches: never more of them in memory than a buffer of two blocks."""

from __future__ import annotations

import functools
import itertools
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glprune.data.tables import ParquetTable, Reader, RowGroup, Table, rows_at_once
from glprune.data.validation import COLUMNS_AT_ONCE, TYPES, Dtype, blocks, coded, numbers
from glprune.errors import RecipeError

if TYPE_CHECKING:
    from glprune.data.records import InputColumns
    from glprune.data.splits import ColumnSelection, Inputs
    from glprune.data.splitting import Part
    from glprune.schema.recipe import Recipe

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class StreamPlan:
    """How rows are streamed, the same for every split.

    Attributes:
        columns: The columns of each input.
        dtypes: What each input is read as.
        block_rows: Rows shuffled together, a quarter and a half of them at first; two such blocks are in
            memory, one in use and one being filled.
        pass_rows: Rows of a block where nothing is shuffled.
    """

    columns: tuple[tuple[str, ...], ...]
    dtypes: tuple[Dtype, ...]
    block_rows: int
    pass_rows: int

    @property
    def every(self) -> list[str]:
        """The columns of all inputs, as they are read together."""
        return [name for own in self.columns for name in own]


def plan_stream(
    recipe: Recipe, tables: Mapping[str, Table], inputs: Sequence[InputColumns]
) -> StreamPlan | None:
    """What the recipe's ``data.stream`` comes to; None where rows are to be held in memory.

    Raises:
        RecipeError: A file is not Parquet, or a batch is larger than the buffer.
    """
    spec = recipe.data.stream
    if spec is None:
        return None
    other = next((t.path for t in tables.values() if not isinstance(t, ParquetTable)), None)
    if other is not None:
        raise RecipeError(
            f"{recipe.where('data', 'stream')}: {other} is not Parquet, which alone can be streamed; "
            "convert it, or remove data.stream."
        )
    dtypes = tuple(own.dtype for own in recipe.model.inputs)
    row_bytes = sum(
        len(part.columns) * np.dtype(TYPES[dtype]).itemsize
        for part, dtype in zip(inputs, dtypes, strict=True)
    )
    rows = max(1, int(spec.buffer_mb * 2**20) // (2 * row_bytes))
    for name, size in (("train", recipe.train.batch_size), ("refit", recipe.refit.batch_size)):
        if isinstance(size, int) and size > rows:
            raise RecipeError(
                f"{recipe.where('data', 'stream')}: {name}.batch_size is {size}, half the buffer "
                f"holds {rows} rows of {row_bytes:,} bytes; raise data.stream.buffer_mb."
            )
    every = sum(len(part.columns) for part in inputs)
    return StreamPlan(tuple(p.columns for p in inputs), dtypes, rows, min(rows, rows_at_once(every)))


def stream_note(plan: StreamPlan, tables: Mapping[str, Table]) -> str:
    """What the user should know of the shuffling."""
    largest = max(piece.rows for table in tables.values() for piece in table.pieces)
    return (
        f"Rows are streamed from their files (data.stream); row groups, of at most {largest:,} rows, come in "
        f"random order and {plan.block_rows:,} rows are shuffled at a time."
    )


def _sizes(step: int, limit: int) -> Iterator[int]:
    """Rows of one block after another, in whole batches: the first is small, since all wait for it."""
    for share in (4, 2):
        yield max(step, limit // share // step * step)
    yield from itertools.repeat(limit)


@dataclass(frozen=True, eq=False)
class StreamedSplit:
    """A split read from Parquet files whenever it is gone through.

    Row groups come in an order drawn from the generator, and a block of rows at a time is shuffled; the
    order depends on the generator, the files, the block and the batch size, and on nothing else.

    Attributes:
        table: The files.
        plan: How they are read.
        chosen: Which rows of the table are of this split, bool, shape (table.rows,).
        target: Class numbers int32 or values float32, shape (rows,); (rows, 0) without labels.
    """

    table: Table
    plan: StreamPlan
    chosen: NDArray[np.bool_]
    target: Tensor

    @classmethod
    def from_plan(cls, part: Part, plan: StreamPlan) -> StreamedSplit:
        """The split of a part; class numbers take four bytes a row."""
        target = part.target if part.target.dtype == np.float32 else part.target.astype(np.int32)
        return cls(part.table, plan, part.chosen, torch.from_numpy(target))

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.target)

    def take(self, rows: NDArray[np.int64]) -> StreamedSplit:
        """The split of some rows."""
        chosen = np.zeros_like(self.chosen)
        chosen[np.flatnonzero(self.chosen)[rows]] = True
        return replace(self, chosen=chosen, target=self.target[torch.from_numpy(rows)])

    def view_columns(self, narrow: ColumnSelection) -> StreamedSplit:
        """The same rows in the same blocks, of which the kept columns alone are read."""
        kept = zip(self.plan.columns, narrow.axes, narrow.columns, strict=True)
        columns = tuple(
            own if axis is None else tuple(own[n] for n in positions.tolist())
            for own, axis, positions in kept
        )
        return replace(self, plan=replace(self.plan, columns=columns))

    def lane(self, number: int, count: int) -> StreamedSplit:
        """Every ``count``-th row group from ``number`` on: what one of several processes is to read.

        Whoever joins the batches of all lanes has the same rows, in however many processes they are read.
        """
        own = np.zeros_like(self.chosen)
        for piece in self.table.pieces[number::count]:
            own[piece.span] = True
        return self.take(np.flatnonzero(own[self.chosen]))

    def empty(self) -> tuple[Inputs, Tensor]:
        """A batch of no rows."""
        inputs, target = self._block(0, None).tensors()
        return inputs, target if target.is_floating_point() else target.long()

    def batches(self, size: int | None, generator: torch.Generator | None) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield batches in file order, or shuffled by one draw from ``generator``; no larger than a block."""
        step = min(size or self.plan.block_rows, self.plan.block_rows)
        if generator is None:
            random, limit = None, max(step, self.plan.pass_rows // step * step)
        else:
            random = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
            limit = self.plan.block_rows // step * step
        for inputs, target in read_ahead(self._blocks(_sizes(step, limit), random)):
            for start in range(0, len(target), step):
                goal = target[start : start + step]
                yield (
                    tuple(x[start : start + step] for x in inputs),
                    goal if goal.is_floating_point() else goal.long(),
                )

    @functools.cached_property
    def _places(self) -> list[tuple[RowGroup, int]]:
        """Every piece with rows of this split, and the number of its first one in the split."""
        counts = [int(np.count_nonzero(self.chosen[piece.span])) for piece in self.table.pieces]
        starts = [0, *np.cumsum(counts).tolist()]
        return [(p, start) for p, start, n in zip(self.table.pieces, starts, counts, strict=False) if n]

    def _blocks(
        self, sizes: Iterator[int], random: np.random.Generator | None
    ) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield blocks of so many rows, the last of what is left, shuffled by ``random``."""
        places, left = self._places, self.rows
        if random is not None:
            places = [places[n] for n in random.permutation(len(places))]
        read, block = self.table.reader(), self._block(min(next(sizes), left), random)
        for piece, position in places:
            for values in self._slices(read, piece):
                count, done = len(values[0]), 0
                target = self.target[position : position + count].numpy()
                while done < count:
                    done += block.put([x[done:] for x in (*values, target)])
                    if block.full:
                        yield block.tensors()
                        left -= block.rows
                        block = self._block(min(next(sizes), left), random)
                position += count

    def _block(self, rows: int, random: np.random.Generator | None) -> _Block:
        shapes = [(len(own),) for own in self.plan.columns]
        types = [TYPES[dtype] for dtype in self.plan.dtypes]
        target = self.target[:0].numpy()
        arrays = [np.empty((rows, *s), t) for s, t in zip(shapes, types, strict=True)]
        arrays.append(np.empty((rows, *target.shape[1:]), target.dtype))
        return _Block(arrays, rows, None if random is None else random.permutation(rows))

    def _slices(self, read: Reader, piece: RowGroup) -> Iterator[tuple[NDArray[Any], ...]]:
        """Yield the inputs of a piece's rows that are of this split, some rows at a time."""
        row = piece.start
        for values in self._values(read, piece):
            chosen = self.chosen[row : row + len(values[0])]
            row += len(chosen)
            yield values if chosen.all() else tuple(x[chosen] for x in values)

    def _values(self, read: Reader, piece: RowGroup) -> Iterator[tuple[NDArray[Any], ...]]:
        plan = self.plan
        if len(plan.every) > COLUMNS_AT_ONCE and piece.rows <= plan.block_rows:
            yield tuple(
                _assembled(read, piece, own, dtype)
                for own, dtype in zip(plan.columns, plan.dtypes, strict=True)
            )
            return
        for batch in read(piece, plan.every):
            yield tuple(
                coded(numbers(batch.select(list(own)), dtype), dtype)
                for own, dtype in zip(plan.columns, plan.dtypes, strict=True)
            )


def _assembled(read: Reader, piece: RowGroup, columns: Sequence[str], dtype: Dtype) -> NDArray[Any]:
    """An input's values in a piece, read some columns at a time: a reader holds buffers for each."""
    whole = np.empty((piece.rows, len(columns)), TYPES[dtype])
    for tile in blocks(read, piece, columns, dtype):
        rows, width = tile.values.shape
        start = tile.row - piece.start
        whole[start : start + rows, tile.column : tile.column + width] = coded(tile.values, dtype)
    return whole


class _Block:
    """Rows on their way into batches.

    Args:
        arrays: The inputs and the target, shape (rows, ...) each, to be filled.
        rows: Number of rows.
        order: Where each comes to lie; None keeps the order they come in.
    """

    def __init__(self, arrays: Sequence[NDArray[Any]], rows: int, order: NDArray[np.int64] | None) -> None:
        self._arrays, self.rows, self._order = arrays, rows, order
        self._filled = 0

    @property
    def full(self) -> bool:
        """Whether all rows are there."""
        return self._filled == self.rows

    def put(self, values: Sequence[NDArray[Any]]) -> int:
        """Take in as many rows as there is room for, and say how many."""
        count = min(self.rows - self._filled, len(values[0]))
        there = slice(self._filled, self._filled + count)
        for array, x in zip(self._arrays, values, strict=True):
            array[there if self._order is None else self._order[there]] = x[:count]
        self._filled += count
        return count

    def tensors(self) -> tuple[Inputs, Tensor]:
        """The inputs and the target."""
        *inputs, target = (torch.from_numpy(array) for array in self._arrays)
        return tuple(inputs), target


def read_ahead(items: Iterator[_Item]) -> Iterator[_Item]:
    """Draw from an iterator in a thread of its own: the next item is made while the last one is used.

    The thread ends with the iteration, also where that is abandoned; what the iterator raises is raised
    here.
    """
    made: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
    wanted, over = threading.Semaphore(1), threading.Event()

    def work() -> None:
        try:
            while wanted.acquire() and not over.is_set():
                item = next(items)
                made.put((True, item))
                del item  # not to be held while the next one is made
        except BaseException as error:  # whatever it is, it is the iterating thread's
            made.put((False, error))

    thread = threading.Thread(target=work, name="glprune-read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            good, item = made.get()
            if not good:
                if isinstance(item, StopIteration):
                    return
                raise item
            wanted.release()
            yield item
    finally:
        over.set()
        wanted.release()
        thread.join()
