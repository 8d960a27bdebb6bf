"""Read data: columns matched by name, every defect reported by name, splits reproducible."""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet
import torch
from numpy.typing import NDArray
from torch import Tensor

from glprune.errors import DataError, GlpruneError, RecipeError
from glprune.imports import describe, load_callable
from glprune.recipe import Recipe

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
        inputs: Each (rows, ...), float32.
        target: Class numbers int64 or values float32, shape (rows,).
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
        loader: Yields ``(inputs, target)``.
        names: Names of the inputs, for loaders that yield mappings.
        kind: The task, which decides the target's type.
        rows: Number of rows, counted once.
    """

    loader: Iterable[Any]
    names: tuple[str, ...]
    kind: str
    rows: int

    def batches(self, size: int | None, generator: torch.Generator | None) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield the loader's own batches; its shuffling is seeded from ``generator``."""
        with torch.random.fork_rng(devices=[]):
            if generator is not None:
                torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
            for batch in self.loader:
                yield unpack(batch, self.names, self.kind)


@dataclass(frozen=True)
class Field:
    """A raw input field: a column, or several columns that live and die together."""

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

    Attributes:
        source: What was read, in words.
        features: Columns in the network's input order.
        fields: Fields in the order of their first column; every column is in one.
        train: Training rows, raw.
        valid: Validation rows, raw.
        test: Test rows, raw.
        classes: Labels in the order of the network's outputs; None for regression.
        standardization: What the recipe's ``standardize: train`` puts before the network.
        digests: File or split -> ``sha256:...``.
        notes: What the user should know, by column.
    """

    source: str
    features: tuple[str, ...]
    fields: tuple[Field, ...]
    train: Split
    valid: Split
    test: Split
    classes: tuple[str, ...] | None
    standardization: Standardization | None
    digests: Mapping[str, str]
    notes: tuple[str, ...]


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
    features = _features(recipe, first.column_names)
    fields = _fields(recipe, features)
    columns = {key: _matrix(tables[key], features, paths[key]) for key in tables}
    raw = {key: _target_column(recipe, tables[key], paths[key]) for key in tables}
    classes = _classes(recipe, raw, paths)
    targets = {key: _encode(recipe, raw[key], classes, paths[key]) for key in tables}
    if spec.file:
        rows = _split_rows(recipe, first, targets["file"], paths["file"])
        parts = {s: (columns["file"][rows[s]], targets["file"][rows[s]]) for s in SPLITS}
    else:
        parts = {s: (columns[s], targets[s]) for s in SPLITS}
    _check_parts(parts, classes, recipe)
    notes = _constant_notes(recipe, parts["train"][0], features)
    if classes is not None and spec.classes is None:
        notes.append(f"data.classes is not given; the order is {', '.join(classes)}, as the labels sort.")
    splits = {s: TensorSplit((torch.from_numpy(x),), torch.from_numpy(y)) for s, (x, y) in parts.items()}
    return Data(
        source=", ".join(str(names[key]) for key in names),
        features=features,
        fields=fields,
        classes=classes,
        standardization=_standardization(recipe, parts["train"][0]),
        digests={key: _digest(path) for key, path in paths.items()},
        notes=tuple(notes),
        **splits,
    )


def read_table(path: Path) -> pa.Table:
    """Read a CSV file, a Parquet file, or a folder of Parquet files.

    Raises:
        DataError: It is missing, empty, truncated, ragged, not UTF-8 or of another kind.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; paths are relative to the recipe.")
    try:
        if path.is_dir():
            table = pa.dataset.dataset(path, format="parquet").to_table()
        elif path.suffix.lower() in (".parquet", ".pq"):
            table = pa.parquet.read_table(path)
        elif path.suffix.lower() in (".csv", ".txt"):
            table = pa.csv.read_csv(path)
        else:
            raise DataError(
                f"{path}: kind {path.suffix or 'unknown'!r}; give .csv, .parquet or a folder of Parquet."
            )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise DataError(f"{path}: cannot be read ({first}).") from error
    double = (
        sorted({name for name in table.column_names if table.column_names.count(name) > 1})
        if len(set(table.column_names)) < len(table.column_names)
        else []
    )
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
            raise RecipeError(f"{recipe.where('data', key)}: no column {name!r}.{_guess(name, columns)}")
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


