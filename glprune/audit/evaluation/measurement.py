"""Measure every figure that a report states of the models of a bundle, on some rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from glprune.audit.evaluation.figures import Figure
from glprune.audit.evaluation.metric_values import (
    CHANGE,
    INT8_CHANGE,
    PAIRS,
    SHARE,
    interval_of,
    interval_of_change,
    measure,
)
from glprune.audit.evaluation.subject import FINAL, INT8, ORIGINAL
from glprune.metrics.rounding import SINGLE, near_ties, output_steps
from glprune.metrics.scorer import r2_score
from glprune.metrics.segments import decide, decision_change
from glprune.schema.metrics import ADDED
from glprune.schema.recipe import DEFAULT_THRESHOLD

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from glprune.audit.evaluation.rows import Array, Division, Rows
    from glprune.audit.evaluation.subject import Subject
    from glprune.metrics.calibration import Floats
    from glprune.schema.report import DecisionChange, Interval, Segment

ALL = "all rows"
OTHER_VALUES = "other values"
TARGET = "target"
ROUNDING = {FINAL: 2e-5, ORIGINAL: 2e-5, INT8: 4e-3}
"""By how much the outputs of a row may differ on another processor, relative to its largest one."""
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

    def figures(self, overall: bool = False) -> Iterator[Figure]:
        """Yield every figure, as the report states it and as it is found.

        Args:
            overall: Leave out segments.
        """
        everything = np.arange(len(self.target))
        yield Figure(ALL, FINAL, "rows", self.subject.report.performance[0].rows, len(self.target))
        if self.rows.kind == "test rows":
            yield from self._target()
        yield from self._metrics(ALL, everything, self._stated_metrics())
        yield from self._agreement()
        yield from self._same_decisions()
        yield from self._segments(everything, overall)

    def _target(self) -> Iterator[Figure]:
        """Yield the shares of the classes, or mean and standard deviation of a regression target."""
        stated, classes = self.subject.report.data.splits["test"].target, self.subject.report.data.classes
        if self.subject.report.task == "distillation":
            return
        if classes is not None:
            counts = np.bincount(self.target.astype(np.int64), minlength=len(classes)) / len(self.target)
            found = dict(zip(classes, counts.tolist(), strict=True))
        else:
            values = self.target.astype(np.float64)
            found = {"mean": float(values.mean()), "std": float(values.std())}
        for name, value in found.items():
            allowed = SINGLE * max(1.0, abs(value))
            yield Figure(
                ALL, TARGET, f"share of {name}" if classes else name, stated.get(name), value, allowed
            )

    def _stated_metrics(self) -> dict[str, dict[str, _Stated]]:
        """Return model or pair of models -> metric -> what the report states over all test rows."""
        report = self.subject.report
        found: dict[str, dict[str, _Stated]] = {name: {} for name in (FINAL, ORIGINAL, INT8, *PAIRS)}
        for metric in report.performance:
            for model, value in ((FINAL, metric.final), (ORIGINAL, metric.original)):
                found[model][metric.name] = _Stated(value, interval_of(metric.intervals, model), metric.rows)
            found[CHANGE][metric.name] = _Stated(
                metric.final - metric.original, interval_of_change(metric.intervals, FINAL), metric.rows
            )
        for quantized in report.quantized.metrics if report.quantized is not None else ():
            rows = report.performance[0].rows
            found[INT8][quantized.name] = _Stated(
                quantized.int8, interval_of(quantized.intervals, INT8), rows
            )
            found[INT8_CHANGE][quantized.name] = _Stated(
                quantized.int8 - quantized.float32, interval_of_change(quantized.intervals, INT8), rows
            )
        return found

    def _metrics(
        self, where: str, rows: NDArray[np.int64], stated: Mapping[str, Mapping[str, _Stated]]
    ) -> Iterator[Figure]:
        """Yield the metrics of every model on some rows, and on the report's rows their changes.

        Metrics that reports of glprune 0.2.0 lack are left out.
        """
        views = {model: view[rows] for model, view in self.views.items() if stated.get(model)}
        if not views or not len(rows):
            return
        steps = {model: self.steps(model)[rows] for model in views}
        found = measure(self.subject.scorer, views, steps, self.target[rows], self.subject.recipe.seed)
        rarer = int(min((self.target[rows] == c).sum() for c in (0, 1))) if self._is_binary else None
        for model, metrics in found.items():
            if model in PAIRS and self.rows.kind != "test rows":
                continue
            for name, value in metrics.items():
                known = stated[model].get(name)
                if known is None and name in ADDED:
                    continue
                yield Figure(
                    where,
                    model,
                    name if model not in PAIRS else f"change of {name}",
                    stated=known.value if known is not None else None,
                    found=value.value,
                    allowed=value.allowed,
                    stated_interval=known.interval if known is not None else None,
                    interval=value.interval,
                    stated_rows=known.rows if known is not None else 0,
                    rows=len(rows),
                    rarer=rarer if name == "auroc" else None,
                    cap=value.cap,
                )

    @property
    def _is_binary(self) -> bool:
        return self.subject.report.task == "binary"

    def steps(self, model: str) -> Floats:
        """Return by how much rounding may change each row's outputs; of distillation its targets too."""
        found = output_steps(self.views[model], ROUNDING[model])
        if self.subject.report.task == "distillation":
            found = found + output_steps(self.views[ORIGINAL], ROUNDING[ORIGINAL])
        return found

    def _agreement(self) -> Iterator[Figure]:
        """Yield how far each output that is not predicted agrees with the original's."""
        if ORIGINAL not in self.outputs:
            return
        numbers = {output.name: n for n, output in enumerate(self.subject.report.export.outputs)}
        for record in self.subject.report.agreement:
            old, new = (self.outputs[m][numbers[record.name]].astype(np.float64) for m in (ORIGINAL, FINAL))
            steps = output_steps(old, ROUNDING[ORIGINAL]) + output_steps(new, ROUNDING[FINAL])
            with np.errstate(over="ignore", invalid="ignore"):
                r2, change = r2_score(new, old), float(np.abs(new - old).max())
                spread = float(np.sqrt(np.square(old - old.mean(axis=0)).mean())) or 1.0
            defined, moved = (x if np.isfinite(x) else None for x in (r2, change))
            slack = SINGLE + 4 * float(np.sqrt(np.square(steps).mean())) / spread
            yield Figure(ALL, CHANGE, f"R2 of {record.name}", record.r2, defined, slack, cap=SHARE)
            name, slack = f"largest change of {record.name}", SINGLE + float(steps.max())
            yield Figure(ALL, CHANGE, name, record.max_change, moved, slack, cap=SHARE * spread)

    def _same_decisions(self) -> Iterator[Figure]:
        """Yield the share of rows for which the 8-bit file decides as the shipped one."""
        quantized, scorer = self.subject.report.quantized, self.subject.scorer
        if quantized is None or quantized.same_decisions is None or INT8 not in self.views:
            return
        before, after = (scorer.classes(self.views[model]) for model in (FINAL, INT8))
        count = len(self.target)
        slack = sum(int(self._near_ties(model, None).sum()) for model in (FINAL, INT8)) / count
        found, stated = float((before == after).mean()), quantized.same_decisions
        cap = _cap_of_rows(count) / count
        yield Figure(ALL, INT8_CHANGE, "same decisions", stated, found, slack + SINGLE, cap=cap + SINGLE)

    def _near_ties(self, model: str, threshold: float | None) -> NDArray[np.bool_]:
        return near_ties(self.subject.scorer, self.views[model], self.steps(model), threshold)

    def _segments(self, everything: NDArray[np.int64], overall: bool) -> Iterator[Figure]:
        """Yield decisions over all rows, and metrics and decisions by segment."""
        segments, policy = self.subject.report.segments, self.subject.recipe.policy
        if segments is None or policy is None:
            return
        if segments.decisions is not None:
            yield from self._decisions(ALL, everything, segments.decisions)
        for attribute in segments.attributes if not overall else ():
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
                yield Figure(f"{attribute.name} = {OTHER_VALUES}", FINAL, "rows", 0, others)

    def _segment(self, where: str, rows: NDArray[np.int64], stated: Segment) -> Iterator[Figure]:
        policy = self.subject.recipe.policy
        is_small = policy is None or len(rows) < policy.min_segment_rows
        reason = f"fewer than {policy.min_segment_rows} rows" if policy is not None and is_small else ""
        yield Figure(where, FINAL, "rows", stated.rows, len(rows), reason="" if stated.suppressed else reason)
        if stated.suppressed or is_small:
            return
        of_models: dict[str, dict[str, _Stated]] = {FINAL: {}, ORIGINAL: {}, CHANGE: {}}
        for metric in stated.metrics:
            for model, value in ((FINAL, metric.final), (ORIGINAL, metric.original)):
                of_models[model][metric.name] = _Stated(
                    value, interval_of(metric.intervals, model), stated.rows
                )
            change = interval_of_change(metric.intervals, FINAL)
            of_models[CHANGE][metric.name] = _Stated(metric.difference, change, stated.rows)
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
        slack = sum(int(self._near_ties(model, threshold)[rows].sum()) for model in classes)
        cap = _cap_of_rows(len(rows))
        for name in _COUNTS:
            said, is_of = getattr(stated, name), FINAL if name == "adverse_final" else CHANGE
            if said is not None and (is_of == FINAL or ORIGINAL in classes):
                yield Figure(where, is_of, name.replace("_", " "), said, getattr(found, name), slack, cap=cap)

    def _adverse(self) -> set[int] | None:
        policy, classes = self.subject.recipe.policy, self.subject.report.data.classes
        if policy is None or policy.adverse is None or classes is None:
            return None
        return {classes.index(str(label)) for label in policy.adverse}


@dataclass(frozen=True)
class _Stated:
    """What a report states of a metric of a model, or of its change."""

    value: float | None
    interval: Interval | None
    rows: int


def _cap_of_rows(count: int) -> float:
    """Largest difference of a count of rows that agrees."""
    return max(1.0, SHARE * count)


def _index(division: Division, label: str) -> int:
    """Return the number of a segment; -2 where no row can be in it."""
    return division.labels.index(label) if label in division.labels else -2
