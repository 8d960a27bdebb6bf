"""C8: compute shapes, counts and group norms again from ``model.safetensors`` and the plan."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto, numpy_helper

from glprune.audit.findings import Finding
from glprune.audit.onnx_reader import storage_error
from glprune.schema import bundle as bundles
from glprune.schema.plan import counts_as_parameter

if TYPE_CHECKING:
    from glprune.audit.safetensors_reader import Array, Tensors
    from glprune.schema.plan import InputPlan, Plan
    from glprune.schema.report import Report

_NORM_TOLERANCE = 1e-6  # relative


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


def shared(tensors: Tensors, model: ModelProto) -> list[str]:
    """Return the saved tensors whose values are in the model too, as they are or transposed."""
    initializers = {
        _bits(numpy_helper.to_array(t)) for t in model.graph.initializer if storage_error(t) is None
    }
    return sorted(
        name for name, x in tensors.arrays.items() if x.size > 1 and {_bits(x), _bits(x.T)} & initializers
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
    sizes: dict[str, dict[int, int]] = {}
    for axis in plan.axes:
        sizes.setdefault(tensors.name(axis.tensor), {})[axis.dim] = axis.size
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
