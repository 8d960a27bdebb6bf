"""Tables of columns whose rows are read on demand, and Parquet files and folders as tables."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from glprune.errors import DataError, did_you_mean, first_line, name_list
from glprune.schema.column_names import nfc

EXACT = 2**53
"""float64 holds every whole number up to this one."""
_BATCH_BYTES = 1 << 22  # of the rows read at once, as float32; small enough for the cache
_MIN_ROWS = 256  # read at once, however many columns: each call costs time for every column
NUMBER = r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*"
_BUFFER = 1 << 16  # bytes of one column; without it a reader holds a whole row group


@dataclass(frozen=True)
class RowGroup:
    """Rows that are read together: a row group of a Parquet file, or a whole CSV file.

    Attributes:
        shard: Index of the file.
        group: Index of the row group in the file.
        start: Index of its first row in the table.
        rows: Number of rows.
    """

    shard: int
    group: int
    start: int
    rows: int

    @property
    def span(self) -> slice:
        """The indices of its rows in the table."""
        return slice(self.start, self.start + self.rows)


Reader = Callable[[RowGroup, Sequence[str]], Iterator[pa.RecordBatch]]


class Table(ABC):
    """Columns by name, read on demand.

    Attributes:
        path: The file or folder.
        schema: Names and types of the columns.
        row_groups: The groups of rows that are read together, in order.
    """

    path: Path
    schema: pa.Schema
    row_groups: tuple[RowGroup, ...]

    @property
    def names(self) -> list[str]:
        """The columns in file order."""
        return list(self.schema.names)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(row_group.rows for row_group in self.row_groups)

    def column(self, name: str) -> pa.ChunkedArray:
        """Read a whole column of numbers or text.

        Raises:
            DataError: It holds lists, structs or bytes, such as text that is not UTF-8.
        """
        dtype = self.schema.field(name).type
        if pa.types.is_nested(dtype) or is_bytes(dtype):
            raise DataError(f"{self.path}: column {name!r} holds {dtype} values; use numbers or UTF-8 text.")
        column = pa.chunked_array([b[0] for b in self.batches([name])], dtype)
        # Arrow cannot compare or count numbers of 16 bits
        return column.cast(pa.float32()) if pa.types.is_float16(dtype) else column

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield all rows of some columns, a few megabytes at a time."""
        read = self.reader()
        for row_group in self.row_groups:
            yield from read(row_group, columns)

    @abstractmethod
    def reader(self) -> Reader:
        """Return a function that yields the rows of a row group, a few megabytes at a time.

        The columns come in the requested order. The function raises DataError if the file is damaged or has
        changed.
        """

    @abstractmethod
    def place(self, row: int) -> str:
        """Return the place of the row with an index: ``row 3``, or ``row 3 of part-1.parquet``."""

    @abstractmethod
    def digest(self) -> str:
        """Return ``sha256:...`` of the file, or of the digests of a folder's files."""


@dataclass(frozen=True)
class _Shard:
    """A Parquet file at the time it was opened.

    Attributes:
        path: The file.
        start: Index of its first row in the table.
        groups: Number of rows of each row group.
        stamp: Size and modification time.
    """

    path: Path
    start: int
    groups: tuple[int, ...]
    stamp: tuple[int, int]


class ParquetTable(Table):
    """A Parquet file, or a folder of them as one table in the order of their paths; no row is held."""

    def __init__(self, path: Path) -> None:
        self.path, self.whole = path, not path.is_dir()
        self._shards: list[_Shard] = []
        start = 0
        for file in [path] if self.whole else _parquet_files(path):
            with readable(file):
                stamp, opened = _stamp(file), pa.parquet.ParquetFile(file)
            schema = plain_schema(opened.schema_arrow)
            check_distinct(schema.names, file)
            if not self._shards:
                self.schema = schema
            _check_same_schema(schema, self.schema, file, self._shards)
            metadata = opened.metadata
            groups = tuple(metadata.row_group(n).num_rows for n in range(metadata.num_row_groups))
            self._shards.append(_Shard(file, start, groups, stamp))
            start += sum(groups)
        self.row_groups = tuple(_row_groups(self._shards))

    def reader(self) -> Reader:
        """Return a function that yields the rows of a row group and keeps the last file open."""
        return _ShardReader(self._shards)

    def place(self, row: int) -> str:
        """Return the place of a row."""
        shard = next(s for s in reversed(self._shards) if s.start <= row)
        file = "" if self.whole else f" of {shard.path.relative_to(self.path).as_posix()}"
        return f"row {row - shard.start + 1}{file}"

    def digest(self) -> str:
        """Return the digest of the file; of a folder, the digest of its files' digests in order."""
        hashes = [file_hash(shard.path) for shard in self._shards]
        return "sha256:" + (hashes[0] if self.whole else hashlib.sha256(b"".join(hashes)).digest()).hex()


