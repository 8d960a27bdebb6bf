"""Measure the original, the zeroed and the shipped network on the test split, through their ONNX files."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from glprune.audit.onnx_file.counts import measured_macs
from glprune.audit.onnx_reader import parse
from glprune.data.splits import Inputs, first_rows, identity
from glprune.errors import ModelError, NonFiniteError
from glprune.evaluation.segments import measure_segments
from glprune.export.onnx_runtime import EXPORT_TOLERANCE, OnnxFile, latency
from glprune.export.shipped_model import on_test_rows
from glprune.metrics.confidence_intervals import confidence_intervals
from glprune.metrics.scorer import r2_score
from glprune.model.consistency import in_other_batches
from glprune.model.counting import macs, parameters
from glprune.model.outputs import as_array, leaves
from glprune.model.prediction import predict
from glprune.pruning.verification import difference
from glprune.schema.metrics import metric_text
from glprune.schema.recipe import HIGHER_IS_BETTER, METRICS
from glprune.schema.report import Agreement, Latency, Metric, Segments, Size

if TYPE_CHECKING:
    from glprune.export.metadata import Names
    from glprune.export.shipped_model import ShippedModel
    from glprune.search.job import Job

Outputs = Sequence[Tensor]
_SAME = 1e-6  # the same network on the same rows, in the same batches
_NETWORKS = {
    "original": "original network",
    "zeroed": "slim network before the refit",
    "final": "slim network",
}


@dataclass(frozen=True)
class ExportedFiles:
    """The ONNX files that a run compares.

    Attributes:
        original: File of the original network.
        zeroed: File of the slim network before the refit.
        shipped: File of the shipped network.
        exporter: Exporter that wrote the shipped file.
        names: How that file gives the names of its columns.
    """

    original: Path
    zeroed: Path
    shipped: Path
    exporter: str
    names: Names


@dataclass(frozen=True)
class TestMeasurements:
    """Measurements of the ONNX files through ONNX Runtime.

    Attributes:
        metrics: Every metric on the test split.
        latency: One record for each batch size.
        size: Counts before and after.
        agreement: Outputs that the task does not use, compared with the original network's.
        difference: Difference of ONNX Runtime to PyTorch for the shipped file.
        rows: Rows of the test split.
        files: The files.
        segments: Metrics and decisions by protected attribute; None without a policy.
    """

    metrics: list[Metric]
    latency: list[Latency]
    size: Size
    agreement: list[Agreement]
    difference: float
    rows: int
    files: ExportedFiles
    segments: Segments | None


@dataclass(frozen=True)
class _TestOutputs:
    """Outputs of the three files on the test split.

    Attributes:
        original: Outputs of the original network.
        zeroed: Outputs of the slim network before the refit.
        shipped: Outputs of the shipped network.
        target: The targets.
        difference: Largest relative difference of the shipped file to PyTorch.
    """

    original: Outputs
    zeroed: Outputs
    shipped: Outputs
    target: Tensor
    difference: float


def measure_test_split(
    shipped: ShippedModel, files: ExportedFiles, batches: Sequence[int]
) -> TestMeasurements:
    """Run the three files on the test split and measure them.

    Args:
        shipped: The shipped model.
        files: Its file and those it is compared with.
        batches: Rows of a call, for latency.

    Raises:
        ModelError: The shipped file does not compute what the network computes.
        NonFiniteError: A metric is not finite.
    """
    job = shipped.job
    original, final = (OnnxFile(file, job.recipe.threads) for file in (files.original, files.shipped))
    outputs = _test_outputs(shipped, original, OnnxFile(files.zeroed, job.recipe.threads), final)
    metrics = _metrics(job, outputs)
    inputs = first_rows(job.data.test, max(batches))
    selected = shipped.select_columns(inputs)
    return TestMeasurements(
        metrics=metrics,
        latency=[latency(original, final, inputs, selected, batch) for batch in batches],
        size=_size(shipped, files),
        agreement=_agreement(job, outputs.original, outputs.shipped),
        difference=outputs.difference,
        rows=len(outputs.target),
        files=files,
        segments=measure_segments(shipped, outputs.original, outputs.shipped, outputs.target),
    )


def _test_outputs(
    shipped: ShippedModel, original: OnnxFile, zeroed: OnnxFile, final: OnnxFile
) -> _TestOutputs:
    """Run the three files on the test split; refuse a shipped file that does not agree with PyTorch."""
    job, removed = shipped.job, shipped.removed
    check_original(job)
    before, target = predict(original, job.data.test, identity)
    between, _ = predict(zeroed, job.data.test, removed.selection)
    after, _, gap = on_test_rows(job, removed, shipped.network, final)
    again, _ = predict(functools.partial(in_other_batches, final), job.data.test, shipped.select_columns)
    gap = max(gap, difference(after, again))
    if not gap <= EXPORT_TOLERANCE:
        raise ModelError(
            f"ONNX Runtime and PyTorch differ by {gap:.1e} on the test split (limit {EXPORT_TOLERANCE:.0e}); "
            "the slim model was not released. Try another export.opset."
        )
    return _TestOutputs(before, between, after, target, gap)


def check_original(job: Job) -> None:
    """Check that the original network has the metrics on the test split that it had when it was loaded.

    Raises:
        ModelError: It has others: the network keeps a state, or its rows changed.
    """
    (output,), target = predict(
        lambda x: (leaves(job.network(*x))[job.task.prediction],), job.data.test, identity
    )
    first = next((s.metrics for s in job.original.splits if s.split == "test"), {})
    for name, value in first.items():
        now = job.task.metric(name, output, target)
        if not math.isclose(now, value, rel_tol=_SAME, abs_tol=_SAME):
            raise ModelError(
                f"{name} of the original network on the test split was {metric_text(value)} at the start and "
                f"is {metric_text(now)} at the end of the run: its forward keeps a state from call to call, "
                "or the rows changed; the slim model was not released."
            )


def _metrics(job: Job, outputs: _TestOutputs) -> list[Metric]:
    """Return every metric of the three files, with its intervals."""
    views = {
        "original": job.task.view(outputs.original),
        "zeroed": job.task.view(outputs.zeroed),
        "final": job.task.view(outputs.shipped),
    }
    values = {name: job.task.metrics(view, outputs.target) for name, view in views.items()}
    for name, metrics in values.items():
        _check_finite(metrics, _NETWORKS[name])
    intervals = confidence_intervals(job.task.scorer, views, outputs.target, job.recipe.seed)
    return [
        Metric(
            name=name,
            higher_is_better=HIGHER_IS_BETTER[name],
            rows=len(outputs.target),
            original=values["original"][name],
            zeroed=values["zeroed"][name],
            final=values["final"][name],
            intervals=intervals.get(name),
        )
        for name in METRICS[job.task.kind]
    ]


def _check_finite(metrics: Mapping[str, float], network: str) -> None:
    """Refuse to report a metric that is not finite."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise NonFiniteError(
                f"{name} of the {network} on the test split is {value}; "
                "check the scale of columns and target."
            )


