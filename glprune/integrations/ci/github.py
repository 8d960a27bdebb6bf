"""GitHub Actions: workflow commands and the job summary.

The name of a feature must never become a command: text in commands is escaped as the runner requires, and
``CommandEscapingStream`` escapes commands in everything else that is printed.
Source: "Workflow commands for GitHub Actions", docs.github.com; packages/core/src/command.ts of
actions/toolkit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from glprune._escaping import escape_for_page

if TYPE_CHECKING:
    from glprune.integrations.ci.outcome import Annotation

_SUMMARY_LIMIT = 1024 * 1024  # bytes of the summary of a step; a larger one is rejected
_MAX_SHOWN = 10  # annotations of each level that GitHub shows for a step


class CommandEscapingStream:
    """A text stream that escapes workflow commands.

    The runner executes lines that begin with ``::``, even after blanks, and ``##[`` anywhere.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text with workflow commands escaped."""
        self._stream.write(escape_commands(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def escape_commands(text: str) -> str:
    """Separate the characters that mark workflow commands."""
    return text.replace("::", ": :").replace("##[", "# #[")


def workflow_commands(annotations: Iterable[Annotation]) -> list[str]:
    """Format annotations as workflow commands, at most ten of each level; a last line counts the rest."""
    lines: list[str] = []
    counts: dict[str, int] = {}
    for annotation in annotations:
        level = annotation.level
        counts[level] = counts.get(level, 0) + 1
        if counts[level] <= _MAX_SHOWN:
            lines.append(_command(annotation))
    rest = sum(max(0, count - _MAX_SHOWN) for count in counts.values())
    return [*lines, f"{rest} more annotations are in the job summary"] if rest else lines


def append_summary(markdown: str, environment: Mapping[str, str]) -> bool:
    """Append to the summary of the step; returns whether there is a summary with enough room."""
    path = environment.get("GITHUB_STEP_SUMMARY")
    if not path or not markdown:
        return False
    text = f"{markdown}\n".encode()
    file = Path(path)
    used = file.stat().st_size if file.exists() else 0
    if used + len(text) > _SUMMARY_LIMIT:
        return False
    with file.open("ab") as stream:
        stream.write(text)
    return True


def _command(annotation: Annotation) -> str:
    properties = {"title": annotation.title}
    if annotation.file:
        properties["file"] = annotation.file
        if annotation.line:
            properties["line"] = str(annotation.line)
    listed = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    return f"::{annotation.level} {listed}::{_data(annotation.text)}"


def _data(text: str) -> str:
    escaped = escape_for_page(text, keep="\r\n").replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return escaped.replace("##[", "# #[")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
