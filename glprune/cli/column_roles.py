"""Guess what the columns of a data file are: target, split, identifiers, one-hot columns, texts."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from glprune._wording import counted
from glprune.errors import DataError
from glprune.tables.table import NUMBER, Table, header_hint, is_number
from glprune.tables.targets import empty_message, empty_rows
from glprune.tables.validation import first_bad_value, is_numeric, numbers, refuse_nameless

_TARGETS = ("target", "label", "class", "y", "default", "outcome", "diagnosis", "credit")
_SPLITS = {"train", "valid", "test"}
_SPLIT_WORDS = _SPLITS | {"training", "val", "validation", "dev", "testing"}
_IDS = re.compile(
    r"(?i:(.*[_ .-])?(id|uuid|guid)|index|idx|rownames|row_?(number|no|num)?|unnamed.*|__index_level_.*)"
    r"|.*[a-z](Id|ID)"
)
_SEPARATORS = ("=", "__", "_", ":", ".")
_MANY_TEXTS = 50  # distinct texts of fewer rows may be categories


@dataclass(frozen=True)
class TextColumn:
    """A column of text that could be encoded.

    Attributes:
        name: The column.
        values: Number of distinct texts.
        empty: Number of empty cells.
        examples: The first of them, sorted.
    """

    name: str
    values: int
    empty: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class ColumnRoles:
    """What the columns of a data file seem to be.

    Attributes:
        target: The column to predict.
        labels: Its distinct values, sorted, without missing ones.
        unlabelled: Which rows have no label, and what to do about them; empty where all have one.
        split: The column that holds train, valid and test.
        features: Columns of numbers, in file order.
        groups: Feature -> its columns of 0 and 1.
        excluded: Columns that cannot be features, or should not be; each with the reason.
        texts: Columns of text that can be encoded.
        flawed: Features with empty, NaN or infinite values, with the number of such rows.
    """

    target: str
    task: str
    labels: tuple[str | int, ...]
    unlabelled: str
    split: str | None
    features: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    excluded: Mapping[str, str]
    texts: tuple[TextColumn, ...]
    flawed: Mapping[str, int]


def guess_roles(table: Table, target: str | None) -> ColumnRoles:
    """Guess the roles of a table's columns.

    Args:
        table: The table.
        target: The column to predict; None: guessed.

    Raises:
        DataError: Fewer than two columns can be read, or the target has one value.
    """
    flat = _flat_columns(table)
    split = next((n for n in flat if n != target and _texts(table, n) == _SPLITS), None)
    others = [n for n in flat if n not in (target, split)]
    ids = [n for n in others if _is_id(table, n)]
    binary, flawed = _survey(table, [n for n in others if n not in ids and _is_number(table, n)])
    if target is None:
        groups = _one_hot_groups(table, binary)
        target = _guess_target(table, others, {*ids, *(c for columns in groups.values() for c in columns)})
    labels, unlabelled = _labels(table, target)
    columns = [n for n in table.names if n not in (target, split)]
    features = tuple(n for n in columns if n not in ids and _is_number(table, n))
    texts = [n for n in columns if n not in ids and _is_text(table, n)]
    return ColumnRoles(
        target=target,
        task=_guess_task(table.schema.field(target).type, len(labels)),
        labels=labels,
        unlabelled=unlabelled,
        split=split,
        features=features,
        groups=_one_hot_groups(table, [n for n in binary if n != target]),
        excluded={n: _reason(table, n, ids) for n in columns if n not in features},
        texts=tuple(_text_column(table, n) for n in texts if _can_be_encoded(table, n)),
        flawed={n: count for n, count in flawed.items() if n != target},
    )


def _flat_columns(table: Table) -> list[str]:
    """Return the columns without lists and structs; refuse a file that has no names for them."""
    types = zip(table.names, table.schema.types, strict=True)
    flat = [name for name, dtype in types if not pa.types.is_nested(dtype)]
    if len(flat) < 2:
        raise DataError(f"{table.path}: one column only; a recipe needs features and a target.")
    refuse_nameless(table, table.names)
    if all(map(is_number, flat)):
        raise DataError(f"{table.path}: no column has a name.{header_hint(flat)}")
    return flat


def _is_number(table: Table, name: str) -> bool:
    return is_numeric(table.schema.field(name).type)


def _is_text(table: Table, name: str) -> bool:
    return bool(pa.types.is_string(table.schema.field(name).type))


def _texts(table: Table, name: str) -> set[str | None] | None:
    """Return the distinct texts of a column; None if it holds no text, or so many that it holds no splits."""
    if not _is_text(table, name):
        return None
    found: set[str | None] = set()
    for batch in table.batches([name]):
        found |= set(pc.unique(batch[0]).to_pylist())
        if len(found) > len(_SPLIT_WORDS):
            return None
    return found


def _is_id(table: Table, name: str) -> bool:
    """Whether a column of whole numbers or text names the rows."""
    dtype = table.schema.field(name).type
    if not (pa.types.is_integer(dtype) or pa.types.is_string(dtype)):
        return False
    named = _IDS.fullmatch(name) is not None
    if not named and not _distinct_at_first(table, name):
        return False
    column = table.column(name)
    distinct = pc.count_distinct(column).as_py()
    if named:
        return bool(2 * distinct > table.rows)
    if pa.types.is_string(dtype):
        return bool(distinct == table.rows > _MANY_TEXTS) and _can_be_encoded(table, name)
    ends = pc.min_max(column).as_py()
    return bool(distinct == table.rows > 2 and ends["max"] - ends["min"] == table.rows - 1)


def _distinct_at_first(table: Table, name: str) -> bool:
    """Whether the values of the first rows are all different, without reading the others."""
    first = next(iter(table.batches([name])))[0]
    return bool(first.null_count == 0 and pc.count_distinct(first).as_py() == len(first))


def _survey(table: Table, columns: Sequence[str]) -> tuple[list[str], dict[str, int]]:
    """Return the columns that hold 0 and 1 alone, and those with empty, NaN or infinite values."""
    binary, flawed = np.ones(len(columns), dtype=bool), np.zeros(len(columns), dtype=int)
    for batch in table.batches(columns) if columns else ():
        values = numbers(batch, "float")
        finite = np.isfinite(values)
        binary &= (np.isin(values, (0.0, 1.0)) | ~finite).all(axis=0)
        flawed += (~finite).sum(axis=0)
    names = np.array(columns, dtype=object)
    return names[binary].tolist(), dict(zip(names[flawed > 0], flawed[flawed > 0].tolist(), strict=True))


def _guess_target(table: Table, columns: Sequence[str], unlikely: Iterable[str]) -> str:
    """Return a column with the name of a target, or the last one that is likely."""
    named = (n for wanted in _TARGETS for n in columns if n.lower() == wanted)
    likely = [n for n in columns if n not in unlikely and (_is_number(table, n) or _is_text(table, n))]
    return next(named, (likely or columns)[-1])


def _labels(table: Table, target: str) -> tuple[tuple[str | int, ...], str]:
    """Return the sorted labels, and a message on rows without one."""
    column = table.column(target)
    empty = empty_rows(column)
    values = pc.unique(column.filter(pa.array(~empty))).to_pylist()
    missing = empty_message(table, column, empty, not is_numeric(column.type)) if empty.any() else ""
    if len(values) < 2:
        also = f" and is {missing}" if missing else ""
        what = f"has {counted(len(values), 'value')}{also}" if values else "is empty in every row"
        raise DataError(f"{table.path}: target {target!r} {what}; name another column with --target.")
    integers = [int(v) if isinstance(v, float) and v.is_integer() else v for v in values]
    kept = [v if isinstance(v, int) and not isinstance(v, bool) else str(v) for v in integers]
    return tuple(sorted(kept, key=lambda v: (isinstance(v, str), v))), missing


def _guess_task(dtype: pa.DataType, labels: int) -> str:
    """Guess the task from the type of the target and its number of distinct values."""
    if labels == 2:
        return "binary"
    many = labels > 50 or (pa.types.is_floating(dtype) and labels > 10)
    return "regression" if many and is_numeric(dtype) else "multiclass"


def _one_hot_groups(table: Table, columns: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Group columns of 0 and 1 with a common prefix of which one, or at most one, is 1 in every row."""
    groups: dict[str, tuple[str, ...]] = {}
    for fits in (_add_up_to_one, _at_most_one):
        for separator in _SEPARATORS:
            for depth in range(1, 1 + max((n.count(separator) for n in columns), default=0)):
                free = [n for n in columns if not any(n in group for group in groups.values())]
                groups |= {
                    prefix: tuple(group)
                    for prefix, group in _by_prefix(free, separator, depth).items()
                    if len(group) > 1 and prefix not in {*groups, *table.names} and fits(table, group)
                }
    return groups


