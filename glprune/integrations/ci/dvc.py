"""DVC: ``metrics.json`` for ``dvc metrics show``; ``path.csv`` and ``features.csv`` for ``dvc plots``."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

from glprune.report.uncertainty import change_of

if TYPE_CHECKING:
    from glprune.schema.report import Report

_POINT = ("stage", "lam", "features", "columns", "hidden", "metric", "refit_metric", "loss", "penalty")


def metrics(report: Report) -> dict[str, Any]:
    """Return nested numbers; DVC joins the keys with dots."""
    size = report.size
    return {
        "test": {metric.name: metric.final for metric in report.performance},
        "original": {metric.name: metric.original for metric in report.performance},
        **_intervals(report),
        "features": {
            "kept": sum(f.status == "kept" for f in report.features),
            "removed": sum(f.status == "removed" for f in report.features),
        },
        "hidden": {
            "before": sum(layer.before for layer in report.hidden),
            "after": sum(layer.after for layer in report.hidden),
        },
        "parameters": {"before": size.parameters_before, "after": size.parameters_after},
        "onnx_bytes": {"before": size.onnx_bytes_before, "after": size.onnx_bytes_after},
        "removal_difference": report.removal.difference,
        "warnings": len(report.warnings),
    }


def _intervals(report: Report) -> dict[str, dict[str, float]]:
    """Return the change of every metric against the original network, and the ends of its 95 % interval."""
    found = {metric.name: (metric, change_of(metric)) for metric in report.performance}
    known = {name: change for name, (_, change) in found.items() if change is not None}
    return {
        "change": {name: metric.final - metric.original for name, (metric, _) in found.items()},
        "change_low": {name: change.low for name, change in known.items()},
        "change_high": {name: change.high for name, change in known.items()},
    }


def path_csv(report: Report) -> str:
    """Format the regularisation path, a row for each point in order."""
    rows = [
        [step, *(getattr(point, key) for key in _POINT), int(point.selected)]
        for step, point in enumerate(report.path, 1)
    ]
    return _csv(["step", *_POINT, "selected"], rows)


def features_csv(report: Report) -> str:
    """Format the features with their status, a row each."""
    rows = [[f.name, f.status, f.reason or "", f.norm_original, f.norm_final or 0.0] for f in report.features]
    return _csv(["feature", "status", "reason", "norm_original", "norm_final"], rows)


def _csv(head: list[str], rows: list[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    return text.getvalue()
