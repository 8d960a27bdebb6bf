"""Measure every network of a frontier as the shipped one is measured: its ONNX file, on the test rows."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from glprune._wording import counted
from glprune.data.splits import first_rows
from glprune.errors import GlpruneError, ModelError
from glprune.export.onnx_runtime import EXPORT_TOLERANCE, OnnxFile
from glprune.export.shipped_model import on_test_rows, write_shipped
from glprune.metrics.confidence_intervals import confidence_intervals
from glprune.model.counting import macs, parameters
from glprune.model.validation_score import check_finite
from glprune.report.rules import PATH_ALONE, shipping_rule
from glprune.runtime.events import Listener, Progress, Stage
from glprune.schema.metrics import HIGHER_IS_BETTER
from glprune.schema.report import Frontier, FrontierPoint, Interval
from glprune.search.portfolio.frontier import best_point

if TYPE_CHECKING:
    from glprune.export.shipped_model import ShippedModel
    from glprune.search.job import Job
    from glprune.search.portfolio.frontier import FrontierPoint as FoundPoint
    from glprune.search.search import SearchResult


def measure_frontier(shipped: ShippedModel, chosen: SearchResult, listener: Listener) -> Frontier | None:
    """Export every network of the frontier and measure its file.

    Args:
        shipped: The shipped model, whose file exists.
        chosen: The shipped network and the points.
        listener: Receives every measured point.

    Returns:
        The record; None without a frontier.
    """
    if not chosen.frontier:
        return None
    job, total, best = shipped.job, len(chosen.frontier), best_point(chosen.frontier)
    listener(Stage("frontier", f"exporting and measuring networks of {counted(total, 'size')}"))
    points = []
    with tempfile.TemporaryDirectory(dir=shipped.folder) as scratch:
        for done, point in enumerate(chosen.frontier, 1):
            is_shipped = point.found.refit is chosen.refit
            file = shipped.file if is_shipped else Path(scratch) / f"{point.size}.onnx"
            points.append(_measure(job, point, best, file, is_shipped))
            listener(Progress("networks measured", done, total))
    return Frontier(
        metric=job.metric,
        higher_is_better=HIGHER_IS_BETTER[job.metric],
        valid_rows=job.data.valid.rows,
        test_rows=job.data.test.rows,
        rule=shipping_rule(job.recipe.target.max_features),
        points=points,
    )


def _measure(job: Job, point: FoundPoint, best: FoundPoint, file: Path, is_shipped: bool) -> FrontierPoint:
    network, removed = point.found.refit.network, point.found.removed
    test, interval, reason = None, None, None
    try:
        test, interval = _measure_test_rows(job, point, file)
    except GlpruneError as error:  # a point that cannot be measured must not stop the run
        reason = str(error)
    competition, gain = point.found.competition, point.score.gain_over(best.score)
    return FrontierPoint(
        size=point.size,
        features=point.features,
        found_by=competition.best.name if competition else PATH_ALONE,
        valid=point.score.value,
        standard_error=point.score.standard_error,
        gain=gain.mean,
        gain_standard_error=gain.standard_error,
        test=test,
        test_interval=interval,
        reason=reason,
        parameters=parameters(network),
        macs=macs(network, removed.selection(first_rows(job.data.test, 1))),
        shipped=is_shipped,
    )


def _measure_test_rows(job: Job, point: FoundPoint, file: Path) -> tuple[float, Interval]:
    """Measure the selection metric of a point's file on the test rows; write it where it does not exist.

    Raises:
        GlpruneError: It cannot be exported, or does not compute what the network computes.
    """
    network, removed = point.found.refit.network, point.found.removed
    if not file.exists():
        write_shipped(job, removed, network, file)
    outputs, target, gap = on_test_rows(job, removed, network, OnnxFile(file, job.recipe.threads))
    if not gap <= EXPORT_TOLERANCE:
        raise ModelError(
            f"ONNX Runtime and PyTorch differ by {gap:.1e} on the test split (limit {EXPORT_TOLERANCE:.0e})."
        )
    view = job.task.view(outputs)
    value = check_finite(job.metric, job.task.metric(job.metric, view, target))
    found = confidence_intervals(job.task.scorer, {"test": view}, target, job.recipe.seed).get(job.metric)
    return value, found.values["test"] if found else Interval(low=value, high=value)