def _by_prefix(columns: Iterable[str], separator: str, depth: int) -> dict[str, list[str]]:
    """Group names by what stands before the separator with this number; the key is all that they share."""
    found: dict[str, list[str]] = {}
    for name in columns:
        parts = name.split(separator)
        if len(parts) > depth and (prefix := separator.join(parts[:depth])):
            found.setdefault(prefix, []).append(name)
    return {_shared(group, separator) or prefix: group for prefix, group in found.items()}


def _shared(names: Iterable[str], separator: str) -> str:
    """Return the parts with which all names begin."""
    parts = zip(*(name.split(separator)[:-1] for name in names), strict=False)
    return separator.join(p[0] for p in itertools.takewhile(lambda p: len(set(p)) == 1, parts))


def _add_up_to_one(table: Table, columns: Sequence[str]) -> bool:
    return _sums(table, columns, lambda sums: sums == 1)


def _at_most_one(table: Table, columns: Sequence[str]) -> bool:
    return _sums(table, columns, lambda sums: sums <= 1)


def _sums(
    table: Table, columns: Sequence[str], fit: Callable[[NDArray[np.float32]], NDArray[np.bool_]]
) -> bool:
    """Whether the sums of the rows fit; missing values count as 0. Stops at the first row that does not."""
    rows = (np.nan_to_num(numbers(batch, "float")).sum(axis=1) for batch in table.batches(columns))
    return all(bool(fit(sums).all()) for sums in rows)


