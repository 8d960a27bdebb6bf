"""Typed records of every file that glprune reads or writes, and strict readers of YAML and JSON.

None needs PyTorch. ``bundle`` has the names of a bundle's files; the other modules are:

- ``recipe``: the settings of a run; ``recipe_rules``: rules between keys; ``recipe_loading``: reads YAML.
- ``report``: ``report.json``, what was measured; ``metrics``: the metrics of each task.
- ``plan``: ``plan.json``, how the slim network is made from the original one.
- ``input_schema``: ``input_schema.json``, inputs and outputs of the shipped model.
- ``manifest``: ``MANIFEST.json``, every file with its digest.
- ``strict_yaml``, ``strict_json``: readers for untrusted files.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glprune.schema.input_schema import InputSchema
    from glprune.schema.manifest import Manifest
    from glprune.schema.plan import Plan
    from glprune.schema.recipe import Recipe
    from glprune.schema.recipe_loading import load_recipe, recipe_schema
    from glprune.schema.report import Report, report_schema

__all__ = [
    "InputSchema",
    "Manifest",
    "Plan",
    "Recipe",
    "Report",
    "load_recipe",
    "recipe_schema",
    "report_schema",
]

# imported on first use: reading a manifest needs no models of the other files
_MODULES = {
    "InputSchema": "input_schema",
    "Manifest": "manifest",
    "Plan": "plan",
    "Recipe": "recipe",
    "Report": "report",
    "load_recipe": "recipe_loading",
    "recipe_schema": "recipe_loading",
    "report_schema": "report",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
