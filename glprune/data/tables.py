"""Files of columns, opened without reading their rows: CSV, Parquet, folders of Parquet."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from glprune._files import unreadable_reason
from glprune.errors import DataError, did_you_mean, name_list

EXACT = 2**53
"""Up to here float64 holds every whole number."""
_BATCH_BYTES = 1 << 22  # of the rows read at once, as float32; conversions stay in the cache
_FEWEST_ROWS = 256  # read at once, however wide: a call has a price for each column
_BUFFER = 1 << 16  # of one column's bytes; without it a reader holds a whole row group


@dataclass(frozen=True)
class RowGroup:
    """Rows that are read together: a row group of a Parquet file, or a whole CSV file.

    Attributes:
        shard: Number of the file.
        group: Number of the row group in it.
        start: Number of its first row in the table.
        rows: Number of rows.
    """

    shard: int
    group: int
    start: int
    rows: int

    @property
    def span(self) -> slice:
        """Its rows in the table."""
        return slice(self.start, self.start + self.rows)


Reader = Callable[[RowGroup, Sequence[str]], Iterator[pa.RecordBatch]]


class Table(ABC):
    """Columns by name, read when they are asked for.

    Attributes:
        path: The file or folder.
        schema: Names and types of the columns.
        pieces: What can be read on its own, in order.
    """

    path: Path
    schema: pa.Schema
    pieces: tuple[RowGroup, ...]

    @property
    def names(self) -> list[str]:
        """The columns in file order."""
        return self.schema.names

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(piece.rows for piece in self.pieces)

    def column(self, name: str) -> pa.ChunkedArray:
        """A whole column of plain values.

        Raises:
            DataError: It holds lists, structs or bytes, such as text that is not UTF-8.
        """
        kind = self.schema.field(name).type
        if pa.types.is_nested(kind) or pa.types.is_binary(kind):
            raise DataError(f"{self.path}: column {name!r} holds {kind} values; take numbers or UTF-8 text.")
        return pa.chunked_array([b[0] for b in self.batches([name])], kind)

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield all rows of some columns, some megabytes at a time."""
        read = self.reader()
        for piece in self.pieces:
            yield from read(piece, columns)

    @abstractmethod
    def reader(self) -> Reader:
        """What yields the rows of a piece, some megabytes at a time, columns in the order asked for.

        It raises DataError where the file is damaged, or another than it was.
        """

    @abstractmethod
    def place(self, row: int) -> str:
        """Where a row is, counted from 0: ``row 3``, or ``row 3 of part-1.parquet``."""

    @abstractmethod
    def digest(self) -> str:
        """``sha256:...`` of the file, or of the digests of a folder's files."""


def open_table(path: Path) -> Table:
    """Open a CSV file, a Parquet file, or a folder of Parquet files.

    Raises:
        DataError: It is missing, empty, truncated, ragged, not UTF-8 or of another kind.
    """
    why = unreadable_reason(path)
    if why is not None and not os.path.isdir(path):
        raise DataError(f"{path} {why}; name a file or a folder of Parquet, relative to the recipe.")
    kind = path.suffix.lower()
    table: Table
    if path.is_dir() or kind in (".parquet", ".pq"):
        table = ParquetTable(path)
    elif kind in (".csv", ".txt"):
        table = CsvTable(path)
    else:
        raise DataError(
            f"{path}: kind {path.suffix or 'unknown'!r}; give .csv, .parquet or a folder of Parquet."
        )
    if table.rows == 0:
        raise DataError(f"{path}: no rows.")
    return table


class CsvTable(Table):
    """A CSV file, which is in memory whole: its types are known when all of it was read."""

    def __init__(self, path: Path) -> None:
        with _readable(path):
            self._table = pa.csv.read_csv(path)
            _check_distinct(self._table.column_names, path)
        self.path, self.schema = path, self._table.schema
        self.pieces = (RowGroup(0, 0, 0, self._table.num_rows),)

    def reader(self) -> Reader:
        """What yields all rows."""
        return lambda _, columns: iter(
            self._table.select(list(columns)).to_batches(max_chunksize=rows_at_once(len(columns)))
        )

    def place(self, row: int) -> str:
        """Where a row is."""
        return f"row {row + 1}"

    def digest(self) -> str:
        """The file's."""
        return "sha256:" + _hash(self.path).hex()


@dataclass(frozen=True)
class _Shard:
    """A Parquet file as it was when it was opened.

    Attributes:
        path: The file.
        start: Number of its first row in the table.
        groups: Rows of each row group.
        stamp: Size and time of its last change.
    """

    path: Path
    start: int
    groups: tuple[int, ...]
    stamp: tuple[int, int]


class ParquetTable(Table):
    """A Parquet file or a folder of them, one table in the order of their paths; nothing of it is held."""

    def __init__(self, path: Path) -> None:
        self.path, self.whole = path, not path.is_dir()
        self._shards: list[_Shard] = []
        start = 0
        for file in [path] if self.whole else _parquet_files(path):
            with _readable(file):
                stamp, opened = _stamp(file), pa.parquet.ParquetFile(file)
                _check_distinct(opened.schema_arrow.names, file)
            if not self._shards:
                self.schema = opened.schema_arrow
            _check_alike(opened.schema_arrow, self.schema, file, self._shards)
            metadata = opened.metadata
            groups = tuple(metadata.row_group(n).num_rows for n in range(metadata.num_row_groups))
            self._shards.append(_Shard(file, start, groups, stamp))
            start += sum(groups)
        self.pieces = tuple(_pieces(self._shards))

    def reader(self) -> Reader:
        """What yields the rows of a row group; the file it read last stays open as long as it lives."""
        return _ShardReader(self._shards)

    def place(self, row: int) -> str:
        """Where a row is."""
        shard = next(s for s in reversed(self._shards) if s.start <= row)
        file = "" if self.whole else f" of {shard.path.relative_to(self.path).as_posix()}"
        return f"row {row - shard.start + 1}{file}"

    def digest(self) -> str:
        """The file's; of a folder that of its files' digests, in order."""
        hashes = [_hash(shard.path) for shard in self._shards]
        return "sha256:" + (hashes[0] if self.whole else hashlib.sha256(b"".join(hashes)).digest()).hex()