def _reason(table: Table, name: str, ids: Sequence[str]) -> str:
    """Say why a column is no feature, in the words of a comment."""
    texts = _texts(table, name)
    if name in ids:
        return "seems to name the rows"
    if texts and {str(t).strip().lower() for t in texts} <= _SPLIT_WORDS and len(texts) > 1:
        return "may be the split; write train, valid and test to use it for data.split"
    if _is_text(table, name) and _can_be_encoded(table, name):
        return "text"
    return "not numeric" + first_bad_value(table, name)


def _can_be_encoded(table: Table, name: str) -> bool:
    """Whether a column of text is not, for the most part, numbers or splits."""
    column = table.column(name)
    share = pc.mean(pc.match_substring_regex(column, f"^({NUMBER})$").cast(pa.int8())).as_py() or 0
    texts = _texts(table, name) or {"other"}
    return share < 0.5 and not {str(t).strip().lower() for t in texts} <= _SPLIT_WORDS


def _text_column(table: Table, name: str) -> TextColumn:
    column = table.column(name)
    values = sorted(v for v in pc.unique(column).to_pylist() if v)
    empty = pc.sum(pc.equal(pc.fill_null(column, ""), "").cast(pa.int64())).as_py() or 0
    return TextColumn(name, len(values), empty, tuple(values[:3]))
