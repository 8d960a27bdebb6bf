"""Collect everything a report states about one feature."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from glprune.audit.checks.policy import ancestors
from glprune.errors import UsageError

if TYPE_CHECKING:
    from glprune.schema.report import Feature, PathPoint, Report


def explain(report: Report, name: str) -> dict[str, Any]:
    """Collect everything a report states about one feature.

    Args:
        report: The report.
        name: Name of a feature, or of one of its columns.

    Raises:
        UsageError: There is no such feature.
    """
    number, feature = _find(report, name)
    points = [p for p in report.path if len(p.norms) == len(report.features)]
    return {
        "feature": feature.name,
        "status": feature.status,
        "input": feature.input,
        "columns": feature.columns,
        "positions": feature.input_columns,
        "group_size": feature.group_size,
        "penalty_weight": feature.penalty_weight,
        "norms": {
            "original": feature.norm_original,
            "selected": feature.norm_selected,
            "shipped": feature.norm_final,
        },
        "exit": {"stage": feature.stage_exit, "lambda": feature.lambda_exit},
        "path": [_point(p, number) for p in points],
        "stability": _stability(report, feature),
        "drop_cost": _cost(report, feature),
        "baselines": _baselines(report, feature),
        "policy": _policy(report, feature),
        "warnings": [w for w in report.warnings if feature.name in w],
    }


def _find(report: Report, name: str) -> tuple[int, Feature]:
    for n, feature in enumerate(report.features):
        if feature.name == name:
            return n, feature
    for n, feature in enumerate(report.features):
        if name in feature.columns:
            return n, feature
    names = [f.name for f in report.features]
    close = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"features: {', '.join(names[:12])}"
    raise UsageError(f"the report has no feature {name!r}; {hint}")


def _point(point: PathPoint, number: int) -> dict[str, Any]:
    return {
        "stage": point.stage,
        "lambda": point.lam,
        "norm": point.norms[number],
        "kkt_zero": point.kkt_zero,
        "selected": point.selected,
    }


def _stability(report: Report, feature: Feature) -> dict[str, Any] | None:
    if report.stability is None or feature.kept_in is None:
        return None
    total = len(report.stability.resamples)
    return {"kept_in": feature.kept_in, "of": total, "called_stable_from": report.stability.threshold}


def _cost(report: Report, feature: Feature) -> dict[str, Any] | None:
    costs = report.drop_costs
    cost = next((c for c in costs.features if c.feature == feature.name), None) if costs else None
    if costs is None or cost is None:
        return None
    return {
        "metric": costs.metric,
        "test_with": costs.test,
        "test_without": cost.test,
        "valid_without": cost.valid,
        "reason": cost.reason,
    }


def _baselines(report: Report, feature: Feature) -> dict[str, str]:
    results = report.baselines.results if report.baselines else []
    return {r.name: f"{sum(feature.name in run.kept for run in r.runs)} of {len(r.runs)}" for r in results}


def _policy(report: Report, feature: Feature) -> dict[str, Any] | None:
    if report.policy is None:
        return None
    made_of = ancestors(feature, report.policy)
    lists = ("must_drop", "must_keep", "protected")
    return {
        "made_of": sorted(set(made_of) - {feature.name, *feature.columns}),
        **{key: sorted(set(getattr(report.policy, key)) & set(made_of)) for key in lists},
    }
