"""Render a report as a model card in Markdown.

References:
    Mitchell et al. (2019), Model Cards for Model Reporting, FAT* 2019, 220-229: the order of the sections.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from glprune._wording import counted
from glprune.report.markdown import code, listed, metrics_table, removed_table, size_table, table, text
from glprune.schema import bundle as bundles
from glprune.schema.metrics import label, metric_text

if TYPE_CHECKING:
    from glprune.schema.report import Report, Segments

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


def _protected(report: Report) -> list[str]:
    """Show the metrics of the shipped file by protected attribute, where the recipe has a policy."""
    if report.segments is None:
        return []
    named = [f"{code(a.name)}: {a.status}" for a in report.segments.attributes]
    metrics = [m.name for m in report.performance]
    head = ("Attribute", "Value", "Rows", *map(label, metrics))
    rows = list(_segments(report.segments, metrics))
    return [
        "## Protected groups",
        f"{'; '.join(named)}." if named else "The policy names no protected attribute.",
        *([table(head, rows, numbers=1 + len(metrics))] if rows else []),
        f"Segments of fewer than {counted(report.segments.min_rows, 'row')} have no figures.",
    ]


def _segments(segments: Segments, metrics: list[str]) -> Iterator[tuple[str, ...]]:
    for attribute in segments.attributes:
        for segment in attribute.segments:
            found = {m.name: metric_text(m.final) for m in segment.metrics if m.final is not None}
            values = (found.get(name, "-") for name in metrics)
            yield (code(attribute.name), code(segment.value), f"{segment.rows:,}", *values)
