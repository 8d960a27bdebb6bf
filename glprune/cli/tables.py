"""Tables for the terminal, of any width, in which no number is cut: text wraps, numbers do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from glprune._escaping import escape_for_terminal

if TYPE_CHECKING:
    from collections.abc import Collection

    from rich.console import Console

_LEAST_TEXT = 13  # characters; text in a narrower column would be hard to read
_UNLIMITED = 10_000


def new_table(*names: str, numbers: Collection[str] = (), whole: Collection[str] = ()) -> Table:
    """Return an empty table.

    Args:
        names: The headings of its columns.
        numbers: Those of columns of numbers: aligned right and never wrapped, under words one below another.
        whole: Those of columns of short words, which are never wrapped.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        heading = "\n".join(map(escape_for_terminal, name.split(" ") if name in numbers else [name]))
        table.add_column(
            Text(heading),
            justify="right" if name in numbers else "left",
            no_wrap=name in numbers or name in whole,
            overflow="fold",
        )
    return table


def fits(console: Console, table: Table) -> bool:
    """Whether a console is wide enough for a table whose text is wrapped."""
    return _least_width(console, table) <= console.width


def print_table(console: Console, table: Table) -> None:
    """Print a table; one that does not fit runs over the edge, where the terminal breaks its lines."""
    if not fits(console, table):
        table.width = _least_width(console, table)
    console.print(table, crop=False, markup=False)


def _least_width(console: Console, table: Table) -> int:
    """Return the width of a table whose columns of text are as narrow as they may be."""
    texts = [column for column in table.columns if not column.no_wrap]
    for column in texts:
        column.max_width = _LEAST_TEXT
    width = console.measure(table, options=console.options.update_width(_UNLIMITED)).maximum
    for column in texts:
        column.max_width = None
    return width
