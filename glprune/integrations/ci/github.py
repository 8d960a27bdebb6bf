"""GitHub Actions: workflow commands and the job summary.

What a name of a feature says must never become a command: texts in commands are escaped as the runner reads
them, and everything else a command prints is kept from looking like one (:class:`Harmless`).
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

_SUMMARY_LIMIT = 1024 * 1024  # bytes of one step's summary; more is refused whole
_SHOWN = 10  # annotations of each level that a step shows


class CommandEscapingStream:
    """A stream in which no line is a workflow command.

    The runner obeys lines that begin with ``::`` after blanks, and ``##[`` anywhere.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text with the commands' marks taken apart."""
        self._stream.write(harmless(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def harmless(text: str) -> str:
    """Text in which the marks of workflow commands are taken apart."""
    return text.replace("::", ": :").replace("##[", "# #[")


def workflow_commands(remarks: Iterable[Annotation]) -> list[str]:
    """Workflow commands, one line each; at most ten of a level, and one that counts the rest."""
    lines: list[str] = []
    counts: dict[str, int] = {}
    for remark in remarks:
        counts[remark.level] = counts.get(remark.level, 0) + 1
        if counts[remark.level] <= _SHOWN:
            lines.append(_command(remark))
    rest = sum(max(0, count - _SHOWN) for count in counts.values())
    return [*lines, f"{rest} more annotations are in the job summary"] if rest else lines


def append_summary(markdown: str, environment: Mapping[str, str]) -> bool:
    """Add to the step's summary; tells whether there is one with room for it."""
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


def _command(remark: Annotation) -> str:
    properties = {"title": remark.title}
    if remark.file:
        properties["file"] = remark.file
        if remark.line:
            properties["line"] = str(remark.line)
    listed = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    return f"::{remark.level} {listed}::{_data(remark.text)}"


def _data(text: str) -> str:
    escaped = escape_for_page(text, keep="\r\n").replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return escaped.replace("##[", "# #[")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