def _expand(recipe: Recipe, key: str, patterns: Iterable[str], columns: Sequence[str]) -> list[str]:
    """Replace names and patterns by columns; each column once."""
    known, found = set(columns), dict[str, None]()
    for pattern in patterns:
        if pattern in known:
            found[pattern] = None
            continue
        matches = fnmatch.filter(columns, pattern) if any(c in pattern for c in "*?[") else []
        if not matches:
            raise RecipeError(
                f"{recipe.where('data', *key.split('/'))}: no column {pattern!r}.{_guess(pattern, columns)}"
            )
        found.update(dict.fromkeys(matches))
    return list(found)


def _fields(recipe: Recipe, features: Sequence[str]) -> tuple[Field, ...]:
    """Join columns into fields; a column no group names is a field of its own."""
    place = {name: number for number, name in enumerate(features)}
    owner: dict[str, str] = {}
    for field, members in recipe.data.feature_groups.items():
        listed = [members] if isinstance(members, str) else members
        for column in _expand(recipe, f"feature_groups/{field}", listed, features):
            if column in owner:
                raise RecipeError(
                    f"{recipe.where('data', 'feature_groups', field)}: column {column!r} is in "
                    f"{owner[column]!r} too; a column belongs to one field."
                )
            owner[column] = field
    joined: dict[str, list[int]] = {}
    for column in features:
        if column not in owner and column in recipe.data.feature_groups:
            raise RecipeError(
                f"{recipe.where('data', 'feature_groups', column)}: a column outside the "
                "group has this name; rename the group."
            )
        joined.setdefault(owner.get(column, column), []).append(place[column])
    return tuple(Field(name, tuple(columns)) for name, columns in joined.items())


def _matrix(table: pa.Table, features: Sequence[str], path: Path) -> NDArray[np.float32]:
    """The feature columns by name as float32, shape (rows, n_columns)."""
    missing = sorted(set(features) - set(table.column_names))
    if missing:
        raise DataError(f"{path}: column {_listed(missing)} missing.{_guess(missing[0], table.column_names)}")
    chosen = table.select(list(features))
    bad = [f.name for f in chosen.schema if not is_numeric(f.type)]
    if bad:
        example = next((v for v in chosen[bad[0]].to_pylist() if v is not None), None)
        raise DataError(
            f"{path}: column {_listed(bad)} not numeric (first value {example!r}); "
            "encode as numbers, or list under data.exclude."
        )
    matrix = np.empty((table.num_rows, len(features)), dtype=np.float32)
    for number, column in enumerate(chosen.columns):
        matrix[:, number] = column.cast(pa.float64()).to_numpy()
    finite = np.isfinite(matrix)
    if not finite.all():
        wrong = np.flatnonzero(~finite.all(axis=0))
        rows = np.flatnonzero(~finite[:, wrong[0]])
        raise DataError(
            f"{path}: column {_listed([features[w] for w in wrong.tolist()])} not finite: {len(rows)} empty, "
            f"NaN or Inf in {features[wrong[0]]!r}, first in row {rows[0] + 1}; fill or drop them."
        )
    return matrix


