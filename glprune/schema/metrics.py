"""The metrics of each task, which of them are better when higher, and the tolerance of KKT residuals."""

from __future__ import annotations

METRICS: dict[str, tuple[str, ...]] = {
    "binary": ("auroc", "accuracy", "log_loss", "brier_score", "calibration_error"),
    "multiclass": ("accuracy", "log_loss", "brier_score", "calibration_error"),
    "regression": ("r2", "rmse", "mae"),
    "distillation": ("r2", "rmse", "cosine"),
}
ADDED = ("brier_score", "calibration_error")
"""Metrics that reports of glprune 0.2.0 lack."""
HIGHER_IS_BETTER = {
    "auroc": True,
    "accuracy": True,
    "log_loss": False,
    "brier_score": False,
    "calibration_error": False,
    "r2": True,
    "rmse": False,
    "mae": False,
    "cosine": True,
}
RANGES: dict[str, tuple[float | None, float | None]] = {
    "auroc": (0, 1),
    "accuracy": (0, 1),
    "log_loss": (0, None),
    "brier_score": (0, 2),
    "calibration_error": (0, 1),
    "rmse": (0, None),
    "mae": (0, None),
    "r2": (None, 1),
    "cosine": (-1, 1),
}
"""The least and the largest value of a metric; None: there is none."""
_LABELS = {
    "auroc": "AUROC",
    "accuracy": "Accuracy",
    "log_loss": "Log loss",
    "brier_score": "Brier score",
    "calibration_error": "Calibration error",
    "r2": "R²",
    "rmse": "RMSE",
    "mae": "Mean absolute error",
    "cosine": "Cosine similarity",
}
_PROPER_NOUNS = ("brier_score",)
KKT_TOLERANCE = 0.05
"""Share of the penalty above which a report warns of a violated optimality condition."""
MACS_SLACK = 0.05
"""Share by which a count from a file may differ from one of a network: exporters join equal products."""


def metric_text(value: float) -> str:
    """Return a metric with four decimals; a very large one with four digits."""
    return f"{value:.4f}" if abs(value) < 1e6 else f"{value:.4g}"


def label(metric: str) -> str:
    """Return the display name of a metric."""
    return _LABELS.get(metric, metric)


def inline(metric: str) -> str:
    """Return the display name of a metric inside a sentence: lower case unless it is an abbreviation."""
    name = label(metric)
    lower = name[1:].islower() and metric not in _PROPER_NOUNS
    return name[:1].lower() + name[1:] if lower else name
