"""Read data: columns matched by name, every defect reported by name, splits reproducible."""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet
import torch
from numpy.typing import NDArray
from torch import Tensor

from glprune.errors import DataError, GlpruneError, RecipeError, did_you_mean
from glprune.files import fault
from glprune.imports import describe, load_callable
from glprune.protected import Attribute, read_protected
from glprune.recipe import InputSpec, Recipe

SPLITS = ("train", "valid", "test")
Inputs = tuple[Tensor, ...]


class Split(Protocol):
    """Rows of one split, in batches."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        ...

    def batches(self, size: int | None, generator: torch.Generator | None) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield ``(inputs, target)``; at most ``size`` rows each, shuffled where a generator is given."""
        ...


@dataclass(frozen=True)
class TensorSplit:
    """A split held in memory.

    Attributes:
        inputs: Each (rows, ...), float32 or int64.
        target: Class numbers int64 or values float32, shape (rows,); (rows, n) where the network is to
            agree with another, n = 0 until that one was asked.
    """

    inputs: Inputs
    target: Tensor

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.target)

    def batches(self, size: int | None, generator: torch.Generator | None) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield batches in order, or shuffled by ``generator``."""
        step = size or self.rows
        order = torch.randperm(self.rows, generator=generator) if generator is not None else None
        for start in range(0, self.rows, step):
            pick = slice(start, start + step) if order is None else order[start : start + step]
            yield tuple(x[pick] for x in self.inputs), self.target[pick]


@dataclass(frozen=True)
class LoaderSplit:
    """A split streamed from a user's DataLoader, in the batches the loader makes.

    Attributes:
        loader: Yields ``(inputs, target)``; inputs alone where there are no labels.
        specs: The inputs in the network's order.
        kind: The task, which decides the target's type.
        rows: Number of rows, counted once.
    """

    loader: Iterable[Any]
    specs: tuple[InputSpec, ...]
    kind: str
    rows: int

    def batches(self, size: int | None, generator: torch.Generator | None) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield the loader's own batches; its shuffling is seeded from ``generator``."""
        with torch.random.fork_rng(devices=[]):
            if generator is not None:
                torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
            for batch in self.loader:
                yield unpack(batch, self.specs, self.kind)


@dataclass(frozen=True)
class InputColumns:
    """One input of the network and the columns that feed it.

    Attributes:
        name: Name of the input.
        axis: Axis of a batch that holds the features; None where none can be pruned.
        columns: Names along that axis, in order; without an axis the columns of the file, if any.
    """

    name: str
    axis: int | None
    columns: tuple[str, ...]

    @property
    def features(self) -> tuple[str, ...]:
        """The columns that can be pruned."""
        return self.columns if self.axis is not None else ()


@dataclass(frozen=True)
class Field:
    """A raw input field: a column, or several columns of one input that live and die together.

    Attributes:
        name: The field.
        columns: Numbers of its columns, counted over the features of all inputs.
    """

    name: str
    columns: tuple[int, ...]


@dataclass(frozen=True)
class Standardization:
    """Mean and standard deviation of the training rows, each (n_columns,), float64."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Data:
    """Data ready for a network.

    Columns are numbered through over the features of all inputs; ``spans`` says where each begins.

    Attributes:
        source: What was read, in words.
        inputs: The inputs in the network's order.
        fields: Fields in the order of their first column; every column is in one, and every field
            in one input.
        train: Training rows, raw.
        valid: Validation rows, raw.
        test: Test rows, raw.
        classes: Labels in the order of the network's outputs; None where there are none.
        standardization: What the recipe's ``standardize: train`` puts before each input; None for
            inputs that are codes.
        digests: File or split -> ``sha256:...``.
        notes: What the user should know, by column.
        outside: Columns of the file that the network does not take.
        protected: Attributes the recipe's policy names.
    """

    source: str
    inputs: tuple[InputColumns, ...]
    fields: tuple[Field, ...]
    train: Split
    valid: Split
    test: Split
    classes: tuple[str, ...] | None
    standardization: tuple[Standardization | None, ...]
    digests: Mapping[str, str]
    notes: tuple[str, ...]
    outside: tuple[str, ...] = ()
    protected: tuple[Attribute, ...] = ()

    @property
    def features(self) -> tuple[str, ...]:
        """Columns that can be pruned, over all inputs in order."""
        return tuple(name for part in self.inputs for name in part.features)

    @property
    def spans(self) -> tuple[range, ...]:
        """The numbers of each input's features; empty for inputs that have none."""
        return spans(self.inputs)


