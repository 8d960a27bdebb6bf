"""Who is treated otherwise: metrics and decisions of both ONNX files, over all rows and by segment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from glprune.data.protected import Attribute, segmented
from glprune.schema.recipe import METRICS, PolicySpec
from glprune.schema.report import DecisionChange, ProtectedAttribute, Segment, SegmentMetric, Segments

if TYPE_CHECKING:
    from glprune.model.task import Task
    from glprune.search.job import Job
    from glprune.search.outcome import FeatureOutcome

THRESHOLD = 0.5
Status = Literal["kept", "removed", "outside"]


def decide(task: Task, output: Tensor, threshold: float) -> Tensor:
    """The class each row is decided for, shape (n,), int64.

    Args:
        task: Binary or multiclass.
        output: A view of the outputs, shape (n,), (n, 1) or (n, n_classes).
        threshold: Probability of the positive class from which on it is decided for; of several
            classes the most probable one is.
    """
    logs = task.log_probabilities(output.double())
    return (logs[:, 1].exp() >= threshold).long() if task.kind == "binary" else logs.argmax(dim=1)


def measure_segments(
    job: Job,
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    target: Tensor,
    outcomes: Sequence[FeatureOutcome],
) -> Segments | None:
    """Compare two files' outputs on the test split, over all rows and by protected attribute.

    Args:
        job: The job.
        before: Outputs of the original's file.
        after: Outputs of the shipped file, in the same order of rows.
        target: The targets.
        outcomes: What became of each feature.

    Returns:
        The record; None where the recipe has no policy.
    """
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
        attributes=[_attribute(pair, a, attribute_status(job, a, outcomes)) for a in job.data.protected],
    )


def attribute_status(job: Job, attribute: Attribute, outcomes: Sequence[FeatureOutcome]) -> Status:
    """Whether an attribute is a kept or a removed feature of the network, or outside of it."""
    names = job.data.columns
    own = set(attribute.columns)
    kept = [
        outcome.is_kept
        for feature, outcome in zip(job.data.features, outcomes, strict=True)
        if own & {names[c] for c in feature.columns}
    ]
    return "outside" if not kept else "kept" if any(kept) else "removed"


class _Pair:
    """The original's and the shipped file's outputs on the same rows."""

    def __init__(self, job: Job, spec: PolicySpec, before: Tensor, after: Tensor, target: Tensor) -> None:
        self.job, self.spec, self.target = job, spec, target
        self.outputs = (before, after)
        self.threshold = THRESHOLD if spec.threshold is None else spec.threshold
        if job.data.classes is not None:
            self.classes = [decide(job.task, output, self.threshold) for output in self.outputs]

    def metrics(self, rows: Tensor) -> list[SegmentMetric]:
        """Every metric of the task on some rows."""
        found = []
        for name in METRICS[self.job.task.kind]:
            old, new = (_metric(self.job.task, name, y[rows], self.target[rows]) for y in self.outputs)
            gap = None if old is None or new is None else new - old
            found.append(SegmentMetric(name=name, original=old, final=new, difference=gap))
        return found

    def decisions(self, rows: Tensor) -> DecisionChange:
        """Rows decided otherwise; the direction where classes are called adverse."""
        old, new = (classes[rows] for classes in self.classes)
        flipped, adverse = int((old != new).sum()), self.job.rules.adverse
        if adverse is None:
            return DecisionChange(
                rows=len(rows),
                flipped=flipped,
                to_adverse=None,
                to_favourable=None,
                adverse_original=None,
                adverse_final=None,
            )
        was, now = (torch.isin(c, torch.tensor(sorted(adverse))) for c in (old, new))
        return DecisionChange(
            rows=len(rows),
            flipped=flipped,
            to_adverse=int((~was & now).sum()),
            to_favourable=int((was & ~now).sum()),
            adverse_original=int(was.sum()),
            adverse_final=int(now.sum()),
        )


def _attribute(pair: _Pair, attribute: Attribute, status: Status) -> ProtectedAttribute:
    parts = segmented(attribute, pair.spec.bins.get(attribute.name))
    number = torch.from_numpy(parts.number["test"])
    segments = [
        _segment(pair, label, torch.nonzero(number == n).flatten()) for n, label in enumerate(parts.labels)
    ]
    return ProtectedAttribute(name=attribute.name, status=status, by=parts.by, segments=segments)


def _segment(pair: _Pair, value: str, rows: Tensor) -> Segment:
    few = len(rows) < pair.spec.min_segment_rows
    decided = pair.job.data.classes is not None and not few
    return Segment(
        value=value,
        rows=len(rows),
        suppressed=few,
        metrics=[] if few else pair.metrics(rows),
        decisions=pair.decisions(rows) if decided else None,
    )


def _metric(task: Task, name: str, output: Tensor, target: Tensor) -> float | None:
    """A metric, or None where the rows do not define it."""
    alike = len(target) < 2 or bool((target == target[0]).all())
    if alike and name in ("auroc", "r2"):
        return None
    value = task.metric(name, output, target)
    return value if math.isfinite(value) else None
