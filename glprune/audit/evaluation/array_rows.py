"""Rows given as arrays: of a NumPy or safetensors file, or by the auditor's own function."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from glprune._files import unreadable_reason
from glprune._imports import load_callable
from glprune._user_code import user_code
from glprune._wording import counted
from glprune.audit.evaluation.divisions import divided
from glprune.audit.evaluation.rows import Array, Division, Rows, in_chunks
from glprune.errors import DataError, first_line, name_list
from glprune.schema.report import MISSING
from glprune.tables.batches import ordered_inputs, split_batch
from glprune.tables.protected import Attribute

if TYPE_CHECKING:
    from glprune.audit.evaluation.rows import SplitName
    from glprune.audit.evaluation.subject import Subject
    from glprune.schema.plan import InputPlan

_UNREADABLE = (
    OSError, ValueError, SafetensorError, KeyError, TypeError, EOFError, MemoryError,
    zipfile.BadZipFile, zlib.error, NotImplementedError,
)  # fmt: skip
"""What libraries raise for files that are cut, damaged or none of theirs."""
SUFFIXES = (".npz", ".safetensors")
TARGET = "target"
_SPLIT = "test"


def read_arrays(subject: Subject, path: Path) -> Rows:
    """Read rows from a .npz or .safetensors file: an array for each input by its name, and ``target``.

    Further arrays are protected attributes, by name. An array may hold the columns of the original or of
    the shipped file.

    Raises:
        DataError: The file cannot be read, or an array is missing or has another shape or type.
    """
    arrays = _load(path)
    parts = subject.plan.inputs
    missing = next((part.name for part in parts if part.name not in arrays), None)
    if missing is not None:
        raise DataError(f"{path}: no array {missing!r}; it has {', '.join(map(repr, arrays)) or 'none'}.")
    inputs = [_input(arrays[part.name], part, str(path)) for part in parts]
    _check_rows(inputs, parts, str(path))
    if not len(inputs[0]):
        raise DataError(f"{path}: no rows.")
    divisions, undivided = _divisions(subject, arrays, len(inputs[0]), str(path))
    return Rows(
        source=str(path),
        kind="own rows",
        evidence="the report states no digest of arrays",
        batches=in_chunks(inputs),
        held=_held(inputs, parts, str(path)),
        target=_target(arrays.get(TARGET), subject, len(inputs[0]), f"{path}: array {TARGET!r}"),
        divisions=divisions,
        undivided=undivided,
        names=_names(subject),
        notes=_unused(subject, arrays),
    )


def _unused(subject: Subject, arrays: Mapping[str, Array]) -> tuple[str, ...]:
    """Say which arrays nothing is made of."""
    segments = subject.report.segments
    known = {TARGET, *(part.name for part in subject.plan.inputs)}
    known |= {stated.name for stated in segments.attributes} if segments is not None else set()
    unused = [name for name in arrays if name not in known]
    return (
        (f"array {name_list(unused)} not used: no input, target or attribute of the report.",)
        if unused
        else ()
    )


def read_loader(subject: Subject, reference: str, split: SplitName | None = None) -> Rows:
    """Read rows from a function of the auditor's, which is called with ``split="test"`` or another.

    It returns batches ``(inputs, target)`` of arrays or tensors, as the loaders of recipes do.

    Raises:
        DataError: The function fails, or a batch is none.
        RecipeError: It cannot be imported.
    """
    where = f"--loader {reference}"
    if split == "all":
        raise DataError("--split all: a loader is called with one split; name it, or leave --split out.")
    make = load_callable(reference, Path(), "--loader")
    name = split or _SPLIT
    with user_code(DataError, where):
        batches = list(_batches(make(split=name), subject, where))
    if not batches:
        raise DataError(f"{where}: no rows.")
    held = _same_columns([inputs for inputs, _ in batches], subject.plan.inputs, where)
    is_test, evidence = _loaded(subject, batches, name)
    return Rows(
        source=reference,
        kind="test rows" if is_test else "own rows",
        evidence=evidence,
        batches=[inputs for inputs, _ in batches],
        held=held,
        target=np.concatenate([target for _, target in batches]),
        names=_names(subject),
    )


def _loaded(
    subject: Subject, batches: Sequence[tuple[tuple[Array, ...], Array]], name: str
) -> tuple[bool, str]:
    """Return whether the rows of a loader are the test rows of the report, and how that is known."""
    stated = subject.report.digests.data
    if subject.recipe.data.loader is None and subject.recipe.data.source is None:
        return False, "the report's rows come from a file, so it states no digest of a loader's"
    digest = hashlib.sha256()
    for inputs, target in batches:
        for array in (*inputs, target):
            digest.update(np.ascontiguousarray(array).tobytes())
    known = stated.get(name) == f"sha256:{digest.hexdigest()}"
    if not known:
        return False, f"their SHA-256 is not that of the report's {name} rows"
    return name == _SPLIT, f"the rows are the {name} rows of the report (SHA-256)"


def _same_columns(
    batches: Sequence[Sequence[Array]], parts: Sequence[InputPlan], where: str
) -> tuple[NDArray[np.int64] | None, ...]:
    """Return the columns of the original that the batches hold.

    Raises:
        DataError: A batch holds others than the first.
    """
    first = _held(batches[0], parts, where)
    for number, batch in enumerate(batches[1:], start=2):
        for x, part, held in zip(batch, parts, first, strict=True):
            width = x.shape[part.axis] if part.axis is not None else None
            if held is not None and width != len(held):
                raise DataError(
                    f"{where}: input {part.name!r} has {width} columns in batch {number} and {len(held)} in "
                    "the first; every batch needs the same."
                )
    return first


def _batches(
    loader: Iterable[Any], subject: Subject, where: str
) -> Iterator[tuple[tuple[Array, ...], Array]]:
    parts, kind = subject.plan.inputs, subject.report.task
    for batch in loader:
        raw, target = split_batch(batch, len(parts), kind, _is_array)
        found = ordered_inputs(raw, [part.name for part in parts], _is_array)
        inputs = tuple(_input(_plain(x), part, where) for x, part in zip(found, parts, strict=True))
        _check_rows(inputs, parts, where)
        if len(inputs[0]):
            labels = None if target is None else _plain(target)
            yield inputs, _target(labels, subject, len(inputs[0]), f"{where}: the target")


def _load(path: Path) -> dict[str, Array]:
    reason = unreadable_reason(path)
    if reason is not None:
        raise DataError(f"{path} {reason}; name a file of arrays.")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except _UNREADABLE as error:
        raise DataError(f"{path}: cannot be read as arrays ({first_line(error, 160)}).") from None


def _is_array(value: object) -> bool:
    """Whether a value is a NumPy array or a tensor: PyTorch need not be imported to know one."""
    return hasattr(value, "shape") and hasattr(value, "__array__")


def _plain(value: Any) -> Array:
    """Return an array; a tensor without its gradient."""
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)


def _input(x: Array, part: InputPlan, where: str) -> Array:
    """Return an input as the network takes it: float32, int64 or bool.

    Raises:
        DataError: It has too few axes, holds no numbers, or numbers of another kind.
    """
    place = f"{where}: input {part.name!r}"
    axis = part.axis
    if x.ndim < (1 if axis is None else max(2, axis + 1, 1 - axis)):
        raise DataError(f"{place} has shape {x.shape}; its columns are along axis {part.axis}.")
    if x.dtype.kind not in "fiub" or (part.dtype != "float32" and x.dtype.kind == "f"):
        raise DataError(f"{place} holds {x.dtype} values; {part.dtype} is needed.")
    with np.errstate(over="ignore"):
        found = x.astype(part.dtype)
    _check_finite(found, place)
    return found


def _check_finite(x: Array, place: str) -> None:
    if x.dtype.kind == "f" and len(x):
        finite = np.isfinite(x).reshape(len(x), -1).all(axis=1)
        if not finite.all():
            raise DataError(f"{place} is NaN or Inf in row {int(np.argmin(finite)) + 1}; fill or drop it.")


def _check_rows(inputs: Sequence[Array], parts: Sequence[InputPlan], where: str) -> None:
    for x, part in zip(inputs, parts, strict=True):
        if len(x) != len(inputs[0]):
            raise DataError(
                f"{where}: input {part.name!r} has {len(x)} rows, {parts[0].name!r} has {len(inputs[0])}."
            )


def _held(
    inputs: Sequence[Array], parts: Sequence[InputPlan], where: str
) -> tuple[NDArray[np.int64] | None, ...]:
    """Return the columns of the original that arrays hold: all of them, or the kept ones."""
    held: list[NDArray[np.int64] | None] = []
    for x, part in zip(inputs, parts, strict=True):
        if part.axis is None:
            held.append(None)
            continue
        width = x.shape[part.axis]
        if width not in (part.size, len(part.kept)):
            raise DataError(
                f"{where}: input {part.name!r} has {width} columns along axis {part.axis}; the original "
                f"takes {part.size}, the shipped file {len(part.kept)}."
            )
        held.append(np.arange(part.size) if width == part.size else np.array(part.kept, dtype=np.int64))
    return tuple(held)


def _target(labels: Array | None, subject: Subject, rows: int, place: str) -> Array:
    """Return class numbers or values, shape (rows,); (rows, 0) for distillation."""
    report = subject.report
    if report.task == "distillation":
        return np.empty((rows, 0), dtype=np.float32)
    if labels is None:
        raise DataError(f"{place} is missing.")
    values = _flat(labels, rows, place)
    if report.data.classes is None:
        if values.dtype.kind not in "fiub":
            raise DataError(f"{place} holds {values.dtype} values; numbers are needed.")
        found = values.astype(np.float32)
        _check_finite(found, place)
        return found
    return _class_numbers(values, report.data.classes, place)


def _class_numbers(values: Array, classes: Sequence[str], place: str) -> NDArray[np.int64]:
    """Return the number of each row's class: numbers as they are, texts by the report's labels."""
    if values.dtype.kind in "fiub":
        with np.errstate(invalid="ignore"):  # NaN is none of the classes
            numbers = values.astype(np.int64)
        wrong = (numbers != values) | (numbers < 0) | (numbers >= len(classes))
    else:
        known = {label: number for number, label in enumerate(classes)}
        numbers = np.array([known.get(str(value), -1) for value in values], dtype=np.int64)
        wrong = numbers < 0
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{place} holds {values[row]} in row {row + 1}; give the number of a class, 0 to "
            f"{len(classes) - 1}."
        )
    return numbers


def _divisions(
    subject: Subject, arrays: Mapping[str, Array], rows: int, where: str
) -> tuple[dict[str, Division], dict[str, str]]:
    """Divide the rows by the protected attributes among the arrays, and say why not by others."""
    found: dict[str, Division] = {}
    reasons: dict[str, str] = {}
    for stated in subject.report.segments.attributes if subject.report.segments is not None else ():
        if stated.name not in arrays:
            continue
        values = _flat(arrays[stated.name], rows, f"{where}: array {stated.name!r}")
        division = divided(_attribute(stated.name, values), stated)
        if isinstance(division, Division):
            found[stated.name] = division
        else:
            reasons[stated.name] = division
    return found, reasons


def _flat(values: Array, rows: int, place: str) -> Array:
    """Return one value for each row, shape (rows,).

    Raises:
        DataError: The array has another shape.
    """
    if values.size != rows or (values.ndim and len(values) != rows):
        what = counted(rows, "row")
        raise DataError(f"{place} has shape {values.shape}; one value for each of {what} is needed.")
    return values.reshape(rows)


def _attribute(name: str, values: Array) -> Attribute:
    if values.dtype.kind in "fiub":
        return Attribute(name, {_SPLIT: values.astype(np.float64)}, (name,))
    labels, numbers = np.unique(values.astype(str), return_inverse=True)
    texts = [str(label) if str(label).strip() else MISSING for label in labels]
    return Attribute(name, {_SPLIT: numbers.reshape(-1)}, (name,), tuple(texts))


def _names(subject: Subject) -> list[dict[int, str]]:
    """Return for each input: position -> column, as far as the report states it."""
    stated = subject.report.data.columns or {}
    return [dict(enumerate(stated.get(part.name, ()))) for part in subject.plan.inputs]
