"""Hooks of the documentation build: fill the pages that are generated from the schemas.

A page names a schema in a comment, ``<!-- schema: recipe -->``; the comment is replaced by the reference.
"""

from __future__ import annotations

import re

from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page
from schema_reference import reference

import glprune

SCHEMAS = {"recipe": glprune.Recipe, "report": glprune.Report}
_MARKER = re.compile(r"<!-- schema: (\w+) -->")


def on_page_markdown(markdown: str, page: Page, config: object, files: Files) -> str:
    """Replace each marker of a schema by the schema's reference."""
    return _MARKER.sub(lambda found: reference(SCHEMAS[found[1]]), markdown)
