"""Render a report as a model card in Markdown.

References:
    Mitchell et al. (2019), Model Cards for Model Reporting, FAT* 2019, 220-229: the order of the sections.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from glprune._wording import counted
from glprune.report.markdown import code, listed, metrics_table, removed_table, size_table, table, text
from glprune.report.uncertainty import between
from glprune.schema import bundle as bundles
from glprune.schema.metrics import label

if TYPE_CHECKING:
    from glprune.schema.report import DecisionChange, Interval, Report, SegmentMetric, Segments

TASKS = {
    "binary": "binary classification",
    "multiclass": "classification",
    "regression": "regression",
    "distillation": "agreement with the original network, without labels",
}
"""What each task is called outside of a recipe."""


def render_model_card(report: Report) -> str:
    """Render the model card; every figure is from the report, and names cannot become markup."""
    blocks = [
        f"# Model card: {text(report.title)}",
        "Derived by glprune from the `report.json` of a bundle, which `glprune verify` checks.",
        "## Model details",
        _details(report),
        "## Intended use",
        text(report.purpose) or "The report does not state it.",
        "## Inputs and outputs",
        _inputs(report),
        _outputs(report),
        "## Removed features",
        removed_table(report),
        "## Data",
        _data(report),
        "## Metrics on the test split",
        metrics_table(report),
        *_protected(report),
        "## Size",
        size_table(report),
        *listed("Warnings", report.warnings),
        *listed("Not measured", report.not_measured),
    ]
    return "\n\n".join(blocks) + "\n"


def _details(report: Report) -> str:
    versions = report.run.versions
    before, after = (sum(getattr(h, side) for h in report.hidden) for side in ("before", "after"))
    facts = {
        "Task": text(TASKS[report.task]),
        "File": code(f"{report.export.file}, opset {report.export.opset}"),
        "Digest": code(report.digests.outputs[report.export.file]),
        "Made from the original model": code(report.digests.model),
        "Made at": text(report.timing.generated_at),
        "Made with": ", ".join(
            text(f"{name} {versions[name]}") for name in ("glprune", "torch") if name in versions
        ),
        "Hidden units": f"{after:,} of {before:,}",
    }
    if bundles.INT8 in report.digests.outputs:
        facts[f"Digest of {bundles.INT8}"] = code(report.digests.outputs[bundles.INT8])
    return table(("Fact", "Value"), facts.items(), numbers=0)


def _inputs(report: Report) -> str:
    """List what the file reads: its kept features, and its inputs without features."""
    types = {given.name: given.dtype for given in report.export.inputs}
    kept = [f for f in report.features if f.status == "kept"]
    rows = [
        (code(f.name), ", ".join(map(code, f.columns)), code(f.input), types.get(f.input, "")) for f in kept
    ]
    rows += [("", "", code(i.name), i.dtype) for i in report.export.inputs if i.axis is None]
    return table(("Feature", "Columns", "Input", "Type"), rows, numbers=0)


def _outputs(report: Report) -> str:
    rows = [(code(o.name), text(o.meaning)) for o in report.export.outputs]
    return table(("Output", "Meaning"), rows, numbers=0)


def _data(report: Report) -> str:
    digests = report.digests.data
    rows = [(code(name), f"{facts.rows:,}") for name, facts in report.data.splits.items()]
    files = [(code(name), code(digest)) for name, digest in digests.items()]
    parts = [
        f"Source: {code(report.data.source)}.",
        table(("Split", "Rows"), rows, numbers=1),
        table(("Data", "Digest"), files, numbers=0),
    ]
    return "\n\n".join(parts)


_STATUS = {
    "kept": "the shipped model reads it",
    "removed": "the original network read it, the shipped model does not",
    "outside": "neither network reads it",
}


def _protected(report: Report) -> list[str]:
    """Show decisions and metrics by protected attribute, where the recipe has a policy."""
    found = report.segments
    if found is None:
        return []
    named = [f"{code(a.name)}: {_STATUS[a.status]}" for a in found.attributes]
    head = ("Attribute", "Value", "Rows", "Metric", "Original", "Shipped", "Change")
    rows = list(_segments(found))
    return [
        "## Protected groups",
        f"{'; '.join(named)}." if named else "The policy names no protected attribute.",
        *_decisions(found),
        *([table(head, rows, numbers=3)] if rows else []),
        f"Segments of fewer than {counted(found.min_rows, 'row')} have no figures.",
    ]


def _decisions(found: Segments) -> list[str]:
    """Show how decisions are made, and how many of them are others than the original's."""
    if found.decisions is None:
        return []
    how = "" if found.threshold is None else f" The positive class is decided from {found.threshold:g} on."
    adverse = f" Adverse: {', '.join(map(code, found.adverse))}." if found.adverse else ""
    rows = [("all", "", *_changes(found.decisions))]
    for attribute in found.attributes:
        for segment in attribute.segments:
            if segment.decisions is not None:
                rows.append((code(attribute.name), code(segment.value), *_changes(segment.decisions)))
    head = ("Attribute", "Value", "Rows", "Decided otherwise", "To adverse", "To favourable")
    return [f"Decisions of the shipped file and of the original.{how}{adverse}", table(head, rows, numbers=4)]


def _changes(found: DecisionChange) -> tuple[str, ...]:
    moved = (found.to_adverse, found.to_favourable)
    share = f" ({found.flipped / found.rows:.2%})" if found.rows else ""
    return f"{found.rows:,}", f"{found.flipped:,}{share}", *("-" if n is None else f"{n:,}" for n in moved)


def _segments(found: Segments) -> Iterator[tuple[str, ...]]:
    for attribute in found.attributes:
        for segment in attribute.segments:
            where = (code(attribute.name), code(segment.value), f"{segment.rows:,}")
            if not segment.metrics:
                yield (*where, *["-"] * 4)
            for metric in segment.metrics:
                yield (*where, text(label(metric.name)), *_values(metric))


def _values(metric: SegmentMetric) -> Iterator[str]:
    """Yield the original's value, the shipped file's and the change, each with its interval."""
    known = metric.intervals
    values = {} if known is None else known.values
    change = None if known is None else known.differences.get("final")
    yield _valued(metric.original, values.get("original"))
    yield _valued(metric.final, values.get("final"))
    yield _valued(metric.difference, change, signed=True)


def _valued(value: float | None, interval: Interval | None, signed: bool = False) -> str:
    if value is None:
        return "-"
    shown = f"{value:{'+' if signed else ''}.4f}"
    return shown if interval is None else f"{shown} ({between(interval, signed=signed)})"
