"""Render a report's findings as Markdown, to be read in a pull request; names cannot become markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from glprune._escaping import escape_for_page
from glprune.report.html import size_rows
from glprune.report.sentences import headline, label, number

if TYPE_CHECKING:
    from glprune.schema.report import Feature, Report

_SAFE_IN_CODE = re.compile(r"[^`|\\]*[^`|\\\s][^`|\\]*")


def render_markdown(report: Report) -> str:
    """The findings as GitHub-flavoured Markdown: what is gone, what it cost, what was not measured."""
    blocks = [
        f"# {text(report.title)}",
        text(report.purpose),
        "\n".join(f"- {text(sentence)}" for sentence in headline(report)),
        *_listed("To be read before use", report.warnings),
        "## Removed features",
        _removed(report),
        "## Metrics on the test split",
        _metrics(report),
        "## Size",
        _table(
            ("", "Original", "Shipped", "Left"),
            [(text(c.label), c.before, c.after, c.change) for c in size_rows(report)],
            numbers=3,
        ),
        *_listed("Not measured", report.not_measured),
        f"glprune {text(report.run.versions.get('glprune', ''))}, {text(report.timing.generated_at)}; "
        f"model {code(report.digests.outputs.get(report.export.file, '-'))}. "
        "Evidence: `report.html`. Check it with `glprune verify`.",
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def code(name: str) -> str:
    """A name as code, literally, in a table cell too: neither markup nor a mention of anybody.

    What cannot be seen (line ends, marks of writing direction) is written as an escape.
    """
    seen = escape_for_page(name)
    if _SAFE_IN_CODE.fullmatch(seen):
        return f"`{seen}`"
    return f"<code>{''.join(c if c.isalnum() or c == ' ' else f'&#{ord(c)};' for c in seen)}</code>"


def text(words: str) -> str:
    """Words as one line of plain text: no markup, HTML, link or mention comes of them."""
    line = escape_for_page(" ".join(words.split()))
    line = re.sub(
        r"[\\`*{}\[\]<>&|~#!$^]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", lambda m: f"&#{ord(m[0])};", line
    )
    line = re.sub(r"^([-+=]|\d+[.)](?=\s|$))", lambda m: f"{m[0][:-1]}&#{ord(m[0][-1])};", line)
    line = re.sub(r":(?=//)|(?<=www)\.", lambda m: f"&#{ord(m[0])};", line, flags=re.IGNORECASE)
    return line.replace("@", "`@`")


def _listed(title: str, items: Sequence[str]) -> list[str]:
    return [f"## {title}", "\n".join(f"- {text(item)}" for item in items)] if items else []


def _removed(report: Report) -> str:
    removed = [f for f in report.features if f.status == "removed"]
    if not removed:
        return "None."
    return _table(
        ("Feature", "Removed by", "Columns", "Norm in the original"),
        [(code(f.name), _reason(f), f"{len(f.columns):,}", number(f.norm_original)) for f in removed],
        numbers=2,
    )


def _reason(feature: Feature) -> str:
    """What had a feature removed; the name behind ``derived_from`` is a feature's."""
    what, _, name = (feature.reason or "penalty").partition(" ")
    said = text(what.replace("_", " "))
    return f"{said} {code(name)}" if name else said


def _metrics(report: Report) -> str:
    rows = [
        (
            f"{text(label(m.name))}, {'higher' if m.higher_is_better else 'lower'} is better",
            f"{m.original:.4f}",
            f"{m.final:.4f}",
            f"{m.final - m.original:+.4f}",
            f"{m.rows:,}",
        )
        for m in report.performance
    ]
    return _table(("Metric", "Original", "Shipped", "Change", "Rows"), rows, numbers=4)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int) -> str:
    """A table whose last ``numbers`` columns stand to the right; cells are written as they are."""
    rule = ["---"] * (len(head) - numbers) + ["---:"] * numbers
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))
