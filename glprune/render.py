"""Render a report as one HTML file: no script, no outside request, made for paper too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from glprune import plots
from glprune.report import Feature, Metric, PenaltyFacts, Report

_MANY = 30
_LABELS = {
    "auroc": "AUROC",
    "accuracy": "Accuracy",
    "log_loss": "Log loss",
    "r2": "R²",
    "rmse": "RMSE",
    "mae": "Mean absolute error",
    "cosine": "Cosine similarity",
}


@dataclass(frozen=True)
class _Change:
    """One figure before and after, as the page shows it."""

    label: str
    before: str
    after: str
    change: str


def render_html(report: Report) -> str:
    """The report as one self-contained HTML page.

    Args:
        report: The records; every sentence and picture is made from them.
    """
    environment = Environment(
        loader=PackageLoader("glprune"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "tiny": tiny, "thousands": thousands, "metric_label": label}
    return environment.get_template("report.html.j2").render(r=report, **_view(report))


def number(value: float) -> str:
    """Four significant digits."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return tiny(value) if abs(value) < 1e-3 or abs(value) >= 1e6 else f"{value:.4g}"


def tiny(value: float) -> str:
    """Two significant digits with an exponent, 0 as it is."""
    return "0" if value == 0 else f"{value:.1e}"


def thousands(value: int) -> str:
    """A count with separators."""
    return f"{value:,}"


def label(metric: str) -> str:
    """The written name of a metric."""
    return _LABELS.get(metric, metric)


def headline(report: Report) -> list[str]:
    """The findings in sentences: what is gone, what it cost, what it brought."""
    removed = [f for f in report.features if f.status == "removed"]
    total = len(report.features)
    sentences = [_removed_sentence(removed, total, report)]
    main = main_metric(report)
    sentences.append(_agreement_sentence(main) if report.task == "distillation" else _cost_sentence(main))
    before, after = (sum(getattr(h, side) for h in report.hidden) for side in ("before", "after"))
    size = report.size
    units = f"{before - after:,} of {before:,} hidden units are gone. " if before else ""
    sentences.append(
        f"{units}The file holds {size.parameters_after:,} parameters instead of {size.parameters_before:,} "
        f"({_share(size.parameters_after, size.parameters_before)})."
    )
    sentences.append(" ".join(_speed_sentence(time.batch, time.speedup) for time in report.latency))
    return [s for s in sentences if s]


def main_metric(report: Report) -> Metric:
    """The metric that selected the point, as measured on the test split."""
    return next(m for m in report.performance if m.name == report.selection.metric)


def _removed_sentence(removed: Sequence[Feature], total: int, report: Report) -> str:
    if total == 0:
        return "The network has no input fields to remove; hidden units alone were pruned."
    if not removed:
        return f"No input field was removed: the shipped model reads all {total}."
    names = ", ".join(f.name for f in removed[:12])
    listed = f": {names}" if len(removed) <= 12 else ""
    verb = "has no input for" if report.export.signature == "slim" else "does not read"
    return (
        f"The shipped model {verb} {len(removed)} of {total} fields{listed}. "
        "Their values cannot influence its output."
    )


def _cost_sentence(metric: Metric) -> str:
    change = metric.final - metric.original
    better = (change > 0) == metric.higher_is_better
    name = label(metric.name)
    verdict = "unchanged" if change == 0 else f"{'better' if better else 'worse'} by {abs(change):.4f}"
    return (
        f"{name} on {metric.rows:,} test rows is {metric.final:.4f}, {verdict} against the original "
        f"network's {metric.original:.4f}; both were taken from ONNX files through ONNX Runtime."
    )


def _agreement_sentence(metric: Metric) -> str:
    perfect = 1 if metric.higher_is_better else 0
    return (
        f"Agreement with the original network on {metric.rows:,} test rows: {label(metric.name)} "
        f"{metric.final:.4f}, where {perfect} is full agreement; both networks were run as ONNX files "
        "through ONNX Runtime. There were no labels, so accuracy was not measured."
    )


def _speed_sentence(batch: int, speedup: float) -> str:
    if speedup >= 1:
        return f"At batch {batch} it is {speedup:.2f} times as fast."
    return f"At batch {batch} it is slower: {speedup:.2f} times the original's speed."


def penalty_sentence(penalty: PenaltyFacts) -> str:
    """What the penalty does, in words."""
    what = {
        "group_lasso": "a group LASSO penalty, which pulls whole groups to zero",
        "sparse_group_lasso": "a sparse group LASSO penalty, which pulls whole groups to zero and, with "
        f"{100 * (penalty.within or 0):.3g} % of its strength, single weights of those that stay",
        "group_mcp": "a group MCP penalty, which pulls whole groups to zero and lets go of a group "
        f"whose norm is {penalty.concavity or 0:.3g} times its trained one",
    }[penalty.kind]
    weak = ", pulling at groups that were weak in the trained network more" * (penalty.weights == "adaptive")
    return f"The network was trained on with {what}{weak}"


def _share(after: int, before: int) -> str:
    return f"{100 * after / before:.1f} %" if before else "none"


def _view(report: Report) -> dict[str, Any]:
    kept = sorted((f for f in report.features if f.status == "kept"), key=lambda f: -(f.norm_final or 0.0))
    selection = report.selection
    return {
        "headline": headline(report),
        "removed": [f for f in report.features if f.status == "removed"],
        "kept": kept,
        "many": _MANY,
        "size_rows": _size_rows(report),
        "bars": Markup(plots.norm_bars(kept[:_MANY])),
        "lines": Markup(plots.path_lines(report.path, report.features)),
        "metric_plot": Markup(plots.path_metric(report.path, label(selection.metric), selection.reference)),
        "paths": [(s, [p for p in report.path if p.stage == s.number]) for s in report.stages],
        "penalty": penalty_sentence(report.penalty),
        "main": main_metric(report),
        "mac_ratio": report.size.macs_before / max(1, report.size.macs_after),
    }


def _size_rows(report: Report) -> list[_Change]:
    size = report.size
    fields = sum(f.status == "kept" for f in report.features)
    columns = sum(len(f.columns) for f in report.features)
    left = sum(len(f.columns) for f in report.features if f.status == "kept")
    before, after = (sum(getattr(h, side) for h in report.hidden) for side in ("before", "after"))
    pairs = [
        ("Input fields read", len(report.features), fields),
        ("Input columns read", columns, left),
        ("Hidden units", before, after),
        ("Parameters", size.parameters_before, size.parameters_after),
        ("Multiply-accumulates for one row", size.macs_before, size.macs_after),
        ("ONNX file, bytes", size.onnx_bytes_before, size.onnx_bytes_after),
    ]
    return [_Change(name, f"{b:,}", f"{a:,}", _share(a, b)) for name, b, a in pairs]