def is_numeric(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type can be features as they are."""
    return (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    )


def _target_column(recipe: Recipe, table: pa.Table, path: Path) -> pa.ChunkedArray:
    name = str(recipe.data.target)
    if name not in table.column_names:
        raise DataError(f"{path}: target column {name!r} is missing.{_guess(name, table.column_names)}")
    column = table[name]
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
    by_class = recipe.task != "regression" and (spec is None or spec.stratify is not False)
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
    parts: Mapping[str, tuple[NDArray[np.float32], NDArray[Any]]],
    classes: tuple[str, ...] | None,
    recipe: Recipe,
) -> None:
    for name, (matrix, target) in parts.items():
        if len(matrix) < 2:
            raise DataError(
                f"{recipe.where('data')}: the {name} split has {len(matrix)} rows; it needs at least 2."
            )
        if classes is not None and len(np.unique(target)) < 2:
            only = classes[int(target[0])]
            raise DataError(
                f"{recipe.where('data')}: the {name} split holds class {only!r} only; "
                "nothing can be measured."
            )


def _constant_notes(recipe: Recipe, train: NDArray[np.float32], features: Sequence[str]) -> list[str]:
    constant = [features[i] for i in np.flatnonzero(train.min(axis=0) == train.max(axis=0)).tolist()]
    if not constant:
        return []
    if recipe.data.standardize == "train":
        raise DataError(
            f"column {_listed(constant)} constant on the training rows, so it cannot be standardised; "
            "list under data.exclude."
        )
    return [f"column {_listed(constant)} constant on the training rows."]


def _standardization(recipe: Recipe, train: NDArray[np.float32]) -> Standardization | None:
    if recipe.data.standardize == "none":
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


def _guess(name: str, columns: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, columns[:5000], n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


# --- loaders ---------------------------------------------------------------------------------


def _from_loader(recipe: Recipe) -> Data:
    reference = str(recipe.data.loader)
    where = recipe.where("data", "loader")
    make = load_callable(reference, recipe.folder, where)
    names = tuple(spec.name for spec in recipe.model.inputs)
    splits, digests = {}, {}
    width = 0
    for name in SPLITS:
        try:
            loader = make(split=name)
            splits[name], digests[name], width, largest = _survey(loader, names, recipe)
        except GlpruneError as error:
            raise DataError(f"{where}: split {name!r}: {error}") from error
        except Exception as error:  # the user's loader may raise anything
            raise DataError(f"{where}: split {name!r} failed ({describe(error)}).") from error
    features = tuple(recipe.data.features or (f"x{i}" for i in range(width)))
    if len(features) != width:
        raise RecipeError(
            f"{recipe.where('data', 'features')} lists {len(features)} names, the loader yields "
            f"{width} features."
        )
    return Data(
        source=reference,
        features=features,
        fields=_fields(recipe, features),
        classes=_loader_classes(recipe, largest),
        standardization=None,
        digests=digests,
        notes=(),
        **splits,
    )


def _survey(
    loader: Iterable[Any], names: tuple[str, ...], recipe: Recipe
) -> tuple[LoaderSplit, str, int, int]:
    """Read a loader once: rows, digest of the tensors, width of the features, largest class."""
    total, rows, width, largest = hashlib.sha256(), 0, 0, 0
    axis = recipe.model.inputs[0].axis
    for batch in loader:
        inputs, target = unpack(batch, names, recipe.task)
        for tensor in (*inputs, target):
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise DataError(f"NaN or Inf in batch after row {rows}.")
            total.update(tensor.contiguous().numpy().tobytes())
        rows, width = rows + len(target), inputs[0].shape[axis]
        largest = max(largest, int(target.max()))
        if recipe.task != "regression" and int(target.min()) < 0:
            raise DataError(f"class {int(target.min())} is below 0 after row {rows}.")
    if rows < 2:
        raise DataError(f"{rows} rows; at least 2 are needed.")
    return LoaderSplit(loader, names, recipe.task, rows), f"sha256:{total.hexdigest()}", width, largest


def unpack(batch: Any, names: tuple[str, ...], kind: str) -> tuple[Inputs, Tensor]:
    """Bring a loader's batch to ``(inputs, target)``.

    Raises:
        DataError: It is not ``(x, y)``, ``((x1, x2), y)`` or ``({name: x}, y)``.
    """
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        raise DataError(f"a batch is {type(batch).__name__}, not a pair (inputs, target).")
    inputs, target = batch
    if isinstance(inputs, Mapping):
        absent = [n for n in names if n not in inputs]
        if absent:
            raise DataError(f"a batch has no input {absent[0]!r}; it has {', '.join(map(str, inputs))}.")
        inputs = [inputs[n] for n in names]
    elif isinstance(inputs, Tensor):
        inputs = [inputs]
    if (
        len(inputs) != len(names)
        or not all(isinstance(x, Tensor) for x in inputs)
        or not isinstance(target, Tensor)
    ):
        raise DataError(f"a batch should hold {len(names)} input tensor(s) and a target tensor.")
    if inputs[0].ndim < 2 or len(inputs[0]) != len(target):
        raise DataError(f"inputs of shape {tuple(inputs[0].shape)} do not fit {len(target)} targets.")
    flat = target.reshape(len(target), -1)
    if flat.shape[1] != 1:
        raise DataError(
            f"a target of shape {tuple(target.shape)} has several values in a row; one is needed."
        )
    goal = flat[:, 0].float() if kind == "regression" else flat[:, 0].long()
    return tuple(x.float() if x.is_floating_point() else x for x in inputs), goal


def _loader_classes(recipe: Recipe, largest: int) -> tuple[str, ...] | None:
    if recipe.task == "regression":
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
