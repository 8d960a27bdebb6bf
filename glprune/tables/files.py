"""Open data files: find out what a file is, and read CSV."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from glprune._files import is_utf8, unreadable_reason
from glprune._wording import counted
from glprune.errors import DataError
from glprune.schema.column_names import nfc
from glprune.tables.remedies import RELATIVE
from glprune.tables.table import (
    ParquetTable,
    Reader,
    RowGroup,
    Table,
    check_distinct,
    file_hash,
    is_number,
    readable,
    rows_at_once,
)

_DELIMITERS = {".csv": ",", ".txt": ",", ".tsv": "\t"}
_COMPRESSED = {".gz", ".bz2", ".zst"}
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_FIX = "save it with commas between columns and points in numbers, or as Parquet"
_OTHER_KINDS = {
    b"PK\x03\x04": "an Excel workbook or another zip archive; save the sheet as CSV (UTF-8)",
    b"\xd0\xcf\x11\xe0": "an Excel workbook; save the sheet as CSV (UTF-8)",
    b"\x1f\x8b": "compressed; give its name the end .csv.gz",
    b"PAR1": "a Parquet file; give its name the end .parquet",
    b"ARROW1": "an Arrow or Feather file; save it as Parquet",
    b"\x89HDF": "an HDF5 file; save it as CSV or Parquet",
    b"\xff\xfe": "text in UTF-16; save it as UTF-8",
    b"\xfe\xff": "text in UTF-16; save it as UTF-8",
}
_HEAD = 1 << 20  # bytes in which the first lines are looked for


def open_table(path: Path) -> Table:
    """Open a CSV file, a Parquet file, or a folder of Parquet files.

    Raises:
        DataError: It is missing, empty, damaged, not UTF-8 or of another kind.
    """
    if not is_utf8(path):
        raise DataError(f"{path} has a path that is not UTF-8; rename it.")
    reason = unreadable_reason(path)
    if reason is not None and not os.path.isdir(path):
        raise DataError(f"{path} {reason}; name a file or a folder of Parquet{RELATIVE}.")
    table: Table
    if path.is_dir() or path.suffix.lower() in (".parquet", ".pq"):
        table = ParquetTable(path)
    elif _text_suffix(path) in _DELIMITERS:
        table = CsvTable(path)
    else:
        raise DataError(_unknown_kind(path))
    if table.rows == 0:
        raise DataError(f"{path}: no rows.")
    return table


def _text_suffix(path: Path) -> str:
    """Return the suffix of a name without that of its compression."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in _COMPRESSED else suffix


def _unknown_kind(path: Path) -> str:
    what = f"{path}: kind {path.suffix or 'unknown'!r}; give .csv, .tsv, .parquet or a folder of Parquet"
    kind = _foreign_kind(_head(path))
    return f"{what} (this is {kind})." if kind else f"{what}."


class CsvTable(Table):
    """A CSV file, held in memory: its types are known only after all of it was read."""

    def __init__(self, path: Path) -> None:
        with readable(path):
            delimiter = _DELIMITERS[_text_suffix(path)]
            _check_text(path, delimiter)
            table = _read(path, delimiter)
            self._table = table.rename_columns([nfc(name) for name in table.column_names])
            check_distinct(self._table.column_names, path)
            _check_header(path, self._table)
        self.path, self.schema = path, self._table.schema
        self.row_groups = (RowGroup(0, 0, 0, self._table.num_rows),)

    def reader(self) -> Reader:
        """Return a function that yields all rows."""
        return lambda _, columns: iter(
            self._table.select(list(columns)).to_batches(max_chunksize=rows_at_once(len(columns)))
        )

    def place(self, row: int) -> str:
        """Return the place of a row."""
        return f"row {row + 1}"

    def digest(self) -> str:
        """Return the digest of the file."""
        return "sha256:" + file_hash(self.path).hex()


def _head(path: Path) -> bytes:
    """Return the first bytes of a file, unpacked."""
    with readable(path), pa.input_stream(path) as stream:
        head: bytes = stream.read(_HEAD)
    return head


def _foreign_kind(head: bytes) -> str | None:
    return next((what for start, what in _OTHER_KINDS.items() if head.startswith(start)), None)


def _check_text(path: Path, delimiter: str) -> None:
    """Refuse a file that is no text, or whose columns are separated by something else."""
    head = _head(path)
    kind = _foreign_kind(head)
    if kind is not None:
        raise DataError(f"{path}: this is {kind}.")
    lines = head.decode("utf-8-sig", errors="replace").splitlines()[:2]
    if not lines:
        return
    # what stands between quotes is part of a name
    counts = [
        {c: "".join(line.split('"')[::2]).count(c) for c in (*_SEPARATORS, delimiter)} for line in lines
    ]
    for character, name in _SEPARATORS.items():
        separates = counts[0][character] > counts[0][delimiter] and counts[-1][character] > 0
        if character != delimiter and separates:
            tabs = ", or give its name the end .tsv" if character == "\t" else ""
            raise DataError(f"{path}: the columns are separated by {name} ({lines[0][:60]!r}); {_FIX}{tabs}.")
    words = [len(line.split()) for line in lines]
    if not any(count[delimiter] for count in counts) and len(words) == 2 and words[0] == words[1] > 1:
        raise DataError(f"{path}: the columns are separated by spaces ({lines[0][:60]!r}); {_FIX}.")


def _read(path: Path, delimiter: str) -> pa.Table:
    options = pa.csv.ParseOptions(delimiter=delimiter)
    try:
        return pa.csv.read_csv(path, parse_options=options)
    except pa.ArrowInvalid:
        if _is_utf8_text(path):
            _check_rows(path, delimiter)
        raise


def _is_utf8_text(path: Path) -> bool:
    """Whether the content of a file, which may be compressed, is UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with pa.input_stream(str(path)) as stream:
        try:
            while chunk := stream.read(_HEAD):
                decoder.decode(chunk)
        except UnicodeDecodeError:
            return False
    return True


def _check_rows(path: Path, delimiter: str) -> None:
    """Refuse the first row that has more or fewer cells than the header."""
    found: list[pa.csv.InvalidRow] = []

    def stop(row: pa.csv.InvalidRow) -> str:
        found.append(row)
        return "error"

    options = pa.csv.ParseOptions(delimiter=delimiter, invalid_row_handler=stop)
    serial = pa.csv.ReadOptions(use_threads=False)  # rows are numbered only when they are read in order
    try:
        pa.csv.read_csv(path, read_options=serial, parse_options=options)
    except pa.ArrowInvalid as error:
        if found:
            row = found[0]
            raise DataError(
                f"{path}: row {row.number - 1} has {counted(row.actual_columns, 'cell')} and the header "
                f"{row.expected_columns}; quote texts that hold {delimiter!r}, write decimal points, and "
                "check that the file is whole."
            ) from error


def _check_header(path: Path, table: pa.Table) -> None:
    """Refuse a first row of values: every name is a number or a value of its own column."""
    names = table.column_names
    labels = [name for name in names if not is_number(name)]
    if not labels or len(labels) == len(names):
        return
    if all(_holds(table.column(name), name) for name in labels):
        raise DataError(
            f"{path}: the first row holds values ({', '.join(names[:5])}), not names; write a header row."
        )


def _holds(column: pa.ChunkedArray, value: str) -> bool:
    return bool(pa.types.is_string(column.type) and pc.index(column, value).as_py() >= 0)
