"""The options and the output of ``glprune reproduce``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from glprune._escaping import escape_for_terminal
from glprune.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from glprune.rerun.comparison import Difference
    from glprune.rerun.reproduction import Reproduction

EPILOG = (
    "Exit codes: 0 reproduced; 1 not; 2 usage, or model or data are not those of the bundle; the others are "
    "those of the second run: 3 model; 4 data; 5 target cannot be reached, or the bundle cannot be read."
)
_DIGEST = re.compile(r"^(sha256:[0-9a-f]{12})[0-9a-f]{52}$")  # shown in short; --json has all
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


def _line(difference: Difference) -> str:
    """Describe one thing that was compared; both values where they are not the same."""
    there, here = (_DIGEST.sub(r"\1", text) for text in (difference.stated, difference.found))
    verdict = "agrees " if difference.agrees else "DIFFERS"
    values = here if there == here and difference.agrees else f"{there} there, {here} here; {difference.rule}"
    return f"{verdict}  {difference.what}: {values}"


def print_reproduction(console: Console, found: Reproduction) -> None:
    """Print what was compared, by which rule, and the result."""

    def line(text: str) -> None:
        console.print(Text(escape_for_terminal(text)), soft_wrap=True)

    if found.environment:
        line(f"another environment: {'; '.join(found.environment)}")
    for difference in found.differences:
        console.print(
            Text(escape_for_terminal(_line(difference)), style="" if difference.agrees else "bold red"),
            soft_wrap=True,
        )
    result = "reproduced" if found.exit_code == 0 else "NOT REPRODUCED"
    how = "to the byte, but for times" if found.to_the_byte else f"judged by {found.rule}"
    line(f"{result}: {found.bundle}, {how}")