def spans(inputs: Sequence[InputColumns]) -> tuple[range, ...]:
    """The numbers of each input's features, counted through."""
    ends = [0]
    for part in inputs:
        ends.append(ends[-1] + len(part.features))
    return tuple(range(start, end) for start, end in itertools.pairwise(ends))


def load_data(recipe: Recipe) -> Data:
    """Read, check and split the data a recipe names.

    Raises:
        DataError: A file or column cannot be used; file, column, count and first row are named.
        RecipeError: The recipe asks for columns the files do not have.
    """
    return _from_loader(recipe) if recipe.data.loader is not None else _from_files(recipe)


# --- files -----------------------------------------------------------------------------------


def _from_files(recipe: Recipe) -> Data:
    spec = recipe.data
    names = {"file": spec.file} if spec.file else {s: getattr(spec, s) for s in SPLITS}
    paths = {key: recipe.path(str(name)) for key, name in names.items()}
    tables = {key: read_table(path) for key, path in paths.items()}
    first = next(iter(tables.values()))
    inputs = _file_inputs(recipe, first.column_names)
    fields = _fields(recipe, inputs)
    columns = {key: _matrices(recipe, tables[key], inputs, paths[key]) for key in tables}
    classes, targets = _targets(recipe, tables, paths)
    rows = _split_rows(recipe, first, targets["file"], paths["file"]) if spec.file else None
    if rows is not None:
        parts = {s: ([x[rows[s]] for x in columns["file"]], targets["file"][rows[s]]) for s in SPLITS}
    else:
        parts = {s: (columns[s], targets[s]) for s in SPLITS}
    _check_parts(parts, classes, recipe)
    features = [name for part in inputs for name in part.features]
    members = {field.name: [features[c] for c in field.columns] for field in fields}
    train = parts["train"][0]
    notes = [
        n for x, part in zip(train, inputs, strict=True) for n in _constant_notes(recipe, x, part.columns)
    ]
    if classes is not None and spec.classes is None:
        notes.append(f"data.classes is not given; the order is {', '.join(classes)}, as the labels sort.")
    splits = {
        s: TensorSplit(tuple(torch.from_numpy(x) for x in xs), torch.from_numpy(y))
        for s, (xs, y) in parts.items()
    }
    return Data(
        source=", ".join(str(names[key]) for key in names),
        inputs=inputs,
        fields=fields,
        classes=classes,
        standardization=tuple(_standardization(recipe, x) for x in train),
        digests={key: _digest(path) for key, path in paths.items()},
        notes=tuple(notes),
        outside=tuple(sorted(set(first.column_names) - {name for part in inputs for name in part.columns})),
        protected=read_protected(recipe, tables, paths, members, rows),
        **splits,
    )


