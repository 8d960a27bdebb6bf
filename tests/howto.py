"""Run the code blocks of a how-to as its reader would, from top to bottom in one folder.

- a ``bash`` block runs in a shell of its own that stops at the first failure;
- a ``console``, ``text`` or ``json`` block is shown to the reader and not run;
- a ``python`` block runs in this process; the blocks of one page share their names, as in a notebook;
- any block with a title (```` ```yaml title="dvc.yaml" ````) is written to the file of that name.

A page that needs optional packages says so in a comment: ``<!-- needs: mlflow, pandas -->``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

import glprune
from tests.paths import ROOT

_DOCS = ROOT / "docs" / "pages"
PAGES = [*sorted((_DOCS / "how-to").glob("*.md")), _DOCS / "concepts.md"]
_SHOWN = ("", "text", "console", "json")
_TITLE = re.compile(r'(?:^|\s)title="([^"]+)"')
_NEEDS = re.compile(r"<!-- needs: (.*?) -->")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, the file to write (or none), its text and its first line's number."""

    language: str
    file: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page in order."""
    fences = [
        token for token in MarkdownIt().parse(page.read_text(encoding="utf-8")) if token.type == "fence"
    ]
    made = []
    for token in fences:
        language, _, options = token.info.strip().partition(" ")
        title = _TITLE.search(options)
        made.append(Block(language, title[1] if title else "", token.content, token.map[0] + 2))
    return made


def missing(page: Path) -> list[str]:
    """The packages a page needs that are not installed."""
    named = [
        name.strip() for part in _NEEDS.findall(page.read_text(encoding="utf-8")) for name in part.split(",")
    ]
    return [name for name in named if importlib.util.find_spec(name) is None]


def reader_folder(folder: Path) -> None:
    """Lay out what a how-to takes for granted: German credit as the reader's own problem.

    ``recipe.yaml`` (training short enough for a test), ``network.py``, ``data.csv``, ``model.pt`` and
    ``bundle``, what the recipe makes of them.
    """
    source = ROOT / "examples" / "german_credit"
    for name in ("network.py", "data.csv", "model.pt"):
        shutil.copy(source / name, folder / name)
    text = (ROOT / "recipes" / "german_credit.yaml").read_text(encoding="utf-8")
    text = text.replace("../examples/german_credit/", "").replace("  distill:", "  epochs: 2\n  distill:")
    text += "\ntrain: {epochs: 2, n_lambdas: 6, full_batch_steps: 2}\n"
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    glprune.run(folder / "recipe.yaml", folder / "model.pt", folder / "bundle")


def run_page(page: Path, folder: Path, extra: dict[str, str] | None = None) -> dict[str, Any]:
    """Run every block of a page in ``folder``.

    Args:
        page: The Markdown file.
        folder: Where its reader would be.
        extra: Environment variables besides this process's own.

    Returns:
        The names the Python blocks left, for assertions.

    Raises:
        AssertionError: A shell block failed, or a block is of an unknown language and has no title.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    environment = _environment(extra or {})
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        if block.file:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.language == "bash":
            command = ["bash", "-euo", "pipefail", "-c", block.text]
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, f"{where}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        elif block.language == "python":
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            with contextlib.chdir(folder), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec(code, names)
        else:
            assert block.language in _SHOWN, f"{where}: what is a block of {block.language!r} to do?"
    return names


def _environment(extra: dict[str, str]) -> dict[str, str]:
    """This process's environment with its ``glprune`` first and no CI of its own."""
    paths = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GITHUB_", "GITLAB_", "CI_", "MLFLOW_"))}
    return kept | paths | extra
