"""Compare metrics and decisions of both ONNX files over all rows and by segment of protected attributes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from glprune.data.protected import Attribute, segmented
from glprune.model.confidence_intervals import confidence_intervals
from glprune.schema.recipe import DEFAULT_THRESHOLD, METRICS, PolicySpec
from glprune.schema.report import DecisionChange, ProtectedAttribute, Segment, SegmentMetric, Segments

if TYPE_CHECKING:
    from glprune.export.shipped_model import ShippedModel
    from glprune.model.task import Task
    from glprune.search.job import Job
    from glprune.search.outcome import FeatureOutcome


Status = Literal["kept", "removed", "outside"]


def decide(task: Task, output: Tensor, threshold: float) -> Tensor:
    """Return the class that is decided for each row, shape (n,), int64.

    Args:
        task: Binary or multiclass.
        output: A view of the outputs, shape (n,), (n, 1) or (n, n_classes).
        threshold: Smallest probability of the positive class that decides for it; of more than two
            classes the most probable one is chosen.
    """
    logs = task.log_probabilities(output.double())
    return (logs[:, 1].exp() >= threshold).long() if task.kind == "binary" else logs.argmax(dim=1)


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
        decisions=pair.decisions(torch.arange(len(target))) if classes is not None else None,
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
        self.job, self.spec, self.target = job, spec, target
        self.outputs = (before, after)
        self.threshold = DEFAULT_THRESHOLD if spec.threshold is None else spec.threshold
        if job.data.classes is not None:
            self.classes = [decide(job.task, output, self.threshold) for output in self.outputs]

    def metrics(self, rows: Tensor) -> list[SegmentMetric]:
        """Return every metric of the task on some rows, with its intervals."""
        task, target, found = self.job.task, self.target[rows], []
        views = {name: y[rows] for name, y in zip(("original", "final"), self.outputs, strict=True)}
        intervals = confidence_intervals(task, views, target, self.job.recipe.seed)
        for name in METRICS[task.kind]:
            old, new = (_metric(task, name, view, target) for view in views.values())
            gap = None if old is None or new is None else new - old
            known = intervals.get(name) if gap is not None else None
            found.append(SegmentMetric(name=name, original=old, final=new, difference=gap, intervals=known))
        return found

    def decisions(self, rows: Tensor) -> DecisionChange:
        """Count the rows whose decision changed; by direction where the policy names adverse classes."""
        old, new = (classes[rows] for classes in self.classes)
        n_changed, adverse = int((old != new).sum()), self.job.rules.adverse
        if adverse is None:
            return DecisionChange(
                rows=len(rows),
                flipped=n_changed,
                to_adverse=None,
                to_favourable=None,
                adverse_original=None,
                adverse_final=None,
            )
        was, is_now = (torch.isin(c, torch.tensor(sorted(adverse))) for c in (old, new))
        return DecisionChange(
            rows=len(rows),
            flipped=n_changed,
            to_adverse=int((~was & is_now).sum()),
            to_favourable=int((was & ~is_now).sum()),
            adverse_original=int(was.sum()),
            adverse_final=int(is_now.sum()),
        )


def _attribute(pair: _Pair, attribute: Attribute, status: Status) -> ProtectedAttribute:
    parts = segmented(attribute, pair.spec.bins.get(attribute.name))
    number = torch.from_numpy(parts.number["test"])
    segments = [
        _segment(pair, label, torch.nonzero(number == n).flatten()) for n, label in enumerate(parts.labels)
    ]
    return ProtectedAttribute(name=attribute.name, status=status, by=parts.by, segments=segments)


def _segment(pair: _Pair, value: str, rows: Tensor) -> Segment:
    too_few = len(rows) < pair.spec.min_segment_rows
    has_decisions = pair.job.data.classes is not None and not too_few
    return Segment(
        value=value,
        rows=len(rows),
        suppressed=too_few,
        metrics=[] if too_few else pair.metrics(rows),
        decisions=pair.decisions(rows) if has_decisions else None,
    )


def _metric(task: Task, name: str, output: Tensor, target: Tensor) -> float | None:
    """Return a metric, or None where the rows do not define it."""
    is_constant = len(target) < 2 or bool((target == target[0]).all())
    if is_constant and name in ("auroc", "r2"):
        return None
    value = task.metric(name, output, target)
    return value if math.isfinite(value) else None
