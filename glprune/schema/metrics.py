"""The metrics of each task, and which of them are better when higher."""

from __future__ import annotations

METRICS: dict[str, tuple[str, ...]] = {
    "binary": ("auroc", "accuracy", "log_loss"),
    "multiclass": ("accuracy", "log_loss"),
    "regression": ("r2", "rmse", "mae"),
    "distillation": ("r2", "rmse", "cosine"),
}
HIGHER_IS_BETTER = {
    "auroc": True,
    "accuracy": True,
    "log_loss": False,
    "r2": True,
    "rmse": False,
    "mae": False,
    "cosine": True,
}
RANGES: dict[str, tuple[float | None, float | None]] = {
    "auroc": (0, 1),
    "accuracy": (0, 1),
    "log_loss": (0, None),
    "rmse": (0, None),
    "mae": (0, None),
    "r2": (None, 1),
    "cosine": (-1, 1),
}
"""The least and the largest value of a metric; None: there is none."""


def metric_text(value: float) -> str:
    """Return a metric with four decimals; a very large one with four digits."""
    return f"{value:.4f}" if abs(value) < 1e6 else f"{value:.4g}"
