"""Rewrite the schemas the package publishes: python -m tests.schemas."""

import json

from glprune.schema.recipe_loading import recipe_schema
from glprune.schema.report import report_schema
from tests.paths import ROOT

FOLDER = ROOT / "glprune" / "schema" / "schemas"

if __name__ == "__main__":
    for name, schema in (("recipe", recipe_schema()), ("report", report_schema())):
        text = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
        (FOLDER / f"{name}.schema.json").write_text(text, encoding="utf-8")
