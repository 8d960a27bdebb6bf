"""Render a report as one HTML file: no script, no outside request, made for paper too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from glprune import plots
from glprune.report import DropCost, DropCosts, Feature, Metric, Report, Stability

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
    if report.stability is not None:
        sentences.append(_stability_sentence(report.stability, report.features))
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


def _stability_sentence(stability: Stability, features: Sequence[Feature]) -> str:
    kept = [f.kept_share for f in features if f.status == "kept" and f.kept_share is not None]
    firm = sum(share >= stability.threshold for share in kept)
    sentence = (
        f"Over {len(stability.resamples)} resamples of {part_of_rows(stability)}, {firm} of the {len(kept)} "
        f"kept fields were kept in at least {100 * stability.threshold:g} %"
    )
    if stability.nogueira is None:
        return f"{sentence}."
    interval = stability.nogueira_interval
    between = f" (95 % interval {interval.low:.2f} to {interval.high:.2f})" if interval is not None else ""
    return (
        f"{sentence}; Nogueira's stability index is {stability.nogueira:.2f}{between}, where 1 is the same "
        "fields every time and 0 as by chance."
    )


def part_of_rows(stability: Stability) -> str:
    """The share of the training rows in a resample, in words."""
    words = {0.5: "half the training rows", 1.0: "all training rows, shuffled anew"}
    return words.get(stability.share, f"{100 * stability.share:g} % of the training rows")


def _share(after: int, before: int) -> str:
    return f"{100 * after / before:.1f} %" if before else "none"


def _view(report: Report) -> dict[str, Any]:
    kept = sorted((f for f in report.features if f.status == "kept"), key=lambda f: -(f.norm_final or 0.0))
    selection = report.selection
    path = [p for p in report.path if p.stage == "inputs"]
    return {
        "headline": headline(report),
        "removed": [f for f in report.features if f.status == "removed"],
        "kept": kept,
        "many": _MANY,
        "size_rows": _size_rows(report),
        "bars": Markup(plots.norm_bars(kept[:_MANY])),
        "lines": Markup(plots.path_lines(path, report.features, selection.lam)),
        "metric_plot": Markup(
            plots.path_metric(path, selection.lam, label(selection.metric), selection.reference)
        ),
        "input_path": path,
        "hidden_path": [p for p in report.path if p.stage == "hidden"],
        "main": main_metric(report),
        "part_of_rows": part_of_rows(report.stability) if report.stability else "",
        "drop_rows": _drop_rows(report.drop_costs) if report.drop_costs else [],
        "mac_ratio": report.size.macs_before / max(1, report.size.macs_after),
    }


def _drop_rows(costs: DropCosts) -> list[DropCost]:
    """The dearest field on the validation split first; those that cannot be dropped last."""
    sign = 1 if costs.higher_is_better else -1
    return sorted(costs.fields, key=lambda c: math.inf if c.valid is None else sign * c.valid)


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
