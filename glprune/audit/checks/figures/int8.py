"""C5, the 8-bit file and times: a file where figures are stated, and figures that agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from glprune.audit.findings import Found, check_close, check_equal
from glprune.schema import bundle as bundles
from glprune.schema.metrics import HIGHER_IS_BETTER, RANGES

if TYPE_CHECKING:
    from glprune.schema.recipe import Recipe
    from glprune.schema.report import Quantized, Report

_WITH_CLASSES = ("binary", "multiclass")
_SPEED_SLACK = 3.0  # between a median of ratios and a ratio of medians


def check_quantized(
    report: Report, recipe: Recipe | None, files: Mapping[str, bytes], *, is_older: bool
) -> Iterator[Found]:
    """Require that an 8-bit file is present where the report states one, with consistent figures.

    Args:
        report: The report.
        recipe: Its recipe; None if it cannot be read.
        files: The files of the bundle.
        is_older: Whether another version of glprune wrote the report.
    """
    record, raw = report.quantized, files.get(bundles.INT8)
    if (record is not None) != (bundles.INT8 in report.digests.outputs):
        yield f"/digests/outputs/{bundles.INT8}", "is stated without figures of the file, or the reverse"
    if recipe is not None and (recipe.export.quantize is not None) != (record is not None):
        yield "/quantized", f"{bundles.RECIPE} says export.quantize: {recipe.export.quantize}"
    if record is None:
        if raw is not None:
            yield "/quantized", f"is null, but {bundles.INT8} is in the folder"
        return
    yield from _figures(report, record, is_older=is_older)
    if raw is not None:
        yield from check_equal("/quantized/bytes", record.bytes, len(raw), "the file has")
    yield from _quantized_metrics(report, record)


def _figures(report: Report, record: Quantized, *, is_older: bool) -> Iterator[Found]:
    yield from check_equal("/quantized/file", record.file, bundles.INT8, "it is")
    yield from check_equal("/quantized/rows", record.rows, report.export.rows, "the test split has")
    if record.largest_pair is None and not is_older:
        yield "/quantized/largest_pair", "is not stated"
    if not is_older and (record.same_decisions is None) != (report.task not in _WITH_CLASSES):
        yield "/quantized/same_decisions", "is given without classes, or the reverse"
    if record.same_decisions is not None and not 0 <= record.same_decisions <= 1:
        yield "/quantized/same_decisions", f"{record.same_decisions} is not between 0 and 1"
    if min(record.difference, record.golden_difference) < 0:
        yield "/quantized/difference", "is below zero"
    for n, time in enumerate(record.latency):
        yield from check_speedup(f"/quantized/latency/{n}", time.float32_ms, time.int8_ms, time.speedup)


def _quantized_metrics(report: Report, record: Quantized) -> Iterator[Found]:
    final = {m.name: m.final for m in report.performance}
    names = [m.name for m in record.metrics]
    yield from check_equal("/quantized/metrics", names, [*final], "the performance has")
    for n, metric in enumerate(record.metrics):
        where = f"/quantized/metrics/{n}"
        yield from check_close(
            f"{where}/float32", metric.float32, final.get(metric.name), "the performance says"
        )
        best = HIGHER_IS_BETTER.get(metric.name, True)
        yield from check_equal(f"{where}/higher_is_better", metric.higher_is_better, best, "it should be")
        low, high = RANGES[metric.name]
        if (low is not None and metric.int8 < low) or (high is not None and metric.int8 > high):
            yield f"{where}/int8", f"{metric.name} cannot be {metric.int8}"


def check_speedup(where: str, before: float, after: float, speedup: float) -> Iterator[Found]:
    """Require positive times, and a median of ratios near the ratio of the medians."""
    if min(before, after, speedup) <= 0:
        yield where, "a time is not above zero"
        return
    ratio = before / after
    if not ratio / _SPEED_SLACK <= speedup <= ratio * _SPEED_SLACK:
        yield f"{where}/speedup", f"says {speedup:.3g}, but the ratio of the medians is {ratio:.3g}"
