"""Compare metrics and decisions of both ONNX files over all rows and by segment of protected attributes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from glprune.metrics.segments import decide, decision_change, segment_metrics
from glprune.model.outputs import as_array
from glprune.schema.recipe import DEFAULT_THRESHOLD, PolicySpec
from glprune.schema.report import DecisionChange, ProtectedAttribute, Segment, SegmentMetric, Segments
from glprune.tables.protected import Attribute, segmented

if TYPE_CHECKING:
    from glprune.export.shipped_model import ShippedModel
    from glprune.search.job import Job
    from glprune.search.outcome import FeatureOutcome

Rows = NDArray[np.int64]
Status = Literal["kept", "removed", "outside"]


def measure_segments(
    shipped: ShippedModel, before: Sequence[Tensor], after: Sequence[Tensor], target: Tensor
) -> Segments | None:
    """Compare two files' outputs on the test split, over all rows and by protected attribute.

    Args:
        shipped: The shipped model.
        before: Outputs of the original's file.
        after: Outputs of the shipped file, in the same order of rows.
        target: The targets.

    Returns:
        The record; None where the recipe has no policy.
    """
    job = shipped.job
    spec = job.recipe.policy
    if spec is None:
        return None
    pair = _Pair(job, spec, job.task.view(before), job.task.view(after), target)
    classes = job.data.classes
    return Segments(
        min_rows=spec.min_segment_rows,
        threshold=pair.threshold if job.task.kind == "binary" else None,
        adverse=[str(c) for c in spec.adverse] if spec.adverse is not None else None,
        decisions=pair.decisions(np.arange(len(target))) if classes is not None else None,
        attributes=[
            _attribute(pair, a, attribute_status(job, a, shipped.outcomes)) for a in job.data.protected
        ],
    )


def attribute_status(job: Job, attribute: Attribute, outcomes: Sequence[FeatureOutcome]) -> Status:
    """Return whether an attribute is a kept or a removed feature of the network, or outside of it."""
    names = job.data.columns
    columns = set(attribute.columns)
    found = [
        outcome.is_kept
        for feature, outcome in zip(job.data.features, outcomes, strict=True)
        if columns & {names[c] for c in feature.columns}
    ]
    return "outside" if not found else "kept" if any(found) else "removed"


class _Pair:
    """The original's and the shipped file's outputs on the same rows."""

    def __init__(self, job: Job, spec: PolicySpec, before: Tensor, after: Tensor, target: Tensor) -> None:
        self.job, self.spec, self.target = job, spec, as_array(target)
        self.outputs = [as_array(output) for output in (before, after)]
        self.threshold = DEFAULT_THRESHOLD if spec.threshold is None else spec.threshold
        if job.data.classes is not None:
            self.classes = [decide(job.task.scorer, output, self.threshold) for output in self.outputs]

    def metrics(self, rows: Rows) -> list[SegmentMetric]:
        """Return every metric of the task on some rows, with its intervals."""
        before, after = (output[rows] for output in self.outputs)
        return segment_metrics(self.job.task.scorer, before, after, self.target[rows], self.job.recipe.seed)

    def decisions(self, rows: Rows) -> DecisionChange:
        """Count the rows whose decision changed; by direction where the policy names adverse classes."""
        before, after = (classes[rows] for classes in self.classes)
        return decision_change(before, after, self.job.rules.adverse)


def _attribute(pair: _Pair, attribute: Attribute, status: Status) -> ProtectedAttribute:
    parts = segmented(attribute, pair.spec.bins.get(attribute.name))
    number = parts.number["test"]
    segments = [_segment(pair, label, np.flatnonzero(number == n)) for n, label in enumerate(parts.labels)]
    return ProtectedAttribute(
        name=attribute.name,
        status=status,
        by=parts.by,
        edges=None if parts.edges is None else list(parts.edges),
        segments=segments,
    )


def _segment(pair: _Pair, value: str, rows: Rows) -> Segment:
    too_few = len(rows) < pair.spec.min_segment_rows
    has_decisions = pair.job.data.classes is not None and not too_few
    return Segment(
        value=value,
        rows=len(rows),
        suppressed=too_few,
        metrics=[] if too_few else pair.metrics(rows),
        decisions=pair.decisions(rows) if has_decisions else None,
    )
