"""C8: compute shapes, counts and group norms again from ``model.safetensors`` and the plan."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from glprune.audit.findings import Finding
from glprune.audit.onnx_reader import initializers
from glprune.schema import bundle as bundles
from glprune.schema.plan import counts_as_parameter

if TYPE_CHECKING:
    from glprune.audit.safetensors_reader import Array, Tensors
    from glprune.schema.plan import InputPlan, Plan
    from glprune.schema.report import Report

_NORM_TOLERANCE = 1e-6  # relative
_SAME_DIRECTION = 1e-9  # of the cosine: a relative difference of 4e-5
_MATRIX = 2  # axes
_AT_ONCE = 256  # outputs that are compared together
Floats = NDArray[np.float64]


def check_weights(report: Report, plan: Plan, tensors: Tensors) -> list[Finding]:
    """Check the report and the plan against the weights.

    Args:
        report: The report.
        plan: The plan.
        tensors: The shipped weights.
    """
    return [*_axes(plan, tensors), *_counts(report, plan, tensors), *_norms(report, plan, tensors)]


def check_shared(plan: Plan, tensors: Tensors, model: ModelProto) -> list[Finding]:
    """Check that the model contains the tensors that the plan lists as contained bit for bit."""
    found = shared(tensors, model)
    return [
        Finding(bundles.WEIGHTS, name, f"is {'' if name in found else 'not '}in {bundles.ONNX} bit for bit")
        for name in sorted({*found} ^ {*plan.in_model})
    ]


def check_readers(plan: Plan, tensors: Tensors, model: ModelProto) -> list[Finding]:
    """Check that the weights that read columns are in the model, up to a factor for each output.

    Exporters fold the scale of a normalisation into the weights before it, transpose them and order gates
    anew; the weights of one output on the columns stay a multiple of what they were.
    """
    stored = initializers(model.graph).values()
    weights = [x.astype(np.float64) for x in stored if x.dtype == np.float32 and x.ndim >= _MATRIX]
    findings = []
    for place in (reader for part in plan.inputs for reader in part.readers):
        array = tensors.arrays.get(tensors.name(place.tensor))
        if array is None or place.dim >= array.ndim or array.ndim < _MATRIX:
            continue  # said by other checks, or no weights of several columns
        if not _is_among(_directions(array.astype(np.float64), place.dim), weights):
            what = f"its weights are not in {bundles.ONNX}, not even up to a factor for each output"
            findings.append(Finding(bundles.WEIGHTS, place.tensor, what))
    return findings


def _directions(array: Floats, dim: int) -> Floats:
    """Return the weights of each output on the columns, shape (outputs, columns), scaled to length 1."""
    rows = np.moveaxis(array, dim, -1).reshape(-1, array.shape[dim])
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: Floats = (rows / np.where(lengths > 0, lengths, 1))[lengths[:, 0] > 0]
    return scaled


def _is_among(rows: Floats, weights: Sequence[Floats]) -> bool:
    """Whether every direction is that of an output of some weights, or the opposite one."""
    missing = rows
    for array in weights:
        for dim, size in enumerate(array.shape):
            if size != rows.shape[1] or not len(missing):
                continue
            others = _directions(array, dim)
            parts = np.split(missing, range(_AT_ONCE, len(missing), _AT_ONCE))
            nearest = [np.abs(part @ others.T).max(axis=1, initial=0.0) for part in parts]
            missing = missing[np.concatenate(nearest) < 1 - _SAME_DIRECTION]
    return not len(missing)


def shared(tensors: Tensors, model: ModelProto) -> list[str]:
    """Return the saved tensors whose values are in the model too, as they are or transposed."""
    stored = {_bits(x) for x in initializers(model.graph).values()}
    return sorted(
        name for name, x in tensors.arrays.items() if x.size > 1 and {_bits(x), _bits(x.T)} & stored
    )


def _bits(x: Array) -> tuple[str, bytes]:
    return x.dtype.str, np.ascontiguousarray(x).tobytes()


def _axes(plan: Plan, tensors: Tensors) -> Iterator[Finding]:
    for n, axis in enumerate(plan.axes):
        where, array = f"/axes/{n}", tensors.arrays.get(tensors.name(axis.tensor))
        if array is None:
            yield Finding(bundles.WEIGHTS, axis.tensor, f"is cut by {bundles.PLAN}, but is not in the file")
        elif axis.dim >= array.ndim or array.shape[axis.dim] != len(axis.kept):
            what = (
                f"keeps {len(axis.kept)} positions along {axis.dim}; {axis.tensor!r} has shape {array.shape}"
            )
            yield Finding(bundles.PLAN, where, what)
        ascending = all(a < b for a, b in zip(axis.kept, axis.kept[1:], strict=False))
        if not ascending or (axis.kept and not 0 <= axis.kept[0] <= axis.kept[-1] < axis.size):
            yield Finding(bundles.PLAN, f"{where}/kept", f"are no ascending positions below {axis.size}")


def _counts(report: Report, plan: Plan, tensors: Tensors) -> Iterator[Finding]:
    """Count the parameters of the file, and those of the shapes from which the plan cut them."""
    sizes = plan.sizes_before(tensors.name)
    before = after = 0
    for name, array in tensors.arrays.items():
        is_float = np.issubdtype(array.dtype, np.floating)
        if counts_as_parameter(name, array.ndim, is_float, plan.standardize):
            after += array.size
            before += math.prod(sizes.get(name, {}).get(dim, size) for dim, size in enumerate(array.shape))
    for key, stated, found in (
        ("after", report.size.parameters_after, after),
        ("before", report.size.parameters_before, before),
    ):
        if stated != found:
            what = f"says {stated:,}; the weights and the plan give {found:,}"
            yield Finding(bundles.REPORT, f"/size/parameters_{key}", what)


def _norms(report: Report, plan: Plan, tensors: Tensors) -> Iterator[Finding]:
    for part in plan.inputs:
        squares = _squares(part, tensors)
        if isinstance(squares, Finding):
            yield squares
            continue
        kept = [
            (n, f) for n, f in enumerate(report.features) if f.input == part.name and f.norm_final is not None
        ]
        positions = dict(zip(part.columns, part.kept, strict=False))
        if kept and not part.readers and any(feature.norm_final for _, feature in kept):
            yield Finding(bundles.PLAN, f"input {part.name!r}", "has no readers, but its features have norms")
            continue
        for n, feature in kept:
            found = math.sqrt(sum(squares.get(positions[c], 0.0) for c in feature.columns if c in positions))
            stated = feature.norm_final or 0.0
            if not math.isclose(stated, found, rel_tol=_NORM_TOLERANCE, abs_tol=1e-12):
                what = f"says {stated:.6g} for {feature.name!r}; the weights give {found:.6g}"
                yield Finding(bundles.REPORT, f"/features/{n}/norm_final", what)


def _squares(part: InputPlan, tensors: Tensors) -> Mapping[int, float] | Finding:
    """Sum the squared weights of each original column."""
    total: dict[int, float] = {}
    for reader in part.readers:
        array = tensors.arrays.get(tensors.name(reader.tensor))
        if array is None or reader.dim >= array.ndim or array.shape[reader.dim] != len(reader.columns):
            where = f"input {part.name!r}"
            return Finding(bundles.PLAN, where, f"its reader {reader.tensor!r} does not fit the weights")
        others = tuple(d for d in range(array.ndim) if d != reader.dim)
        along = np.square(array.astype(np.float64)).sum(axis=others)
        for column, value in zip(reader.columns, along.tolist(), strict=True):
            if column >= 0:
                total[column] = total.get(column, 0.0) + value
    return total
