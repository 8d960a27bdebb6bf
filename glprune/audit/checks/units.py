"""C8: the units of inputs and hidden layers, and what was cut with them, follow from plan and weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from glprune.audit.findings import Finding, Found, check_equal
from glprune.schema import bundle as bundles

if TYPE_CHECKING:
    from glprune.audit.safetensors_reader import Tensors
    from glprune.schema.column_table import ColumnTable
    from glprune.schema.plan import Plan, UnitsPlan
    from glprune.schema.report import Report


def check_units(report: Report, plan: Plan, tensors: Tensors, tables: Sequence[ColumnTable]) -> list[Finding]:
    """Check the counts of units, before and after, against the shapes of the shipped tensors.

    Args:
        report: The report.
        plan: The plan.
        tensors: The shipped weights.
        tables: The columns of every input.
    """
    found = [*_places(plan, tensors), *_cuts(plan, tensors), *_columns(plan, tables)]
    findings = [Finding(bundles.PLAN, where, what) for where, what in found]
    return findings + [Finding(bundles.REPORT, where, what) for where, what in _hidden(report, plan)]


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


def _columns(plan: Plan, tables: Sequence[ColumnTable]) -> Iterator[Found]:
    """Require as many units as columns in an input whose columns are cut."""
    sizes = {table.name: table for table in tables if table.axis is not None}
    for n, units in enumerate(plan.units):
        table = sizes.get(units.name) if units.kind == "input" else None
        if units.kind == "input" and table is None:
            yield f"/units/{n}", f"{units.name!r} is no input with features"
        elif table is not None:
            yield from check_equal(f"/units/{n}/before", units.before, len(table.columns), "its columns are")


def _places(plan: Plan, tensors: Tensors) -> Iterator[Found]:
    """Require that the kept units, each as often, fill the places that the plan names in the tensors."""
    for n, units in enumerate(plan.units):
        where, kept = f"/units/{n}", units.kept
        if not kept or kept != sorted({*kept}) or kept[0] < 0 or kept[-1] >= units.before:
            yield f"{where}/kept", f"must be ascending numbers below {units.before}"
            continue
        for m, place in enumerate(units.places):
            counts = Counter(unit for unit in place.columns if unit >= 0)
            array = tensors.arrays.get(tensors.name(place.tensor))
            if array is not None and (
                place.dim >= array.ndim or array.shape[place.dim] != len(place.columns)
            ):
                yield f"{where}/places/{m}", f"does not fit the shape {array.shape} of {place.tensor!r}"
            elif {*counts} != {*kept} or len({*counts.values()}) > 1:
                yield f"{where}/places/{m}", "does not hold every kept unit equally often"


def _cuts(plan: Plan, tensors: Tensors) -> Iterator[Found]:
    """Require that every tensor lost the positions of the units that are gone, and no others."""
    lost: Counter[tuple[str, int]] = Counter()
    for units in plan.units:
        for tensor, dim, share in _shares(units):
            lost[tensors.name(tensor), dim] += share
    seen = set()
    for n, axis in enumerate(plan.axes):
        place = (tensors.name(axis.tensor), axis.dim)
        seen.add(place)
        gone = axis.size - len(axis.kept)
        if gone != lost[place]:
            yield f"/axes/{n}/size", f"loses {gone} positions; the units that are gone had {lost[place]}"
    for (tensor, dim), count in lost.items():
        if count and (tensor, dim) not in seen and tensor in tensors.arrays:
            yield "/axes", f"lacks {tensor!r} along {dim}, where {count} positions are gone"


def _shares(units: UnitsPlan) -> Iterator[tuple[str, int, int]]:
    """Return each place of some units, and the positions there of those that are gone."""
    gone = units.before - len(units.kept)
    if units.removal == "constant" or not units.kept:
        return
    for place in units.places:
        held = sum(unit >= 0 for unit in place.columns)
        yield place.tensor, place.dim, gone * held // len(units.kept)
