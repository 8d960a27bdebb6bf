"""Markdown reference of a click command: every subcommand with its usage, options and exit codes."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click


def reference(group: click.Group, name: str) -> str:
    """The reference of a group's commands in alphabetical order, after a table of them."""
    commands = sorted(group.commands.items())
    lines = ["| Command | Purpose |", "|---|---|"]
    lines += [f"| [`{name} {key}`](#{key}) | {_prose(command.help)} |" for key, command in commands]
    for key, command in commands:
        lines += ["", f"## `{name} {key}` {{ #{key} }}", "", *_entry(command, f"{name} {key}")]
    return "\n".join(lines)


def undescribed(group: click.Group) -> list[str]:
    """Commands and options that have no help text."""
    missing = [key for key, command in group.commands.items() if not command.help]
    return missing + [
        f"{key} {option.opts[0]}"
        for key, command in group.commands.items()
        for option in command.params
        if isinstance(option, click.Option) and not option.help
    ]


def _entry(command: click.Command, path: str) -> Iterator[str]:
    context = click.Context(command, info_name=path)
    usage = command.get_usage(context).removeprefix("Usage: ")
    yield from (_prose(command.help), "", "```text", " ".join(usage.split()), "```", "")
    records = [
        found for p in command.params if isinstance(p, click.Option) and (found := p.get_help_record(context))
    ]
    if records:
        yield from ("| Option | Meaning |", "|---|---|")
        yield from (f"| `{_cell(option)}`{{ .key }} | {_prose(text)} |" for option, text in records)
    yield from ("", *_epilog(command.epilog or ""))


def _epilog(text: str) -> Iterator[str]:
    """The text below the options; exit codes as a table."""
    codes, found, rest = text.partition("Exit codes: ")
    if not found:
        yield _prose(text)
        return
    listed = re.findall(r"(\d+) (.+?)(?:; (?=\d)|\.(?: |$))", rest)
    yield from ("| Exit code | Meaning |", "|---|---|")
    yield from (f"| {code} | {_prose(meaning)} |" for code, meaning in listed)
    after = re.sub(r"^(?:\d+ .+?(?:; (?=\d)|\.(?: |$)))+", "", rest)
    yield from ("", _prose(f"{codes} {after}"))


def _prose(text: str | None) -> str:
    return _cell(re.sub(r"(?<![`\w])(--[a-z][\w-]*)(?![\w`])", r"`\1`", " ".join((text or "").split())))


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
