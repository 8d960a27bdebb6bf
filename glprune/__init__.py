"""Prune trained PyTorch networks with penalties on groups of weights and export a slim, verifiable ONNX model.

The packages, from the command line down; each imports only packages below it:

- ``cli``: the commands of ``glprune``.
- ``integrations``: scikit-learn, MLflow, Olive, model servers and CI systems.
- ``pipeline``, ``inspection``, ``result``: a run, the dry run and what a run returns.
- ``evaluation``: measures the shipped model, compares it with baselines and builds the report's records.
- ``export``: writes ONNX files, runs them, and rebuilds the slim network from a bundle.
- ``search``: finds the network that the recipe's target asks for, in one or several stages.
- ``training``: penalties, proximal solvers and the refit.
- ``pruning``: finds the groups of a network, removes those that are zero and checks every cut.
- ``model``: loads networks and computes their outputs and metrics.
- ``data``: reads tables and loaders, validates them and splits the rows.
- ``runtime``: processes, checkpoints, the output folder and determinism.
- ``audit``: verifies, compares and signs bundles, without PyTorch.
- ``report``: renders the report as HTML, Markdown and pictures.
- ``schema``: the files' formats: recipe, report, plan, input schema and manifest.

``_plugins``, ``_imports``, ``_files``, ``_escaping`` and ``errors`` serve all of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from glprune._version import __version__
from glprune.errors import DataError, GlpruneError, ModelError, RecipeError, TargetError, UsageError

if TYPE_CHECKING:
    from glprune.export.slim_network import load
    from glprune.inspection import Inspection, inspect
    from glprune.pipeline import run
    from glprune.result import Result
    from glprune.schema.recipe import Recipe
    from glprune.schema.recipe_loading import load_recipe
    from glprune.schema.report import Report

# imported on first use, so that a report can be read without loading PyTorch
_LAZY = {
    "Inspection": "glprune.inspection",
    "Recipe": "glprune.schema.recipe",
    "Report": "glprune.schema.report",
    "Result": "glprune.result",
    "inspect": "glprune.inspection",
    "load": "glprune.export.slim_network",
    "load_recipe": "glprune.schema.recipe_loading",
    "run": "glprune.pipeline",
}
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
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'glprune' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
