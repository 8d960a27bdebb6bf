"""Prune trained PyTorch networks with penalties on groups of weights; ship a slim, verifiable ONNX model.

The packages, from the highest to the lowest; none imports from one above it:

- ``cli``: the ``glprune`` command.
- ``integrations``: scikit-learn, MLflow, Olive, CI systems, model servers.
- ``rerun``: another point of a bundle's frontier, and the reproduction of a bundle.
- ``pipeline``, ``inspection``: the whole run, and the dry run; ``result``: the finished bundle.
- ``evaluation``: stability, drop costs, baselines, segments and proxies, collected into the report.
- ``export``: the ONNX file, its checks and metadata, latency, the slim network of a bundle.
- ``search``: the stages of regularisation paths that lead to the target, and the refit.
- ``training``: penalties, proximal optimisers, the training loop.
- ``pruning``: units and groups of a network, and their removal.
- ``model``: loading networks, their outputs, sizes and predictions.
- ``data``: the rows of a run as tensors, from files and loaders.
- ``runtime``: processes, checkpoints, the output folder, determinism, progress events.
- ``audit``: verification of a bundle without PyTorch, training code or data.
- ``report``: report pages from ``report.json``.
- ``metrics``: metrics, intervals and decisions; ``tables``: data files as arrays; both without PyTorch.
- ``schema``: the typed records of every file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glprune._lazy import lazy_names
from glprune._version import __version__
from glprune.errors import DataError, GlpruneError, ModelError, RecipeError, TargetError, UsageError

if TYPE_CHECKING:
    from glprune.export.slim_network import load
    from glprune.inspection import Inspection, inspect
    from glprune.pipeline import run
    from glprune.rerun.selection import select
    from glprune.result import Result
    from glprune.schema.recipe import Recipe
    from glprune.schema.recipe_loading import load_recipe
    from glprune.schema.report import Report

__all__ = [
    "DataError",
    "GlpruneError",
    "Inspection",
    "ModelError",
    "Recipe",
    "RecipeError",
    "Report",
    "Result",
    "TargetError",
    "UsageError",
    "__version__",
    "inspect",
    "load",
    "load_recipe",
    "run",
    "select",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Inspection": "inspection",
        "Recipe": "schema.recipe",
        "Report": "schema.report",
        "Result": "result",
        "inspect": "inspection",
        "load": "export.slim_network",
        "load_recipe": "schema.recipe_loading",
        "run": "pipeline",
        "select": "rerun.selection",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
