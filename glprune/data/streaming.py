"""Stream the rows of Parquet files in batches, with at most two blocks of rows in memory."""

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

from glprune.errors import RecipeError
from glprune.tables.table import ParquetTable, Reader, RowGroup, Table, rows_at_once
from glprune.tables.validation import COLUMNS_AT_ONCE, TYPES, Dtype, blocks, coded, numbers

if TYPE_CHECKING:
    from glprune.data.splits import ColumnSelection, Inputs
    from glprune.schema.recipe import Recipe
    from glprune.tables.features import InputColumns
    from glprune.tables.splitting import Part

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class StreamPlan:
    """How rows are streamed, the same for every split.

    Attributes:
        columns: The columns of each input.
        dtypes: The type that each input is read as.
        block_rows: Rows that are shuffled together; the first two blocks have a quarter and a half of them.
            Two blocks are in memory: one in use and one that is being read.
        pass_rows: Rows of a block without shuffling.
    """

    columns: tuple[tuple[str, ...], ...]
    dtypes: tuple[Dtype, ...]
    block_rows: int
    pass_rows: int

    @property
    def every(self) -> list[str]:
        """The columns of all inputs, in the order in which they are read."""
        return [name for own in self.columns for name in own]


def plan_stream(
    recipe: Recipe, tables: Mapping[str, Table], inputs: Sequence[InputColumns]
) -> StreamPlan | None:
    """Plan how to stream with the recipe's ``data.stream``; None if rows are held in memory.

    Raises:
        RecipeError: A file is not Parquet, or a batch is larger than the buffer.
    """
    spec = recipe.data.stream
    if spec is None:
        return None
    other = next((t.path for t in tables.values() if not isinstance(t, ParquetTable)), None)
    if other is not None:
        raise RecipeError(
            f"{recipe.where('data', 'stream')}: {other} is not Parquet, and only Parquet can be streamed; "
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
    """Return what the user should know about the shuffling."""
    largest = max(group.rows for table in tables.values() for group in table.row_groups)
    return (
        f"Rows are streamed from their files (data.stream): row groups, of at most {largest:,} rows, are "
        f"read in random order, and {plan.block_rows:,} rows are shuffled together."
    )


def _sizes(step: int, limit: int) -> Iterator[int]:
    """Yield the rows of each block, in whole batches; the first is small, because training waits for it."""
    for share in (4, 2):
        yield max(step, limit // share // step * step)
    yield from itertools.repeat(limit)


@dataclass(frozen=True, eq=False)
class StreamedSplit:
    """A split that is read from Parquet files on every pass.

    Row groups are read in random order, and the rows of a block are shuffled together. The order depends only
    on the generator, the files, the block size and the batch size.

    Attributes:
        table: The files.
        plan: How they are read.
        chosen: Mask of the table's rows that belong to this split, bool, shape (table.rows,).
        target: Class numbers int32 or values float32, shape (rows,); (rows, 0) without labels.
    """

    table: Table
    plan: StreamPlan
    chosen: NDArray[np.bool_]
    target: Tensor

    @classmethod
    def from_plan(cls, part: Part, plan: StreamPlan) -> StreamedSplit:
        """Make the split of a part; class numbers take four bytes for each row."""
        target = part.target if part.target.dtype == np.float32 else part.target.astype(np.int32)
        return cls(part.table, plan, part.chosen, torch.from_numpy(target))

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.target)

    def take(self, rows: NDArray[np.int64]) -> StreamedSplit:
        """Return the split of some rows."""
        chosen = np.zeros_like(self.chosen)
        chosen[np.flatnonzero(self.chosen)[rows]] = True
        return replace(self, chosen=chosen, target=self.target[torch.from_numpy(rows)])

    def view_columns(self, selection: ColumnSelection) -> StreamedSplit:
        """Return the same rows in the same blocks; only the kept columns are read."""
        kept = zip(self.plan.columns, selection.axes, selection.columns, strict=True)
        columns = tuple(
            own if axis is None else tuple(own[n] for n in positions.tolist())
            for own, axis, positions in kept
        )
        return replace(self, plan=replace(self.plan, columns=columns))

    def lane(self, index: int, count: int) -> StreamedSplit:
        """Return every ``count``-th row group from ``index`` on: what one of several processes reads.

        Together all lanes hold the rows of the split.
        """
        in_lane = np.zeros_like(self.chosen)
        for group in self.table.row_groups[index::count]:
            in_lane[group.span] = True
        return self.take(np.flatnonzero(in_lane[self.chosen]))

    def empty(self) -> tuple[Inputs, Tensor]:
        """Return a batch without rows."""
        inputs, target = self._block(0, None).tensors()
        return inputs, target if target.is_floating_point() else target.long()

    def batches(self, size: int | None, generator: torch.Generator | None) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield batches in file order, or shuffled with a seed from ``generator``; at most a block each."""
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
    def _groups(self) -> list[tuple[RowGroup, int]]:
        """Every row group with rows of this split, and the index of the first of them in the split."""
        counts = [int(np.count_nonzero(self.chosen[g.span])) for g in self.table.row_groups]
        starts = [0, *np.cumsum(counts).tolist()]
        return [(g, start) for g, start, n in zip(self.table.row_groups, starts, counts, strict=False) if n]

    def _blocks(
        self, sizes: Iterator[int], random: np.random.Generator | None
    ) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield blocks of the given sizes, the last of the remaining rows, shuffled by ``random``."""
        groups, remaining = self._groups, self.rows
        if random is not None:
            groups = [groups[n] for n in random.permutation(len(groups))]
        read, block = self.table.reader(), self._block(min(next(sizes), remaining), random)
        for group, position in groups:
            for values in self._slices(read, group):
                count, done = len(values[0]), 0
                target = self.target[position : position + count].numpy()
                while done < count:
                    done += block.put([x[done:] for x in (*values, target)])
                    if block.full:
                        yield block.tensors()
                        remaining -= block.rows
                        block = self._block(min(next(sizes), remaining), random)
                position += count

    def _block(self, rows: int, random: np.random.Generator | None) -> _Block:
        shapes = [(len(own),) for own in self.plan.columns]
        types = [TYPES[dtype] for dtype in self.plan.dtypes]
        target = self.target[:0].numpy()
        arrays = [np.empty((rows, *s), t) for s, t in zip(shapes, types, strict=True)]
        arrays.append(np.empty((rows, *target.shape[1:]), target.dtype))
        return _Block(arrays, rows, None if random is None else random.permutation(rows))

    def _slices(self, read: Reader, group: RowGroup) -> Iterator[tuple[NDArray[Any], ...]]:
        """Yield the inputs of a row group's rows that belong to this split, some rows at a time."""
        row = group.start
        for values in self._values(read, group):
            chosen = self.chosen[row : row + len(values[0])]
            row += len(chosen)
            yield values if chosen.all() else tuple(x[chosen] for x in values)

    def _values(self, read: Reader, group: RowGroup) -> Iterator[tuple[NDArray[Any], ...]]:
        plan = self.plan
        if len(plan.every) > COLUMNS_AT_ONCE and group.rows <= plan.block_rows:
            yield tuple(
                _read_values(read, group, own, dtype)
                for own, dtype in zip(plan.columns, plan.dtypes, strict=True)
            )
            return
        for batch in read(group, plan.every):
            yield tuple(
                coded(numbers(batch.select(list(own)), dtype), dtype)
                for own, dtype in zip(plan.columns, plan.dtypes, strict=True)
            )


def _read_values(read: Reader, group: RowGroup, columns: Sequence[str], dtype: Dtype) -> NDArray[Any]:
    """Read an input's values in a row group, some columns at a time: a reader holds a buffer for each."""
    values = np.empty((group.rows, len(columns)), TYPES[dtype])
    for block in blocks(read, group, columns, dtype):
        rows, width = block.values.shape
        start = block.row - group.start
        values[start : start + rows, block.column : block.column + width] = coded(block.values, dtype)
    return values


class _Block:
    """A block of rows that is filled, then cut into batches.

    Args:
        arrays: The inputs and the target, shape (rows, ...) each, to be filled.
        rows: Number of rows.
        order: Position of each row in the block; None keeps the order of reading.
    """

    def __init__(self, arrays: Sequence[NDArray[Any]], rows: int, order: NDArray[np.int64] | None) -> None:
        self._arrays, self.rows, self._order = arrays, rows, order
        self._filled = 0

    @property
    def full(self) -> bool:
        """Whether all rows are filled."""
        return self._filled == self.rows

    def put(self, values: Sequence[NDArray[Any]]) -> int:
        """Store as many rows as fit, and return their number."""
        count = min(self.rows - self._filled, len(values[0]))
        span = slice(self._filled, self._filled + count)
        for array, x in zip(self._arrays, values, strict=True):
            array[span if self._order is None else self._order[span]] = x[:count]
        self._filled += count
        return count

    def tensors(self) -> tuple[Inputs, Tensor]:
        """Return the inputs and the target."""
        *inputs, target = (torch.from_numpy(array) for array in self._arrays)
        return tuple(inputs), target


def read_ahead(items: Iterator[_Item]) -> Iterator[_Item]:
    """Iterate in a second thread, which makes the next item while the current one is used.

    The thread ends with the iteration, also if it is abandoned. Errors of the iterator are raised here.
    """
    results: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
    wanted, stopped = threading.Semaphore(1), threading.Event()

    def work() -> None:
        try:
            while wanted.acquire() and not stopped.is_set():
                item = next(items)
                results.put((True, item))
                del item  # free it while the next one is made
        except BaseException as error:  # noqa: BLE001  raised again in the iterating thread
            results.put((False, error))

    thread = threading.Thread(target=work, name="glprune-read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            is_item, item = results.get()
            if not is_item:
                if isinstance(item, StopIteration):
                    return
                raise item
            wanted.release()
            yield item
    finally:
        stopped.set()
        wanted.release()
        thread.join()
