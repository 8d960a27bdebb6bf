"""Evaluate a bundle on an auditor's rows: every figure again, and whether it agrees with the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glprune._wording import counted
from glprune.audit.evaluation.array_rows import SUFFIXES, read_arrays, read_loader
from glprune.audit.evaluation.figures import (
    CAP,
    ERROR,
    Figure,
    comparisons,
    disagreeing,
    judge,
    not_comparable,
    widening,
)
from glprune.audit.evaluation.file_rows import read_file
from glprune.audit.evaluation.measurement import OTHER_VALUES, ROUNDING, Measurement
from glprune.audit.evaluation.running import run_model
from glprune.audit.evaluation.subject import FINAL, INT8, ORIGINAL, open_subject
from glprune.audit.limits import SECONDS
from glprune.errors import DataError, UsageError, name_list
from glprune.schema import bundle as bundles
from glprune.schema.manifest import sha256

if TYPE_CHECKING:
    from glprune.audit.evaluation.rows import Rows, SplitName
    from glprune.audit.evaluation.subject import Subject
    from glprune.schema.report import Interval

_RULES = {
    "test rows": (
        "the rows are those of the report: values and intervals must be the same, up to what outputs that "
        f"differ by {ROUNDING[FINAL]:g} of each row's largest one can change ({ROUNDING[INT8]:g} for "
        f"{bundles.INT8}), and by no more than {CAP:.0%} of the interval's width"
    ),
    "own rows": (
        "the rows are others than the report's: a figure agrees where chance explains its difference; a "
        "stated value outside of what it agrees within would be found. "
        f"{ERROR:.0%} of right reports have one that does not agree. Rows that both have make this milder"
    ),
}


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        bundle: The folder.
        model: SHA-256 of ``model.onnx``.
        source: Where the rows come from.
        rows: Their number.
        kind: ``test rows`` or ``own rows``.
        evidence: How that is known.
        rule: When a figure agrees.
        comparisons: Number of figures that own rows compare; None on the rows of the report.
        widening: By how much intervals of differences are wider for that number; None likewise.
        figures: The figures, as stated and as found.
        not_evaluated: What the report states and was not measured again.
        notes: What else the auditor should know.
        undivided: Protected attributes of the report that the data have, but not in its segments.
    """

    bundle: str
    model: str
    source: str
    rows: int
    kind: str
    evidence: str
    rule: str
    comparisons: int | None
    widening: float | None
    figures: tuple[Figure, ...]
    not_evaluated: tuple[str, ...]
    notes: tuple[str, ...]
    undivided: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0: all agree; 1: some do not; 3: some or all could not be compared."""
        if disagreeing(self.figures):
            return 1
        if not_comparable(self.figures) or self.undivided:
            return 3
        return 0 if any(f.agrees and f.interval is not None for f in self.figures) else 3

    @property
    def result(self) -> str:
        """The result in one word."""
        return {0: "agrees", 1: "DISAGREES", 3: "incomplete"}[self.exit_code]


@dataclass(frozen=True)
class Options:
    """Which rows are taken, and limits.

    Attributes:
        split: Rows of a file by the split of the recipe, or ``all``; None: ``test`` where the file has the
            recipe's split column, and all rows of other files. For a loader the split it is called with.
        seconds: Limit of the time to read the bundle, and of that of each model.
        overall: Leave out segments, and judge fewer figures.
    """

    split: SplitName | None = None
    seconds: float = SECONDS
    overall: bool = False


def evaluate(
    bundle: Path,
    data: Path | None = None,
    loader: str | None = None,
    original: Path | None = None,
    options: Options | None = None,
) -> Evaluation:
    """Measure the models of a bundle on rows and compare with what its report states.

    Args:
        bundle: The bundle; verify it first.
        data: CSV or Parquet file, folder of Parquet files, or file of arrays (.npz, .safetensors).
        loader: In place of that, a function ``file.py:function`` that is called with ``split="test"``.
        original: ONNX file of the original network; default that of the bundle, if it has any.
        options: Which rows to take, and limits.

    Raises:
        UnreadableError: The folder is not a bundle that this version can read.
        UsageError: Its files or graphs are refused, or rows or models cannot be used.
        StoppedError: A model needs more time or memory than it may use.
    """
    if (data is None) == (loader is None):
        raise UsageError("give either --data or --loader.")
    options = options or Options()
    split, seconds = options.split, options.seconds
    subject = open_subject(bundle, original, seconds)
    try:
        rows = _read(subject, data, split) if data is not None else read_loader(subject, str(loader), split)
        views = _run(subject, rows, seconds)
    except DataError as error:
        raise UsageError(str(error)) from error
    figures = judge(list(views.figures(options.overall)), rows.kind) if views is not None else []
    count = comparisons(figures) if rows.kind == "own rows" else None
    return Evaluation(
        bundle=str(bundle),
        model=sha256(subject.models[FINAL]),
        source=rows.source,
        rows=len(rows.target),
        kind=rows.kind,
        evidence=rows.evidence,
        rule=_RULES[rows.kind],
        comparisons=count,
        widening=widening(count) if count else None,
        figures=tuple(figures),
        not_evaluated=(*_reasons(figures), *_not_evaluated(subject, rows, options.overall)),
        notes=(*rows.notes, *subject.notes),
        undivided=() if options.overall else tuple(rows.undivided),
    )


def _read(subject: Subject, path: Path, split: SplitName | None) -> Rows:
    if path.suffix.lower() not in SUFFIXES:
        return read_file(subject, path, split)
    if split not in (None, "all"):
        raise UsageError(f"--split {split}: a file of arrays has no split column; give its rows alone.")
    return read_arrays(subject, path)


def _run(subject: Subject, rows: Rows, seconds: float) -> Measurement | None:
    """Run the models; None where metrics have no targets: distillation without the original."""
    models = [m for m in subject.models if m != ORIGINAL or not rows.lacks(subject.wanted(ORIGINAL))]
    if subject.report.task == "distillation" and (ORIGINAL not in models or subject.scales is None):
        return None
    outputs = {model: run_model(subject, model, rows, seconds) for model in models}
    views = {model: subject.view(found) for model, found in outputs.items()}
    target = views[ORIGINAL] if subject.report.task == "distillation" else rows.target
    return Measurement(subject, rows, outputs, views, target)


def _reasons(figures: Sequence[Figure]) -> list[str]:
    """List the figures that could not be compared, by reason, and rows of no segment."""
    by_reason: dict[str, list[Figure]] = {}
    for figure in not_comparable(figures):
        by_reason.setdefault(figure.reason, []).append(figure)
    found = [
        f"{counted(len(group), 'figure')}, {reason}: {_places(group)}." for reason, group in by_reason.items()
    ]
    outside = [f for f in figures if f.where.endswith(OTHER_VALUES) and f.agrees is None]
    return found + [f"{f.found:,.0f} rows of {f.where}: the report has no segment of them." for f in outside]


def _places(figures: Sequence[Figure]) -> str:
    shown = [f"{figure.name} of {figure.model} ({figure.where})" for figure in figures[:3]]
    return ", ".join(shown) + (f" and {len(figures) - 3} more" if len(figures) > 3 else "")


def _not_evaluated(subject: Subject, rows: Rows, overall: bool) -> list[str]:
    """List what the report states that was not measured again, and why."""
    report, found = subject.report, []
    if ORIGINAL not in subject.models:
        needs = " Every metric compares with it." if report.task == "distillation" else ""
        found.append(f"The original network: give its ONNX file with --original.{needs}")
    elif rows.lacks(subject.wanted(ORIGINAL)):
        names = name_list(rows.missing) if rows.missing else "some are"
        found.append(f"The original network: of its columns, {names} not in the data.")
    elif report.task == "distillation" and subject.scales is None:
        found.append("The metrics: the report does not state by what outputs are divided; run again.")
    if overall:
        found.append("Segments: left out (--overall).")
    for name in _missing_attributes(subject, rows) if not overall else ():
        found.append(f"Segments by {name}: {rows.undivided.get(name, 'it is not in the data')}.")
    found.append("The network before its refit (`zeroed`), which is not in the bundle.")
    other = {
        "baselines": report.baselines,
        "drop costs": report.drop_costs,
        "the frontier": report.frontier,
        "stability": report.stability,
    }
    stated = [name for name, record in other.items() if record is not None]
    if stated:
        found.append(f"Other networks, of {', '.join(stated)}: they are not in the bundle.")
    return found


def _missing_attributes(subject: Subject, rows: Rows) -> list[str]:
    segments = subject.report.segments
    return [a.name for a in segments.attributes if a.name not in rows.divisions] if segments else []


def as_record(found: Evaluation) -> dict[str, Any]:
    """Convert an evaluation to JSON values."""
    return {
        "schema": "glprune.evaluation/1",
        "bundle": found.bundle,
        "result": found.result,
        "exit_code": found.exit_code,
        "model_sha256": found.model,
        "data": {
            "source": found.source,
            "rows": found.rows,
            "kind": found.kind,
            "evidence": found.evidence,
        },
        "rule": found.rule,
        "comparisons": found.comparisons,
        "widening": found.widening,
        "figures": [_figure(figure) for figure in found.figures],
        "not_evaluated": list(found.not_evaluated),
        "notes": list(found.notes),
    }


def _figure(figure: Figure) -> dict[str, Any]:
    """Convert a figure; ``tolerance`` is the largest difference by rounding that agrees."""
    names = ("stated_interval", "interval", "agrees_within")
    intervals: dict[str, Interval | None] = {name: getattr(figure, name) for name in names}
    known = {name: value for name, value in vars(figure).items() if name not in ("cap", "rarer")}
    known["allowed"] = figure.allowed if math.isfinite(figure.allowed) else None
    known["tolerance"] = figure.reach if math.isfinite(figure.reach) else None
    return known | {
        name: [interval.low, interval.high] if interval is not None else None
        for name, interval in intervals.items()
    }


def summary(found: Evaluation) -> str:
    """Say in one sentence how many figures agree."""
    judged: Sequence[Figure] = [f for f in found.figures if f.agrees is not None]
    wrong, missing = len(disagreeing(found.figures)), len(not_comparable(found.figures))
    if not judged:
        return "no figure could be compared"
    text = f"{len(judged) - wrong} of {counted(len(judged), 'compared figure')} agree"
    if found.widening is not None:
        count = counted(found.comparisons or 0, "comparison")
        text += f" (intervals of differences widened {found.widening:.2f} times for {count})"
    return text + (f"; {counted(missing, 'figure')} could not be compared" if missing else "")