def read_table(path: Path) -> pa.Table:
    """Read a CSV file, a Parquet file, or a folder of Parquet files.

    Raises:
        DataError: It is missing, empty, truncated, ragged, not UTF-8 or of another kind.
    """
    why = fault(path)
    if why is not None and not os.path.isdir(path):
        raise DataError(f"{path} {why}; name a file or a folder of Parquet, relative to the recipe.")
    try:
        if path.is_dir():
            # each of a reader's threads holds buffers for every column: gigabytes where there are many
            table = pa.dataset.dataset(path, format="parquet").to_table(use_threads=False)
        elif path.suffix.lower() in (".parquet", ".pq"):
            table = pa.parquet.ParquetFile(path).read(use_threads=False)
        elif path.suffix.lower() in (".csv", ".txt"):
            table = pa.csv.read_csv(path)
        else:
            raise DataError(
                f"{path}: kind {path.suffix or 'unknown'!r}; give .csv, .parquet or a folder of Parquet."
            )
        names = table.column_names
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: a column's name is not UTF-8; save the file as UTF-8.") from error
    except (pa.ArrowException, OSError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise DataError(f"{path}: cannot be read ({first}).") from error
    double = sorted(name for name, times in Counter(names).items() if times > 1)
    if double:
        raise DataError(f"{path}: column {_listed(double)} there twice; rename one.")
    if table.num_rows == 0:
        raise DataError(f"{path}: no rows.")
    return table


def _features(recipe: Recipe, columns: Sequence[str]) -> tuple[str, ...]:
    """The columns of the network's input, in order; patterns expand in file order."""
    spec = recipe.data
    split_column = spec.split.column if spec.split else None
    for key, name in (("target", spec.target), ("split", split_column)):
        if name is not None and name not in columns:
            raise RecipeError(
                f"{recipe.where('data', key)}: no column {name!r}.{did_you_mean(name, columns)}"
            )
    reserved = {spec.target, split_column}
    excluded = set(_expand(recipe, "exclude", spec.exclude, columns))
    if spec.features is None:
        chosen = [c for c in columns if c not in reserved and c not in excluded]
    else:
        named = _expand(recipe, "features", spec.features, columns)
        chosen = [c for c in named if c not in excluded]
        taken = [c for c in chosen if c in reserved]
        if taken:
            raise RecipeError(
                f"{recipe.where('data', 'features')}: {taken[0]!r} is the target or split column."
            )
    if not chosen:
        raise RecipeError(f"{recipe.where('data', 'features')}: no feature column is left.")
    return tuple(chosen)


def _file_inputs(recipe: Recipe, columns: Sequence[str]) -> tuple[InputColumns, ...]:
    """The columns that feed each input; with one input all features, unless it names its own."""
    chosen = _features(recipe, columns)
    where = recipe.where("model", "inputs")
    inputs, owner = [], dict[str, str]()
    for spec in recipe.model.inputs:
        own = chosen if spec.columns is None else tuple(_own_columns(recipe, spec, chosen, columns))
        for column in own:
            if column in owner:
                raise RecipeError(
                    f"{where}: column {column!r} feeds {owner[column]!r} and {spec.name!r}; "
                    "a column belongs to one input."
                )
            owner[column] = spec.name
        inputs.append(InputColumns(spec.name, spec.axis, own))
    idle = [c for c in chosen if c not in owner] if recipe.data.features is not None else []
    if idle:
        raise RecipeError(
            f"{recipe.where('data', 'features')}: column {_listed(idle)} in no input's columns; "
            "add to model.inputs, or remove here."
        )
    return tuple(inputs)


def _own_columns(
    recipe: Recipe, spec: InputSpec, chosen: Sequence[str], columns: Sequence[str]
) -> Iterable[str]:
    """The columns an input names, among the features."""
    place = f"{recipe.where('model', 'inputs')}: columns of {spec.name!r}"
    barred = [c for c in spec.columns or () if c in columns and c not in set(chosen)]
    if barred:
        raise RecipeError(f"{place}: {barred[0]!r} is the target, the split column or excluded.")
    return _matching(place, spec.columns or (), chosen)


def _expand(recipe: Recipe, key: str, patterns: Iterable[str], columns: Sequence[str]) -> list[str]:
    """Replace the names and patterns of a key of ``data`` by columns; each column once."""
    return _matching(recipe.where("data", *key.split("/")), patterns, columns)


def _matching(where: str, patterns: Iterable[str], columns: Sequence[str]) -> list[str]:
    """Replace names and patterns by columns; each column once."""
    known, found = set(columns), dict[str, None]()
    for pattern in patterns:
        if pattern in known:
            found[pattern] = None
            continue
        matches = fnmatch.filter(columns, pattern) if any(c in pattern for c in "*?[") else []
        if not matches:
            raise RecipeError(f"{where}: no column {pattern!r}.{did_you_mean(pattern, columns)}")
        found.update(dict.fromkeys(matches))
    return list(found)


def _fields(recipe: Recipe, inputs: Sequence[InputColumns]) -> tuple[Field, ...]:
    """Join columns into fields; a column no group names is a field of its own."""
    features = [name for part in inputs for name in part.features]
    source = {name: part.name for part in inputs for name in part.features}
    owner: dict[str, str] = {}
    for field, members in recipe.data.feature_groups.items():
        where = recipe.where("data", "feature_groups", field)
        listed = [members] if isinstance(members, str) else members
        columns = _expand(recipe, f"feature_groups/{field}", listed, features)
        for column in columns:
            if column in owner:
                raise RecipeError(
                    f"{where}: column {column!r} is in {owner[column]!r} too; a column belongs to one field."
                )
            if source[column] != source[columns[0]]:
                raise RecipeError(
                    f"{where}: {columns[0]!r} feeds input {source[columns[0]]!r}, {column!r} feeds "
                    f"{source[column]!r}; a field lies in one input."
                )
            owner[column] = field
    joined: dict[str, list[int]] = {}
    for number, column in enumerate(features):
        if column not in owner and column in recipe.data.feature_groups:
            raise RecipeError(
                f"{recipe.where('data', 'feature_groups', column)}: a column outside the "
                "group has this name; rename the group."
            )
        joined.setdefault(owner.get(column, column), []).append(number)
    return tuple(Field(name, tuple(columns)) for name, columns in joined.items())


def _matrices(
    recipe: Recipe, table: pa.Table, inputs: Sequence[InputColumns], path: Path
) -> list[NDArray[Any]]:
    """The columns of each input, shape (rows, n_columns), float32 or int64."""
    return [
        _matrix(table, part.columns, path, spec.dtype)
        for part, spec in zip(inputs, recipe.model.inputs, strict=True)
    ]


def _matrix(
    table: pa.Table, features: Sequence[str], path: Path, dtype: Literal["float", "int"]
) -> NDArray[Any]:
    """Columns by name as float32 or int64, shape (rows, n_columns)."""
    missing = sorted(set(features) - set(table.column_names))
    if missing:
        raise DataError(
            f"{path}: column {_listed(missing)} missing.{did_you_mean(missing[0], table.column_names)}"
        )
    chosen = table.select(list(features))
    bad = [f.name for f in chosen.schema if not is_numeric(f.type)]
    if bad:
        example = next((v for v in chosen[bad[0]].to_pylist() if v is not None), None)
        raise DataError(
            f"{path}: column {_listed(bad)} not numeric (first value {example!r}); "
            "encode as numbers, or list under data.exclude."
        )
    matrix = np.empty((table.num_rows, len(features)), dtype=np.float32 if dtype == "float" else np.float64)
    for number, column in enumerate(chosen.columns):
        try:
            matrix[:, number] = column.cast(pa.float64()).to_numpy()
        except pa.ArrowInvalid as error:
            raise DataError(
                f"{path}: column {features[number]!r} holds whole numbers past 2^53, which a network cannot tell "
                "apart; encode them otherwise, or list it under data.exclude."
            ) from error
    finite = np.isfinite(matrix)
    if not finite.all():
        wrong = np.flatnonzero(~finite.all(axis=0))
        rows = np.flatnonzero(~finite[:, wrong[0]])
        raise DataError(
            f"{path}: column {_listed([features[w] for w in wrong.tolist()])} not finite: {len(rows)} empty, "
            f"NaN or Inf in {features[wrong[0]]!r}, first in row {rows[0] + 1}; fill or drop them."
        )
    return matrix if dtype == "float" else _codes(matrix, features, path)


def _codes(matrix: NDArray[np.float64], features: Sequence[str], path: Path) -> NDArray[np.int64]:
    """Whole numbers as int64."""
    codes = matrix.astype(np.int64)
    wrong = codes != matrix
    if wrong.any():
        column = int(np.flatnonzero(wrong.any(axis=0))[0])
        row = int(np.flatnonzero(wrong[:, column])[0])
        raise DataError(
            f"{path}: column {features[column]!r} feeds an input of dtype: int and holds "
            f"{matrix[row, column]:g} in row {row + 1}; encode as whole numbers."
        )
    return codes


def is_numeric(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type can be features as they are."""
    return (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    )


def _targets(
    recipe: Recipe, tables: Mapping[str, pa.Table], paths: Mapping[str, Path]
) -> tuple[tuple[str, ...] | None, dict[str, NDArray[Any]]]:
    """Classes and encoded targets; targets of no column where there are no labels."""
    if recipe.task == "distillation":
        return None, {key: np.empty((t.num_rows, 0), dtype=np.float32) for key, t in tables.items()}
    raw = {key: _target_column(recipe, tables[key], paths[key]) for key in tables}
    classes = _classes(recipe, raw, paths)
    return classes, {key: _encode(recipe, raw[key], classes, paths[key]) for key in tables}


def _target_column(recipe: Recipe, table: pa.Table, path: Path) -> pa.ChunkedArray:
    name = str(recipe.data.target)
    if name not in table.column_names:
        raise DataError(f"{path}: target column {name!r} is missing.{did_you_mean(name, table.column_names)}")
    column = table[name]
    if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
        raise DataError(
            f"{path}: target {name!r} holds {column.type} values; encode it as numbers or as text in UTF-8."
        )
    if column.null_count:
        row = column.is_null().to_pylist().index(True) + 1
        raise DataError(
            f"{path}: target {name!r} is empty in {column.null_count} rows, first in row {row}; drop them."
        )
    return column


def _classes(
    recipe: Recipe, raw: Mapping[str, pa.ChunkedArray], paths: Mapping[str, Path]
) -> tuple[str, ...] | None:
    if recipe.task == "regression":
        return None
    if recipe.data.classes is not None:
        return tuple(str(c) for c in recipe.data.classes)
    values = sorted({v for column in raw.values() for v in pc.unique(column).to_pylist()}, key=_sort_key)
    if recipe.task == "binary" and len(values) != 2:
        path = next(iter(paths.values()))
        raise DataError(
            f"{path}: target {recipe.data.target!r} has {len(values)} values; task: binary needs two."
        )
    if len(values) > 1000:
        path = next(iter(paths.values()))
        raise DataError(
            f"{path}: target {recipe.data.target!r} has {len(values)} values; is the task regression?"
        )
    return tuple(_label(v) for v in values)


def _encode(
    recipe: Recipe, column: pa.ChunkedArray, classes: tuple[str, ...] | None, path: Path
) -> NDArray[Any]:
    """Class numbers int64, or values float32."""
    name = recipe.data.target
    if classes is None:
        if not is_numeric(column.type):
            raise DataError(f"{path}: target {name!r} is not numeric; a regression target must be.")
        values = column.cast(pa.float64()).to_numpy()
        if not np.isfinite(values).all():
            raise DataError(
                f"{path}: target {name!r} is not finite in row {int(np.argmin(np.isfinite(values))) + 1}."
            )
        return values.astype(np.float32)
    number = {label: n for n, label in enumerate(classes)}
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    labels = [_label(v) for v in encoded.dictionary.to_pylist()]
    unknown = [label for label in labels if label not in number]
    if unknown:
        row = labels.index(unknown[0])
        at = int(np.flatnonzero(encoded.indices.to_numpy() == row)[0]) + 1
        raise DataError(
            f"{path}: target {name!r} holds {unknown[0]!r} (row {at}), which data.classes does not list "
            f"({', '.join(classes)})."
        )
    return np.array([number[label] for label in labels], dtype=np.int64)[encoded.indices.to_numpy()]


def _label(value: object) -> str:
    """A class label as text; 1, 1.0 and '1' are one label."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _sort_key(value: object) -> tuple[bool, Any]:
    return (isinstance(value, str), value)


def _split_rows(
    recipe: Recipe, table: pa.Table, target: NDArray[Any], path: Path
) -> dict[str, NDArray[np.int64]]:
    spec = recipe.data.split
    if spec is not None and spec.column is not None:
        values = np.array([str(v) for v in table[spec.column].to_pylist()])
        strange = sorted(set(values.tolist()) - set(SPLITS))
        if strange:
            raise DataError(
                f"{path}: split column {spec.column!r} holds {strange[0]!r}; use train, valid and test."
            )
        return {s: np.flatnonzero(values == s) for s in SPLITS}
    shares = spec.shares if spec is not None else (0.6, 0.2, 0.2)
    by_class = recipe.task in ("binary", "multiclass") and (spec is None or spec.stratify is not False)
    rng = np.random.default_rng(recipe.seed)
    strata = (
        [np.flatnonzero(target == c) for c in np.unique(target)] if by_class else [np.arange(len(target))]
    )
    parts: dict[str, list[NDArray[np.int64]]] = {s: [] for s in SPLITS}
    for rows in strata:
        mixed = rng.permutation(rows)
        ends = np.rint(np.cumsum(shares) * len(mixed)).astype(int)
        for name, start, end in zip(SPLITS, [0, *ends[:-1]], ends, strict=True):
            parts[name].append(mixed[start:end])
    return {s: np.sort(np.concatenate(p)) for s, p in parts.items()}


def _check_parts(
    parts: Mapping[str, tuple[Sequence[NDArray[Any]], NDArray[Any]]],
    classes: tuple[str, ...] | None,
    recipe: Recipe,
) -> None:
    for name, (_, target) in parts.items():
        if len(target) < 2:
            raise DataError(
                f"{recipe.where('data')}: the {name} split has {len(target)} rows; it needs at least 2."
            )
        if classes is not None and len(np.unique(target)) < 2:
            only = classes[int(target[0])]
            raise DataError(
                f"{recipe.where('data')}: the {name} split holds class {only!r} only; "
                "nothing can be measured."
            )


def _constant_notes(recipe: Recipe, train: NDArray[Any], features: Sequence[str]) -> list[str]:
    constant = [features[i] for i in np.flatnonzero(train.min(axis=0) == train.max(axis=0)).tolist()]
    if not constant:
        return []
    if recipe.data.standardize == "train" and train.dtype == np.float32:
        raise DataError(
            f"column {_listed(constant)} constant on the training rows, so it cannot be standardised; "
            "list under data.exclude."
        )
    return [f"column {_listed(constant)} constant on the training rows."]


def _standardization(recipe: Recipe, train: NDArray[Any]) -> Standardization | None:
    if recipe.data.standardize == "none" or train.dtype != np.float32:
        return None
    wide = train.astype(np.float64)
    return Standardization(torch.from_numpy(wide.mean(axis=0)), torch.from_numpy(wide.std(axis=0)))


def _digest(path: Path) -> str:
    total = hashlib.sha256()
    for file in sorted(path.rglob("*.parquet")) if path.is_dir() else [path]:
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest() if path.is_dir() else stream.read())
    return "sha256:" + total.hexdigest()


def _listed(names: Sequence[str]) -> str:
    """The first names of a list and how many more there are, with their verb."""
    shown = ", ".join(repr(n) for n in names[:3])
    return (
        f"{shown} is"
        if len(names) == 1
        else f"{shown}{f' and {len(names) - 3} more' if len(names) > 3 else ''} are"
    )


# --- loaders ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Survey:
    """What one reading of a loader found."""

    split: LoaderSplit
    digest: str
    widths: tuple[int, ...]
    largest: int


def _from_loader(recipe: Recipe) -> Data:
    reference = str(recipe.data.loader)
    where = recipe.where("data", "loader")
    make = load_callable(reference, recipe.folder, where, recipe.allowed)
    found: dict[str, _Survey] = {}
    for name in SPLITS:
        try:
            found[name] = _survey(make(split=name), recipe)
        except GlpruneError as error:
            raise DataError(f"{where}: split {name!r}: {error}") from error
        except Exception as error:  # the user's loader may raise anything
            raise DataError(f"{where}: split {name!r} failed ({describe(error)}).") from error
        if found[name].widths != found["train"].widths:
            raise DataError(f"{where}: split {name!r} has other numbers of features than 'train'.")
    inputs = _loader_inputs(recipe, found["train"].widths)
    return Data(
        source=reference,
        inputs=inputs,
        fields=_fields(recipe, inputs),
        train=found["train"].split,
        valid=found["valid"].split,
        test=found["test"].split,
        classes=_loader_classes(recipe, max(survey.largest for survey in found.values())),
        standardization=(None,) * len(inputs),
        digests={name: survey.digest for name, survey in found.items()},
        notes=(),
    )


def _loader_inputs(recipe: Recipe, widths: Sequence[int]) -> tuple[InputColumns, ...]:
    """Name the features of every input, as data.features lists them over all inputs."""
    specs = recipe.model.inputs
    names = recipe.data.features
    if names is None:
        stem = [f"{spec.name}." if len(specs) > 1 else "x" for spec in specs]
        names = [f"{stem[n]}{i}" for n, width in enumerate(widths) for i in range(width)]
    if len(names) != sum(widths):
        raise RecipeError(
            f"{recipe.where('data', 'features')} lists {len(names)} names, the loader yields "
            f"{sum(widths)} features."
        )
    left = iter(names)
    return tuple(
        InputColumns(spec.name, spec.axis, tuple(next(left) for _ in range(width)))
        for spec, width in zip(specs, widths, strict=True)
    )


def _survey(loader: Iterable[Any], recipe: Recipe) -> _Survey:
    """Read a loader once: rows, digest of the tensors, features of each input, largest class."""
    total, rows, largest = hashlib.sha256(), 0, 0
    specs = tuple(recipe.model.inputs)
    widths: tuple[int, ...] | None = None
    for batch in loader:
        inputs, target = unpack(batch, specs, recipe.task)
        for tensor in (*inputs, target):
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise DataError(f"NaN or Inf in batch after row {rows}.")
            total.update(tensor.contiguous().numpy().tobytes())
        found = tuple(0 if s.axis is None else x.shape[s.axis] for s, x in zip(specs, inputs, strict=True))
        if found != (widths or found):
            raise DataError(f"the number of features changes after row {rows}; it must be one number.")
        widths, rows = found, rows + len(target)
        if recipe.task in ("binary", "multiclass"):
            largest = max(largest, int(target.max()))
            if int(target.min()) < 0:
                raise DataError(f"class {int(target.min())} is below 0 after row {rows}.")
    if rows < 2 or widths is None:
        raise DataError(f"{rows} rows; at least 2 are needed.")
    return _Survey(
        LoaderSplit(loader, specs, recipe.task, rows), f"sha256:{total.hexdigest()}", widths, largest
    )


def unpack(batch: Any, specs: Sequence[InputSpec], kind: str) -> tuple[Inputs, Tensor]:
    """Bring a loader's batch to ``(inputs, target)``.

    Args:
        batch: ``(x, y)``, ``((x1, x2), y)`` or ``({name: x}, y)``; for distillation the inputs may
            come alone.
        specs: The inputs in the network's order.
        kind: The task.

    Returns:
        Inputs as float32, int64 or bool; classes (rows,) int64, values (rows,) float32, or
        (rows, 0) for distillation.

    Raises:
        DataError: The batch is something else.
    """
    raw, goal = _parted(batch, len(specs), kind)
    inputs = _as_inputs(raw, specs)
    rows = len(inputs[0])
    for spec, x in zip(specs, inputs, strict=True):
        if len(x) != rows:
            raise DataError(f"input {spec.name!r} has {len(x)} rows, {specs[0].name!r} has {rows}.")
    if kind == "distillation":
        return inputs, torch.empty(rows, 0)
    if not isinstance(goal, Tensor):
        raise DataError(f"a batch should hold {len(specs)} input tensor(s) and a target tensor.")
    if goal.ndim == 0 or len(goal) != rows:
        raise DataError(
            f"inputs of shape {tuple(inputs[0].shape)} do not fit a target of shape {tuple(goal.shape)}."
        )
    flat = goal.reshape(rows, -1)
    if flat.shape[1] != 1:
        raise DataError(f"a target of shape {tuple(goal.shape)} has several values in a row; one is needed.")
    return inputs, flat[:, 0].float() if kind == "regression" else flat[:, 0].long()


def _parted(batch: Any, inputs: int, kind: str) -> tuple[Any, Any]:
    """Inputs and target of a batch; without labels the target is whatever stands behind the inputs."""
    pair = isinstance(batch, list | tuple) and len(batch) == 2
    if kind != "distillation":
        if not pair:
            raise DataError(f"a batch is {type(batch).__name__}, not a pair (inputs, target).")
        return batch[0], batch[1]
    # a pair of tensors is both inputs of a network with two, and inputs with a label of one with one
    if pair and (inputs == 1 or not isinstance(batch[0], Tensor)):
        return batch[0], batch[1]
    return batch, None


def _as_inputs(raw: Any, specs: Sequence[InputSpec]) -> Inputs:
    """The tensors of each input, in the network's order."""
    if isinstance(raw, Mapping):
        absent = [s.name for s in specs if s.name not in raw]
        if absent:
            raise DataError(f"a batch has no input {absent[0]!r}; it has {', '.join(map(str, raw))}.")
        raw = [raw[s.name] for s in specs]
    found = [raw] if isinstance(raw, Tensor) else raw
    if (
        not isinstance(found, list | tuple)
        or len(found) != len(specs)
        or not all(isinstance(x, Tensor) for x in found)
    ):
        raise DataError(f"a batch should hold {len(specs)} input tensor(s); it holds {_contents(found)}.")
    return tuple(_as_input(x, spec) for x, spec in zip(found, specs, strict=True))


def _contents(found: Any) -> str:
    if isinstance(found, list | tuple):
        return f"{len(found)}: {', '.join(type(x).__name__ for x in found)}"
    return type(found).__name__


def _as_input(x: Tensor, spec: InputSpec) -> Tensor:
    """One input as float32, int64 or bool."""
    places = 1 if spec.axis is None else max(2, spec.axis + 1 if spec.axis > 0 else 1 - spec.axis)
    if x.ndim < places:
        raise DataError(
            f"tensors of shape {tuple(x.shape)} do not fit input {spec.name!r}: a batch of it has at least "
            f"{places} axes."
        )
    if x.is_floating_point():
        if spec.dtype == "int":
            raise DataError(f"input {spec.name!r} has dtype: int and the loader yields {x.dtype}.")
        return x.float()
    return x if x.dtype == torch.bool else x.long()


def _loader_classes(recipe: Recipe, largest: int) -> tuple[str, ...] | None:
    if recipe.task in ("regression", "distillation"):
        return None
    if recipe.data.classes is not None:
        classes = tuple(str(c) for c in recipe.data.classes)
    else:
        classes = tuple(str(n) for n in range(2 if recipe.task == "binary" else largest + 1))
    if largest >= len(classes):
        raise DataError(
            f"{recipe.where('data', 'loader')}: class {largest} is yielded, data.classes lists "
            f"{len(classes)}."
        )
    return classes
