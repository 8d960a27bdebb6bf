"""Measure every figure that a report states of the models of a bundle, on some rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from glprune.audit.evaluation.figures import Figure
from glprune.audit.evaluation.subject import FINAL, INT8, ORIGINAL
from glprune.metrics.confidence_intervals import confidence_intervals
from glprune.metrics.rounding import SINGLE, largest_change, near_ties, output_step
from glprune.metrics.scorer import r2_score
from glprune.metrics.segments import decide, decision_change, defined_metrics
from glprune.schema.recipe import DEFAULT_THRESHOLD

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from glprune.audit.evaluation.rows import Array, Division, Rows
    from glprune.audit.evaluation.subject import Subject
    from glprune.schema.report import DecisionChange, Interval, PairedIntervals, Segment

ALL = "all rows"
ROUNDING = {FINAL: 2e-5, ORIGINAL: 2e-5, INT8: 4e-3}
"""By how much outputs may differ on another processor, relative to the largest one."""
_PAIR = f"{FINAL} and {ORIGINAL}"
_COUNTS = ("flipped", "to_adverse", "to_favourable", "adverse_original", "adverse_final")


@dataclass(frozen=True)
class Measurement:
    """The outputs of the models of a bundle on rows, ready to be measured.

    Attributes:
        subject: The bundle.
        rows: The rows.
        outputs: Model -> its outputs.
        views: Model -> what metrics are computed from.
        target: The targets; for distillation what the original returns.
    """

    subject: Subject
    rows: Rows
    outputs: Mapping[str, Sequence[Array]]
    views: Mapping[str, Array]
    target: Array

    def figures(self) -> Iterator[Figure]:
        """Yield every figure, as the report states it and as it is found."""
        everything = np.arange(len(self.target))
        yield Figure(ALL, FINAL, "rows", self.subject.report.performance[0].rows, len(self.target))
        yield from self._metrics(ALL, everything, self._stated_metrics())
        yield from self._agreement()
        yield from self._same_decisions()
        yield from self._segments(everything)

    def _stated_metrics(self) -> dict[str, dict[str, _Stated]]:
        """Return model -> metric -> what the report states over all test rows."""
        report = self.subject.report
        found: dict[str, dict[str, _Stated]] = {FINAL: {}, ORIGINAL: {}, INT8: {}}
        for metric in report.performance:
            for model, value in ((FINAL, metric.final), (ORIGINAL, metric.original)):
                found[model][metric.name] = _Stated(value, _of(metric.intervals, model), metric.rows)
        for quantized in report.quantized.metrics if report.quantized is not None else ():
            interval = _of(quantized.intervals, INT8)
            found[INT8][quantized.name] = _Stated(quantized.int8, interval, report.performance[0].rows)
        return found

    def _metrics(
        self, where: str, rows: NDArray[np.int64], stated: Mapping[str, Mapping[str, _Stated]]
    ) -> Iterator[Figure]:
        """Yield the metrics of every model on some rows; those that the report does not state have none."""
        scorer, target = self.subject.scorer, self.target[rows]
        views = {model: view[rows] for model, view in self.views.items() if stated.get(model)}
        if not views or not len(rows):
            return
        seed = self.subject.recipe.seed
        for model, view in views.items():
            intervals = confidence_intervals(scorer, {model: view}, target, seed)
            step = output_step(self.views[model], ROUNDING[model])
            for name, value in defined_metrics(scorer, view, target).items():
                if name not in stated[model]:
                    continue  # a metric that reports of glprune 0.2.0 lack
                known = stated[model][name]
                allowed = 0.0 if value is None else largest_change(scorer, name, view, target, step)
                interval = intervals[name].values[model] if value is not None and name in intervals else None
                yield Figure(
                    where,
                    model,
                    name,
                    stated=known.value,
                    found=value,
                    allowed=allowed,
                    stated_interval=known.interval,
                    interval=interval,
                    stated_rows=known.rows,
                    rows=len(rows),
                )

    def _agreement(self) -> Iterator[Figure]:
        """Yield how far each output that is not predicted agrees with the original's."""
        if ORIGINAL not in self.outputs:
            return
        numbers = {output.name: n for n, output in enumerate(self.subject.report.export.outputs)}
        for record in self.subject.report.agreement:
            old, new = (self.outputs[m][numbers[record.name]].astype(np.float64) for m in (ORIGINAL, FINAL))
            step = output_step(old, ROUNDING[FINAL]) + output_step(new, ROUNDING[FINAL])
            r2, change = r2_score(new, old), float(np.abs(new - old).max())
            defined = r2 if np.isfinite(r2) else None
            spread = float(np.sqrt(np.square(old - old.mean(axis=0)).mean())) or 1.0
            slack = SINGLE + 4 * step / spread
            yield Figure(ALL, _PAIR, f"R2 of {record.name}", record.r2, defined, slack)
            name = f"largest change of {record.name}"
            yield Figure(ALL, _PAIR, name, record.max_change, change, SINGLE + step)

    def _same_decisions(self) -> Iterator[Figure]:
        """Yield the share of rows for which the 8-bit file decides as the shipped one."""
        quantized, scorer = self.subject.report.quantized, self.subject.scorer
        if quantized is None or quantized.same_decisions is None or INT8 not in self.views:
            return
        before, after = (scorer.classes(self.views[model]) for model in (FINAL, INT8))
        slack = sum(self._near_ties(model, None) for model in (FINAL, INT8))
        found, stated = float((before == after).mean()), quantized.same_decisions
        yield Figure(ALL, f"{INT8} and {FINAL}", "same decisions", stated, found, slack + SINGLE)

    def _near_ties(self, model: str, threshold: float | None) -> float:
        view = self.views[model]
        return near_ties(self.subject.scorer, view, output_step(view, ROUNDING[model]), threshold)

    def _segments(self, everything: NDArray[np.int64]) -> Iterator[Figure]:
        """Yield decisions over all rows, and metrics and decisions by segment."""
        segments, policy = self.subject.report.segments, self.subject.recipe.policy
        if segments is None or policy is None:
            return
        if segments.decisions is not None:
            yield from self._decisions(ALL, everything, segments.decisions)
        for attribute in segments.attributes:
            division = self.rows.divisions.get(attribute.name)
            if division is None:
                continue
            for stated in attribute.segments:
                number = _index(division, stated.value)
                rows = np.flatnonzero(division.number == number)
                yield from self._segment(f"{attribute.name} = {stated.value}", rows, stated)
            numbers = [_index(division, stated.value) for stated in attribute.segments]
            others = int((~np.isin(division.number, numbers)).sum())
            if others:
                yield Figure(f"{attribute.name} = other values", FINAL, "rows", 0, others)

    def _segment(self, where: str, rows: NDArray[np.int64], stated: Segment) -> Iterator[Figure]:
        policy = self.subject.recipe.policy
        yield Figure(where, FINAL, "rows", stated.rows, len(rows))
        if stated.suppressed or policy is None or len(rows) < policy.min_segment_rows:
            return
        of_models: dict[str, dict[str, _Stated]] = {FINAL: {}, ORIGINAL: {}}
        for metric in stated.metrics:
            for model, value in ((FINAL, metric.final), (ORIGINAL, metric.original)):
                of_models[model][metric.name] = _Stated(value, _of(metric.intervals, model), stated.rows)
        yield from self._metrics(where, rows, of_models)
        if stated.decisions is not None:
            yield from self._decisions(where, rows, stated.decisions)

    def _decisions(self, where: str, rows: NDArray[np.int64], stated: DecisionChange) -> Iterator[Figure]:
        """Yield the counts of decisions; those that compare with the original need its file."""
        subject, policy = self.subject, self.subject.recipe.policy
        wanted = policy.threshold if policy is not None else None
        threshold = DEFAULT_THRESHOLD if wanted is None else wanted
        classes = {m: decide(subject.scorer, self.views[m][rows], threshold) for m in self.views if m != INT8}
        found = decision_change(classes.get(ORIGINAL, classes[FINAL]), classes[FINAL], self._adverse())
        slack = sum(self._near_ties(model, threshold) for model in classes) * len(self.target)
        for name in _COUNTS:
            said, is_of = getattr(stated, name), FINAL if name == "adverse_final" else _PAIR
            if said is not None and (is_of == FINAL or ORIGINAL in classes):
                yield Figure(where, is_of, name.replace("_", " "), said, getattr(found, name), slack)

    def _adverse(self) -> set[int] | None:
        policy, classes = self.subject.recipe.policy, self.subject.report.data.classes
        if policy is None or policy.adverse is None or classes is None:
            return None
        return {classes.index(str(label)) for label in policy.adverse}


@dataclass(frozen=True)
class _Stated:
    """What a report states of a metric of a model."""

    value: float | None
    interval: Interval | None
    rows: int


def _index(division: Division, label: str) -> int:
    """Return the number of a segment; -2 where no row can be in it."""
    return division.labels.index(label) if label in division.labels else -2


def _of(intervals: PairedIntervals | None, model: str) -> Interval | None:
    return intervals.values.get(model) if intervals is not None else None