def rows_at_once(columns: int) -> int:
    """Return the number of rows to read together: a few megabytes."""
    return max(_MIN_ROWS, _BATCH_BYTES // (4 * max(1, columns)))


def _parquet_files(folder: Path) -> list[Path]:
    """List the Parquet files of a folder and its subfolders, without hidden and temporary ones."""
    files = [p for pattern in ("*.parquet", "*.pq") for p in folder.rglob(pattern) if p.is_file()]
    visible = [p for p in files if not any(s[0] in "._" for s in p.relative_to(folder).parts)]
    if not visible:
        raise DataError(f"{folder}: no Parquet file in this folder.")
    return sorted(visible, key=lambda p: p.as_posix())


def _check_same_schema(schema: pa.Schema, first: pa.Schema, file: Path, before: Sequence[_Shard]) -> None:
    """Refuse a file whose columns or types differ from those of the first file."""
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


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """Return a schema with one type for each kind of value, categories become theirs, and names in NFC."""
    return pa.schema([pa.field(nfc(field.name), _plain_type(field.type)) for field in schema])


def _plain_type(dtype: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(dtype):
        return _plain_type(dtype.value_type)
    if pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype):
        return pa.string()
    return dtype


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch with the types of ``plain_schema``."""
    schema = plain_schema(batch.schema)
    columns = [c if c.type == f.type else c.cast(f.type) for c, f in zip(batch.columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def is_bytes(dtype: pa.DataType) -> bool:
    """Whether values of an Arrow type are bytes, such as text that is not UTF-8."""
    return bool(
        pa.types.is_binary(dtype)
        or pa.types.is_large_binary(dtype)
        or pa.types.is_fixed_size_binary(dtype)
        or pa.types.is_binary_view(dtype)
    )


def _row_groups(shards: Sequence[_Shard]) -> Iterator[RowGroup]:
    for number, shard in enumerate(shards):
        starts = itertools.accumulate(shard.groups, initial=shard.start)
        for group, (start, rows) in enumerate(zip(starts, shard.groups, strict=False)):
            if rows:
                yield RowGroup(number, group, start, rows)


class _ShardReader:
    """Reads row groups; keeps the last file open, because its footer may take megabytes."""

    def __init__(self, shards: Sequence[_Shard]) -> None:
        self._shards, self._number, self._file = shards, -1, None

    def __call__(self, row_group: RowGroup, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with readable(self._shards[row_group.shard].path):
            file = self._open(row_group.shard)
            stored = {nfc(name): name for name in file.schema_arrow.names}
            names = [stored[name] for name in columns]
            # each thread of Arrow would hold buffers for every column
            for batch in file.iter_batches(
                rows_at_once(len(names)), row_groups=[row_group.group], columns=names, use_threads=False
            ):
                yield _plain(batch.select(names))

    def _open(self, number: int) -> pa.parquet.ParquetFile:
        if number != self._number:
            shard = self._shards[number]
            if _stamp(shard.path) != shard.stamp:
                raise DataError(
                    f"{shard.path} changed since the run began; do not change the data during a run."
                )
            self._file = pa.parquet.ParquetFile(shard.path, buffer_size=_BUFFER, pre_buffer=False)
            self._number = number
        return self._file


def check_distinct(names: Sequence[str], path: Path) -> None:
    """Refuse a file with two columns of the same name."""
    if len(set(names)) < len(names):
        repeated = sorted(name for name, count in Counter(names).items() if count > 1)
        raise DataError(f"{path}: column {name_list(repeated)} there twice; rename one.{header_hint(names)}")


def unknown_column_hint(name: str, names: Sequence[str]) -> str:
    """Return the end of a message on an unknown column: a similar one, or what is wrong with the header."""
    if len(names) == 1 and re.search(r"[,;:^~|\t]", names[0]):
        return f" The only column is {names[0][:60]!r}: .csv has commas between columns, and .tsv has tabs."
    return did_you_mean(name, names) or header_hint(names)


def header_hint(names: Sequence[str]) -> str:
    """Return the end of a message on names that seem to be the first row of a file without a header."""
    if 2 * sum(map(is_number, names)) <= len(names):
        return ""
    return f" The names are numbers ({name_list(names)[: -len(' are')]}); does the file begin with a header?"


def is_number(text: str) -> bool:
    """Whether a text is a decimal number."""
    return re.fullmatch(NUMBER, text) is not None


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def file_hash(file: Path) -> bytes:
    """Return the SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn errors while a file is read into one line that names the file."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: a column's name is not UTF-8; save the file as UTF-8.") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read ({first_line(error, 200)}).") from error


def first_inexact(column: pa.Array | pa.ChunkedArray) -> int | None:
    """Return the row of a column's first number beyond the exact range of its type; None if there is none."""
    if pa.types.is_integer(column.type) and column.type.bit_width < 64:
        return None
    digits = _digits(column.type)
    if pa.types.is_float16(column.type):
        column = column.cast(pa.float32())
    limit = pa.scalar(2**digits, pa.int64()).cast(column.type)
    ends = pc.min_max(column)
    if not any(e.is_valid and abs(e.as_py()) > limit.as_py() for e in ends.values()):
        return None
    beyond = pc.greater(column, limit)
    if not pa.types.is_unsigned_integer(column.type):
        beyond = pc.or_(beyond, pc.less(column, pc.negate(limit)))
    return int(pc.index(beyond, True).as_py())


def _digits(dtype: pa.DataType) -> int:
    """Return the number of bits up to which a type, or float64, holds every whole number."""
    return {pa.float16(): 11, pa.float32(): 24}.get(dtype, 53)


def inexact_message(table: Table, name: str, row: int, value: pa.Scalar, fix: str) -> str:
    """Return the message on a number beyond the range in which whole numbers are exact."""
    return (
        f"{table.path}: column {name!r} holds {value.as_py()} in {table.place(row)}; above "
        f"2^{_digits(value.type)} neighbouring numbers become equal; {fix}."
    )


def beyond_float32(value: float, place: str) -> str:
    """Return the part of a message that says of a finite number that float32 does not hold it."""
    return f"holds {value:g} in {place}, beyond float32 (3.4e+38)"


def refuse_inexact(table: Table, name: str, column: pa.ChunkedArray, fix: str) -> None:
    """Refuse a column with a number beyond the range in which whole numbers are exact.

    Raises:
        DataError: With its row and a fix.
    """
    row = first_inexact(column)
    if row is not None:
        raise DataError(inexact_message(table, name, row, column[row], fix))