def _agreement(job: Job, before: Outputs, after: Outputs) -> list[Agreement]:
    """Compare the outputs that the task does not predict with the original's; without labels, all of them."""
    if len(before) == 1:
        return []
    records = []
    for number, (name, old, new) in enumerate(zip(job.outputs.names, before, after, strict=True)):
        if number == job.outputs.predicted:
            continue
        r2 = r2_score(*(as_array(y) for y in (new, old)))
        records.append(
            Agreement(
                name=name,
                r2=r2 if math.isfinite(r2) else None,
                max_change=float((new.double() - old.double()).abs().max()),
                trained_for=job.outputs.predicted is None and job.task.scales[number] > 0,
            )
        )
    return records


def _macs_of(file: Path, row: Inputs) -> int | None:
    """Count the multiply-accumulates of a file for one row; None where the file does not tell."""
    model = parse(file.read_bytes())
    names = (value.name for value in model.graph.input)
    return measured_macs(model, {name: x.numpy() for name, x in zip(names, row, strict=True)})


def _size(shipped: ShippedModel, files: ExportedFiles) -> Size:
    job = shipped.job
    row = first_rows(job.data.test, 1)
    before, after = _macs_of(files.original, row), _macs_of(files.shipped, shipped.select_columns(row))
    is_counted = after is not None
    before = macs(job.network, row) if before is None else before
    after = macs(shipped.network, shipped.removed.selection(row)) if after is None else after
    return Size(
        parameters_before=parameters(job.network),
        parameters_after=parameters(shipped.network),
        macs_before=before,
        macs_after=after,
        macs_of="onnx" if is_counted else "pytorch",
        onnx_bytes_before=files.original.stat().st_size,
        onnx_bytes_after=files.shipped.stat().st_size,
    )
