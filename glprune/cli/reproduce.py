"""The options and the output of ``glprune reproduce``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from glprune._escaping import escape_for_terminal
from glprune.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from glprune.rerun.reproduction import Reproduction

EPILOG = (
    "Exit codes: 0 reproduced; 1 not; 2 usage, or model or data are not those of the bundle; the others are "
    "those of the second run: 3 model; 4 data; 5 target cannot be reached, or the bundle cannot be read."
)
_SPLITS = ("train", "valid", "test")


def data_files(given: Sequence[str]) -> dict[str, Path]:
    """Read the values of --data: a file, or SPLIT=FILE for each of three.

    Raises:
        UsageError: A file is given twice.
    """
    files: dict[str, Path] = {}
    for text in given:
        key, equals, path = text.partition("=")
        split, file = (key, path) if equals and key in _SPLITS else ("file", text)
        if split in files:
            raise UsageError(f"--data: two files for {split}; give each once.")
        files[split] = Path(file)
    return files


def print_reproduction(console: Console, found: Reproduction) -> None:
    """Print what was compared, by which rule, and the result."""

    def line(text: str) -> None:
        console.print(Text(escape_for_terminal(text)), soft_wrap=True)

    if found.environment:
        line(f"another environment: {'; '.join(found.environment)}")
    table = Table("compared", "there", "here", "rule", "", box=None, pad_edge=False, header_style="bold")
    for difference in found.differences:
        style = "" if difference.agrees else "bold red"
        cells = (difference.what, difference.stated, difference.found, difference.rule)
        verdict = "agrees" if difference.agrees else "DIFFERS"
        table.add_row(*(Text(escape_for_terminal(cell), style=style) for cell in (*cells, verdict)))
    console.print(table)
    result = "reproduced" if found.exit_code == 0 else "NOT REPRODUCED"
    how = "to the byte, but for times" if found.to_the_byte else f"judged by {found.rule}"
    line(f"{result}: {found.bundle}, {how}")