def rows_at_once(columns: int) -> int:
    """Rows to read together: some megabytes."""
    return max(_FEWEST_ROWS, _BATCH_BYTES // (4 * max(1, columns)))


def _parquet_files(folder: Path) -> list[Path]:
    """The Parquet files of a folder and its folders; hidden ones and those of a writer's own are not data."""
    files = [p for kind in ("*.parquet", "*.pq") for p in folder.rglob(kind) if p.is_file()]
    shown = [p for p in files if not any(s[0] in "._" for s in p.relative_to(folder).parts)]
    if not shown:
        raise DataError(f"{folder}: no Parquet file in this folder.")
    return sorted(shown, key=lambda p: p.as_posix())


def _check_alike(schema: pa.Schema, first: pa.Schema, file: Path, before: Sequence[_Shard]) -> None:
    """Refuse a file of other columns, or other types, than the first one's."""
    if not before or schema.equals(first):
        return
    known, found = set(first.names), set(schema.names)
    name = before[0].path.name
    if known - found:
        missing = sorted(known - found)
        raise DataError(
            f"{file}: column {name_list(missing)} missing, which {name} has."
            f"{did_you_mean(missing[0], schema.names)}"
        )
    if found - known:
        raise DataError(f"{file}: column {name_list(sorted(found - known))} not in {name}.")
    other = next((n for n in first.names if schema.field(n).type != first.field(n).type), None)
    if other is not None:
        raise DataError(
            f"{file}: column {other!r} is {schema.field(other).type}, in {name} it is "
            f"{first.field(other).type}; write all files with one schema."
        )


def _pieces(shards: Sequence[_Shard]) -> Iterator[RowGroup]:
    for number, shard in enumerate(shards):
        starts = itertools.accumulate(shard.groups, initial=shard.start)
        for group, (start, rows) in enumerate(zip(starts, shard.groups, strict=False)):
            if rows:
                yield RowGroup(number, group, start, rows)


class _ShardReader:
    """Reads row groups; keeps the file it read last, whose footer may hold megabytes."""

    def __init__(self, shards: Sequence[_Shard]) -> None:
        self._shards, self._number, self._file = shards, -1, None

    def __call__(self, piece: RowGroup, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        names = list(columns)
        with _readable(self._shards[piece.shard].path):
            # threads of Arrow would hold buffers for every column each
            for batch in self._open(piece.shard).iter_batches(
                rows_at_once(len(names)), row_groups=[piece.group], columns=names, use_threads=False
            ):
                yield batch.select(names)

    def _open(self, number: int) -> pa.parquet.ParquetFile:
        if number != self._number:
            shard = self._shards[number]
            if _stamp(shard.path) != shard.stamp:
                raise DataError(
                    f"{shard.path} changed since the run began; leave the data alone while it works."
                )
            self._file = pa.parquet.ParquetFile(shard.path, buffer_size=_BUFFER, pre_buffer=False)
            self._number = number
        return self._file


def _check_distinct(names: Sequence[str], path: Path) -> None:
    if len(set(names)) < len(names):
        double = sorted(name for name, count in Counter(names).items() if count > 1)
        raise DataError(f"{path}: column {name_list(double)} there twice; rename one.")


def _stamp(file: Path) -> tuple[int, int]:
    facts = file.stat()
    return facts.st_size, facts.st_mtime_ns


def _hash(file: Path) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What goes wrong while a file is read, as one line that names it."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: a column's name is not UTF-8; save the file as UTF-8.") from error
    except (pa.ArrowException, OSError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise DataError(f"{path}: cannot be read ({first}).") from error


def first_inexact(column: pa.Array | pa.ChunkedArray) -> int | None:
    """The row of a column's first number beyond what its type, or float64, counts to; None where none is."""
    if pa.types.is_integer(column.type) and column.type.bit_width < 64:
        return None
    limit = pa.scalar(2 ** _digits(column.type), pa.int64()).cast(column.type)
    ends = pc.min_max(column)
    if not any(e.is_valid and abs(e.as_py()) > limit.as_py() for e in ends.values()):
        return None
    past = pc.greater(column, limit)
    if not pa.types.is_unsigned_integer(column.type):
        past = pc.or_(past, pc.less(column, pc.negate(limit)))
    return int(pc.index(past, True).as_py())


def _digits(kind: pa.DataType) -> int:
    """Binary digits of the whole numbers that a type, or float64, holds without a gap."""
    return {pa.float16(): 11, pa.float32(): 24}.get(kind, 53)


def inexact_message(table: Table, name: str, row: int, value: pa.Scalar, mend: str) -> str:
    """What is wrong with a number that is merged with its neighbours."""
    return (
        f"{table.path}: column {name!r} holds {value.as_py()} in {table.place(row)}; past "
        f"2^{_digits(value.type)} neighbouring numbers become one; {mend}."
    )


def refuse_inexact(table: Table, name: str, column: pa.ChunkedArray, mend: str) -> None:
    """Refuse a column of whole or floating-point numbers with one that is merged with its neighbours.

    Raises:
        DataError: With its row and the mend.
    """
    row = first_inexact(column)
    if row is not None:
        raise DataError(inexact_message(table, name, row, column[row], mend))
