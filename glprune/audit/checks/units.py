"""C8: the units of inputs and hidden layers, and what was cut with them, follow from plan and weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from glprune.audit.findings import Finding, Found, check_equal
from glprune.audit.onnx_reader import initializers
from glprune.schema import bundle as bundles

if TYPE_CHECKING:
    from glprune.audit.safetensors_reader import Tensors
    from glprune.schema.column_table import ColumnTable
    from glprune.schema.plan import InputPlan, Place, Plan, Reader
    from glprune.schema.report import Feature, Report

_NORM_TOLERANCE = 1e-6  # relative


def check_units(report: Report, plan: Plan, tensors: Tensors, tables: Sequence[ColumnTable]) -> list[Finding]:
    """Check the counts of units, before and after, against the shapes of the shipped tensors.

    Args:
        report: The report.
        plan: The plan.
        tensors: The shipped weights.
        tables: The columns of every input.
    """
    found = [*_kept(plan), *_cuts(plan, tensors), *_columns(plan, tables)]
    stated = [*_hidden(report, plan), *_group_sizes(report, plan, tensors, tables)]
    return [
        *(Finding(bundles.PLAN, where, what) for where, what in found),
        *(Finding(bundles.REPORT, where, what) for where, what in stated),
    ]


def _hidden(report: Report, plan: Plan) -> Iterator[Found]:
    """Require the units of the plan in every hidden layer that can be cut."""
    planned = {units.name: units for units in plan.units if units.kind == "hidden"}
    for n, layer in enumerate(report.hidden):
        units = planned.pop(layer.name, None)
        if units is not None:
            yield from check_equal(f"/hidden/{n}/before", layer.before, units.before, "the plan says")
            yield from check_equal(f"/hidden/{n}/after", layer.after, len(units.kept), "the plan keeps")
        elif layer.refused is None:
            yield f"/hidden/{n}", f"{layer.name!r} has no units in {bundles.PLAN}"
        elif layer.before != layer.after:
            yield f"/hidden/{n}/after", "units cannot be cut, but some are gone"
    for name in planned:
        yield "/hidden", f"lacks {name!r} of {bundles.PLAN}"


def _group_sizes(
    report: Report, plan: Plan, tensors: Tensors, tables: Sequence[ColumnTable]
) -> Iterator[Found]:
    """Count the weights through which the original network read each feature of an input that can be cut."""
    for part, columns in _with_columns(plan, tables):
        weights = _weights_of_columns(plan, part, tensors)
        for n, feature, found in _by_feature(report, part, columns, weights) if weights is not None else ():
            where = f"/features/{n}/group_size"
            yield from check_equal(where, feature.group_size, found, "the weights that read it are")


def _weights_of_columns(plan: Plan, part: InputPlan, tensors: Tensors) -> Counter[int] | None:
    """Count the weights that read each column of the original network; None without their places."""
    cut, total = plan.sizes_before(tensors.name), Counter[int]()
    for reader, place in _places_read(plan, part):
        name = tensors.name(reader.tensor)
        array = tensors.arrays.get(name)
        if place is None or array is None:
            return None
        sizes = cut.get(name, {})
        others = math.prod(sizes.get(d, size) for d, size in enumerate(array.shape) if d != place.dim)
        total.update({unit: others * count for unit, count in Counter(place.units).items()})
    return total


def check_original_norms(
    report: Report, plan: Plan, tables: Sequence[ColumnTable], original: ModelProto
) -> list[Finding]:
    """Compute the group norms of the original network from its own file, where that has its weights.

    Args:
        report: The report.
        plan: The plan.
        tables: The columns of every input.
        original: The ONNX file of the original network.
    """
    stored, findings = initializers(original.graph), []
    for part, columns in _with_columns(plan, tables):
        squares = _squares_of_columns(plan, part, stored)
        for n, feature, square in _by_feature(report, part, columns, squares) if squares is not None else ():
            norm = math.sqrt(square)
            if not math.isclose(feature.norm_original, norm, rel_tol=_NORM_TOLERANCE, abs_tol=1e-12):
                what = f"says {feature.norm_original:.6g}; {bundles.ORIGINAL} gives {norm:.6g}"
                findings.append(Finding(bundles.REPORT, f"/features/{n}/norm_original", what))
    return findings


def _squares_of_columns(
    plan: Plan, part: InputPlan, stored: Mapping[str, NDArray[Any]]
) -> dict[int, float] | None:
    """Sum the squared weights on each column; None if the file does not have all of them as they are.

    Weights that the exporter folded in ``model.onnx`` it folded in the original's file too, under their name.
    """
    total: dict[int, float] = {}
    for reader, place in _places_read(plan, part):
        array = stored.get(reader.tensor)
        if place is None or array is None or array.dtype.kind != "f" or array.ndim <= place.dim:
            return None
        if reader.tensor not in plan.in_model:
            return None
        if array.shape[place.dim] != len(place.units):
            return None  # exporters store some weights transposed
        along = np.square(array.astype(np.float64)).sum(
            axis=tuple(d for d in range(array.ndim) if d != place.dim)
        )
        for unit, value in zip(place.units, along.tolist(), strict=True):
            total[unit] = total.get(unit, 0.0) + value
    return total if part.readers else None


def _with_columns(plan: Plan, tables: Sequence[ColumnTable]) -> list[tuple[InputPlan, tuple[str, ...]]]:
    """Return the inputs of the plan with the names of their columns."""
    columns = {table.name: table.columns for table in tables}
    return [(part, columns.get(part.name, ())) for part in plan.inputs]


def _places_read(plan: Plan, part: InputPlan) -> Iterator[tuple[Reader, Place | None]]:
    """Yield the tensors that read an input, with the places of its columns there in the original network."""
    places = {(units.name, p.tensor, p.dim): p for units in plan.units for p in units.places}
    for reader in part.readers:
        yield reader, places.get((part.name, reader.tensor, reader.dim))


def _by_feature(
    report: Report, part: InputPlan, columns: Sequence[str], values: Mapping[int, float]
) -> Iterator[tuple[int, Feature, float]]:
    """Yield number and record of every feature of an input, with the sum of the values of its columns."""
    by_name = {name: values.get(n, 0) for n, name in enumerate(columns)}
    for n, feature in enumerate(report.features):
        if feature.input == part.name:
            yield n, feature, sum(by_name.get(column, 0) for column in feature.columns)


def _columns(plan: Plan, tables: Sequence[ColumnTable]) -> Iterator[Found]:
    """Require as many units as columns in an input whose columns are cut."""
    sizes = {table.name: table for table in tables if table.axis is not None}
    for n, units in enumerate(plan.units):
        table = sizes.get(units.name) if units.kind == "input" else None
        if units.kind == "input" and table is None:
            yield f"/units/{n}", f"{units.name!r} is no input with features"
        elif table is not None:
            yield from check_equal(f"/units/{n}/before", units.before, len(table.columns), "its columns are")


def _kept(plan: Plan) -> Iterator[Found]:
    """Require that the units that are left are some of those that were."""
    for n, units in enumerate(plan.units):
        kept = units.kept
        if not kept or kept != sorted({*kept}) or kept[0] < 0 or kept[-1] >= units.before:
            yield f"/units/{n}/kept", f"must be ascending numbers below {units.before}"
        named = {unit for place in units.places for unit in place.units} - {-1}
        every = {*range(units.before)}
        # a network may read some columns nowhere; a hidden unit lies somewhere
        if not named <= every or (units.kind == "hidden" and named != every):
            yield f"/units/{n}/places", f"name {len(named)} units; there were {units.before}"


def _cuts(plan: Plan, tensors: Tensors) -> Iterator[Found]:
    """Require that every tensor lost the positions of the units that are gone, and no others."""
    left, clash = _positions_left(plan)
    yield from clash
    for n, axis in enumerate(plan.axes):
        size, kept = left.pop((axis.tensor, axis.dim), (0, []))
        if (axis.size, axis.kept) != (size, kept):
            yield (
                f"/axes/{n}",
                f"keeps {len(axis.kept)} of {axis.size} positions; by the units that are left it is "
                f"{len(kept)} of {size}, or other ones",
            )
    for (tensor, dim), (size, kept) in left.items():
        array = tensors.arrays.get(tensors.name(tensor))
        if array is None:
            yield "/units", f"lie in {tensor!r}, which is not in {bundles.WEIGHTS}"
        elif len(kept) < size:
            yield "/axes", f"lacks {tensor!r} along {dim}, where {size - len(kept)} positions are gone"
        elif dim >= array.ndim or array.shape[dim] != size:
            yield "/units", f"say that {tensor!r} has size {size} along {dim}; its shape is {array.shape}"


Places = dict[tuple[str, int], tuple[int, list[int]]]


def _positions_left(plan: Plan) -> tuple[Places, list[Found]]:
    """Map each tensor axis that holds units to its size and the positions left there; and contradictions.

    A position is left if every set of units that it belongs to keeps its unit.
    """
    found: Places = {}
    clash = []
    for units in plan.units:
        kept = {-1, *units.kept}
        for place in units.places:
            key = (place.tensor, place.dim)
            size, positions = found.get(key, (len(place.units), [*range(len(place.units))]))
            if size != len(place.units):
                clash.append(("/units", f"give {place.tensor!r} two sizes along {place.dim}"))
            left = [p for p in positions if p < len(place.units) and place.units[p] in kept]
            found[key] = (size, left)
    return found, clash
