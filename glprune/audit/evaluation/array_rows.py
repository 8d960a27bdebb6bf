"""Rows given as arrays: of a NumPy or safetensors file, or by the auditor's own function."""

from __future__ import annotations

import hashlib
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
from glprune.audit.evaluation.rows import Array, Division, Rows, in_chunks
from glprune.errors import DataError, first_line
from glprune.schema.report import VALUES
from glprune.tables.batches import ordered_inputs, split_batch
from glprune.tables.protected import Attribute, assigned

if TYPE_CHECKING:
    from glprune.audit.evaluation.subject import Subject
    from glprune.schema.plan import InputPlan

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
    return Rows(
        source=str(path),
        kind="own rows",
        evidence="the report states no digest of arrays",
        batches=in_chunks(inputs),
        held=_held(inputs, parts, str(path)),
        target=_target(arrays.get(TARGET), subject, len(inputs[0]), f"{path}: array {TARGET!r}"),
        divisions=_divisions(subject, arrays, len(inputs[0])),
    )


def read_loader(subject: Subject, reference: str) -> Rows:
    """Read rows from a function of the auditor's, which is called with ``split="test"``.

    It returns batches ``(inputs, target)`` of arrays or tensors, as the loaders of recipes do.

    Raises:
        DataError: The function fails, or a batch is none.
        RecipeError: It cannot be imported.
    """
    where = f"--loader {reference}"
    make = load_callable(reference, Path(), "--loader")
    with user_code(DataError, where):
        batches = list(_batches(make(split=_SPLIT), subject, where))
    if not batches:
        raise DataError(f"{where}: no rows.")
    parts, digest = subject.plan.inputs, hashlib.sha256()
    for inputs, target in batches:
        for array in (*inputs, target):
            digest.update(np.ascontiguousarray(array).tobytes())
    is_test = subject.report.digests.data.get(_SPLIT) == f"sha256:{digest.hexdigest()}"
    return Rows(
        source=reference,
        kind="test rows" if is_test else "own rows",
        evidence="the rows are the test rows of the report (SHA-256)"
        if is_test
        else "their SHA-256 is not that of the report's test rows",
        batches=[inputs for inputs, _ in batches],
        held=_held(batches[0][0], parts, where),
        target=np.concatenate([target for _, target in batches]),
    )


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
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, SafetensorError, KeyError, TypeError) as error:
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
    axis = part.axis or 0
    if x.ndim < max(1, axis + 1, -axis):
        raise DataError(f"{place} has shape {x.shape}; its columns are along axis {part.axis}.")
    if x.dtype.kind not in "fiub" or (part.dtype != "float32" and x.dtype.kind == "f"):
        raise DataError(f"{place} holds {x.dtype} values; {part.dtype} is needed.")
    with np.errstate(over="ignore"):
        found = x.astype(part.dtype)
    _check_finite(found, place)
    return found


def _check_finite(x: Array, place: str) -> None:
    if x.dtype.kind == "f":
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
    flat = labels.reshape(len(labels), -1) if labels.ndim else labels.reshape(1, 1)
    if flat.shape != (rows, 1):
        raise DataError(f"{place} has shape {labels.shape}; one value for each of {rows} rows is needed.")
    values = flat[:, 0]
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


def _divisions(subject: Subject, arrays: Mapping[str, Array], rows: int) -> dict[str, Division]:
    """Divide the rows by the protected attributes that are among the arrays."""
    found: dict[str, Division] = {}
    for stated in subject.report.segments.attributes if subject.report.segments is not None else ():
        values = arrays.get(stated.name)
        if values is None or values.shape != (rows,):
            continue
        if stated.by != VALUES and stated.edges is None:
            continue
        attribute = _attribute(stated.name, values)
        labels = tuple(segment.value for segment in stated.segments)
        found[stated.name] = Division(labels, assigned(attribute, labels, stated.edges))
    return found


def _attribute(name: str, values: Array) -> Attribute:
    if values.dtype.kind in "fiub":
        return Attribute(name, {_SPLIT: values.astype(np.float64)}, (name,))
    labels, numbers = np.unique(values.astype(str), return_inverse=True)
    return Attribute(name, {_SPLIT: numbers.reshape(-1)}, (name,), tuple(labels.tolist()))
