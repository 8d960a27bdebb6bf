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

from typing import TYPE_CHECKING

from glprune._lazy import lazy_names

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

__getattr__ = lazy_names(
    __name__,
    {
        "InputSchema": "input_schema",
        "Manifest": "manifest",
        "Plan": "plan",
        "Recipe": "recipe",
        "Report": "report",
        "load_recipe": "recipe_loading",
        "recipe_schema": "recipe_loading",
        "report_schema": "report",
    },
)
