"""Hooks of the documentation build: fill the pages that are generated from code.

A page says where in a comment: ``<!-- schema: recipe -->`` or ``<!-- commands -->``.
"""

from __future__ import annotations

import re

import command_reference
import schema_reference

import glprune
from glprune.cli.main import main

SCHEMAS = {"recipe": glprune.Recipe, "report": glprune.Report}


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace each comment that asks for a reference by that reference."""
    filled = re.sub(
        r"<!-- schema: (\w+) -->", lambda found: schema_reference.reference(SCHEMAS[found[1]]), markdown
    )
    return re.sub(r"<!-- commands -->", lambda _: command_reference.reference(main, "glprune"), filled)
