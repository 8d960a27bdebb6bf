"""C5, the frontier: one point ships, it is the one of the rule, and its figures are those of the report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from glprune.audit.findings import Found, check_close, check_equal
from glprune.audit.safetensors_reader import read_tensors
from glprune.report import rules
from glprune.schema import bundle as bundles
from glprune.schema.metrics import HIGHER_IS_BETTER, MACS_SLACK, RANGES
from glprune.schema.plan import counts_as_parameter
from glprune.schema.strict_json import StrictError

if TYPE_CHECKING:
    from glprune.audit.safetensors_reader import Array
    from glprune.schema.frontier import StoredFrontier
    from glprune.schema.recipe import Recipe
    from glprune.schema.report import Frontier, FrontierPoint, Report


def check_frontier(report: Report, recipe: Recipe | None, files: Mapping[str, bytes]) -> Iterator[Found]:
    """Compare the frontier with the rest of the report, the recipe and the files of its points."""
    record = report.frontier
    if recipe is not None and (recipe.target.frontier is not None) != (record is not None):
        yield "/frontier", f"{bundles.RECIPE} says target.frontier: {recipe.target.frontier}"
    stated = {name for name in report.digests.outputs if bundles.POINT_FILE.fullmatch(name)}
    sizes = [point.size for point in record.points] if record is not None else []
    if stated != {bundles.point_file(size) for size in sizes}:
        yield "/digests/outputs", f"the files of the frontier are {sorted(stated)}, its sizes {sizes}"
    if (bundles.FRONTIER in report.digests.outputs) != (record is not None):
        yield "/digests/outputs", f"names {bundles.FRONTIER} without a frontier, or the reverse"
    if record is not None:
        yield from _sizes(report, record, recipe)
        yield from _figures(report, record)
        yield from _choice(report, record, recipe)


def check_points(
    report: Report, stored: StoredFrontier, files: Mapping[str, bytes], *, standardize: bool
) -> Iterator[Found]:
    """Require the metric and the parameters of every point among those of the networks that led to it.

    Args:
        report: The report.
        stored: The steps of the search.
        files: The files of the bundle, those of the points among them.
        standardize: Whether the networks begin with the standardisation of the recipe.
    """
    record, metrics, parameters = report.frontier, [], set[int]()
    points = {point.size: (n, point) for n, point in enumerate(record.points)} if record is not None else {}
    for found in stored.points:
        raw = files.get(bundles.point_file(found.size))
        metrics += [
            float(m) for step in found.steps if isinstance(m := step.values.get("metric"), int | float)
        ]
        parameters |= _parameters(raw, standardize=standardize) if raw is not None else set()
        n, point = points.get(found.size, (0, None))
        if point is None or raw is None:
            continue  # said by other checks
        if not any(math.isclose(point.valid, m, rel_tol=1e-6, abs_tol=1e-9) for m in metrics):
            yield f"/frontier/points/{n}/valid", f"{point.valid:g} is of no step in {bundles.FRONTIER}"
        if point.parameters not in parameters:
            what = f"{point.parameters:,} are those of no network in {bundles.point_file(found.size)}"
            yield f"/frontier/points/{n}/parameters", what


def _parameters(raw: bytes, *, standardize: bool) -> set[int]:
    """Count the parameters of every network in the file of a point: tensors are ``<step>/state/<name>``.

    A weight that two layers share may be there twice, so that both counts are returned.
    """
    try:
        arrays = read_tensors(raw).arrays
    except StrictError:
        return set()  # C4 says so
    networks: dict[str, list[Array]] = {}
    for name, array in arrays.items():
        step, is_state, tensor = name.partition("/state/")
        is_float = np.issubdtype(array.dtype, np.floating)
        if is_state and counts_as_parameter(tensor, array.ndim, is_float, standardize):
            networks.setdefault(step, []).append(array)
    different = [{(x.shape, x.tobytes()): x.size for x in found}.values() for found in networks.values()]
    return {sum(x.size for x in found) for found in networks.values()} | {sum(n) for n in different}


def _sizes(report: Report, record: Frontier, recipe: Recipe | None) -> Iterator[Found]:
    sizes = [point.size for point in record.points]
    yield from check_equal(
        "/frontier/points", sizes, sorted(set(sizes), reverse=True), "in descending order it is"
    )
    if recipe is not None and isinstance(recipe.target.frontier, list):
        asked = [
            *recipe.target.frontier,
            *([recipe.target.max_features] if recipe.target.max_features else []),
        ]
        wanted = sorted({min(size, _available(report)) for size in asked})
        yield from check_equal("/frontier/points", sorted(sizes), wanted, f"{bundles.RECIPE} says")


def _available(report: Report) -> int:
    """Count the features that the search began with: those that no rule removed."""
    return sum(f.status == "kept" or f.reason == "penalty" for f in report.features)


def _figures(report: Report, record: Frontier) -> Iterator[Found]:
    names = [f.name for f in report.features]
    yield from check_equal("/frontier/metric", record.metric, report.selection.metric, "the selection has")
    better = HIGHER_IS_BETTER.get(record.metric, True)
    yield from check_equal("/frontier/higher_is_better", record.higher_is_better, better, "it should be")
    for split, rows in (("valid", record.valid_rows), ("test", record.test_rows)):
        if split in report.data.splits:
            found = report.data.splits[split].rows
            yield from check_equal(f"/frontier/{split}_rows", rows, found, f"the {split} split has")
    for n, point in enumerate(record.points):
        where = f"/frontier/points/{n}"
        ordered = [name for name in names if name in point.features]
        yield from check_equal(
            f"{where}/features", point.features, ordered, "in the order of the features it is"
        )
        if len(point.features) > point.size:
            yield f"{where}/features", f"lists {len(point.features)}, but {point.size} were asked for"
        if point.found_by not in (rules.PATH_ALONE, *rules.FOUND_BY):
            yield f"{where}/found_by", f"{point.found_by[:60]!r} is no way to find a set here"
        if (point.test is None) != (point.reason is not None):
            yield f"{where}/test", "must have either a value or a reason"
        if (point.test is None) != (point.test_interval is None):
            yield f"{where}/test_interval", "is given without a test metric, or the reverse"
        yield from _ranges(record, point, where)
    yield from _gains(record)


def _gains(record: Frontier) -> Iterator[Found]:
    sign = 1.0 if record.higher_is_better else -1.0
    best = max((sign * point.valid for point in record.points), default=0.0)
    for n, point in enumerate(record.points):
        gain = sign * point.valid - best
        yield from check_close(f"/frontier/points/{n}/gain", point.gain, gain, "the metrics give")


def _ranges(record: Frontier, point: FrontierPoint, where: str) -> Iterator[Found]:
    low, high = RANGES.get(record.metric, (None, None))
    for key, value in (("valid", point.valid), ("test", point.test)):
        if value is not None and ((low is not None and value < low) or (high is not None and value > high)):
            yield f"{where}/{key}", f"{record.metric} cannot be {value}"
    interval = point.test_interval
    if interval is not None and point.test is not None and not interval.low <= point.test <= interval.high:
        yield f"{where}/test_interval", f"does not hold {point.test}"
    if min(point.standard_error, point.gain_standard_error) < 0:
        yield f"{where}/standard_error", "is below zero"


def _choice(report: Report, record: Frontier, recipe: Recipe | None) -> Iterator[Found]:
    """Require that one point ships, that the rule gives it, and that the report has its figures."""
    shipped = [(n, point) for n, point in enumerate(record.points) if point.shipped]
    if len(shipped) != 1:
        yield "/frontier/points", f"{len(shipped)} points are marked as shipped"
        return
    [(n, point)] = shipped
    where = f"/frontier/points/{n}"
    kept = [f.name for f in report.features if f.status == "kept"]
    yield from check_equal(f"{where}/features", point.features, kept, "the features kept are")
    yield from check_equal(
        f"{where}/parameters", point.parameters, report.size.parameters_after, "the size says"
    )
    if abs(point.macs - report.size.macs_after) > MACS_SLACK * report.size.macs_after:
        yield f"{where}/macs", f"says {point.macs:,}, but the size says {report.size.macs_after:,}"
    test = next((m.final for m in report.performance if m.name == record.metric), None)
    if point.test is not None:
        yield from check_close(f"{where}/test", point.test, test, "the performance says")
    if report.stages:
        yield from check_close(f"{where}/valid", point.valid, report.stages[-1].metric, "the last stage says")
    if recipe is not None:
        asked = recipe.target.max_features
        yield from check_equal("/frontier/rule", record.rule, rules.shipping_rule(asked), "the recipe gives")
        wanted = min(asked, _available(report)) if asked else _one_standard_error(record)
        yield from check_equal(f"{where}/size", point.size, wanted, "the rule gives")


def _one_standard_error(record: Frontier) -> int:
    """Return the smallest size that is worse than the best by at most one standard error of that."""
    return min(p.size for p in record.points if p.gain >= -p.gain_standard_error)
