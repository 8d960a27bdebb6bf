"""Render a report's findings as Markdown, for a pull request; names cannot become markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from glprune._escaping import escape_for_page
from glprune.report.html import size_rows
from glprune.report.sentences import headline, number
from glprune.report.uncertainty import method_sentence, with_interval
from glprune.schema.metrics import label

if TYPE_CHECKING:
    from glprune.schema.report import Feature, Frontier, FrontierPoint, Report

_WIDTH = 48  # characters of a picture
_SAFE_IN_CODE = re.compile(r"[^`|\\]*[^`|\\\s][^`|\\]*")


def render_markdown(report: Report) -> str:
    """Render the findings as GitHub-flavoured Markdown: removed features, metrics, size, gaps."""
    blocks = [
        f"# {text(report.title)}",
        text(report.purpose),
        "\n".join(f"- {text(sentence)}" for sentence in headline(report)),
        *listed("Warnings", report.warnings),
        "## Removed features",
        removed_table(report),
        "## Metrics on the test split",
        metrics_table(report),
        *_frontier(report),
        "## Size",
        size_table(report),
        *listed("Not measured", report.not_measured),
        f"glprune {text(report.run.versions.get('glprune', ''))}, {text(report.timing.generated_at)}; "
        f"model {code(report.digests.outputs.get(report.export.file, '-'))}. "
        "Evidence: `report.html`. Verify it with `glprune verify`.",
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def code(name: str) -> str:
    """Format a name as code, safe in a table cell: it cannot become markup or a mention.

    Invisible characters (line ends, marks of writing direction) are written as escapes.
    """
    seen = escape_for_page(name)
    if _SAFE_IN_CODE.fullmatch(seen):
        return f"`{seen}`"
    return f"<code>{''.join(c if c.isalnum() or c == ' ' else f'&#{ord(c)};' for c in seen)}</code>"


def text(words: str) -> str:
    """Escape text to one line without markup, HTML, links or mentions."""
    line = escape_for_page(" ".join(words.split()))
    line = re.sub(
        r"[\\`*{}\[\]<>&|~#!$^]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", lambda m: f"&#{ord(m[0])};", line
    )
    line = re.sub(r"^([-+=]|\d+[.)](?=\s|$))", lambda m: f"{m[0][:-1]}&#{ord(m[0][-1])};", line)
    line = re.sub(r":(?=//)|(?<=www)\.", lambda m: f"&#{ord(m[0])};", line, flags=re.IGNORECASE)
    return line.replace("@", "`@`")


def listed(title: str, items: Sequence[str]) -> list[str]:
    """Format a heading and a list; nothing where there are no items."""
    return [f"## {title}", "\n".join(f"- {text(item)}" for item in items)] if items else []


def size_table(report: Report) -> str:
    """Format the counts of the network and its file, before and after."""
    rows = [(text(c.label), c.before, c.after, c.change) for c in size_rows(report)]
    return table(("", "Original", "Shipped", "Left"), rows, numbers=3)


def removed_table(report: Report) -> str:
    """Format the removed features, with the reason and the norm of each."""
    removed = [f for f in report.features if f.status == "removed"]
    if not removed:
        return "None."
    return table(
        ("Feature", "Removed by", "Columns", "Norm in the original"),
        [(code(f.name), _reason(f), f"{len(f.columns):,}", number(f.norm_original)) for f in removed],
        numbers=2,
    )


def _reason(feature: Feature) -> str:
    """Say why a feature was removed; the name after ``derived_from`` is a feature's."""
    what, _, name = (feature.reason or "penalty").partition(" ")
    reason = text(what.replace("_", " "))
    return f"{reason} {code(name)}" if name else reason


def metrics_table(report: Report) -> str:
    """Format the metrics of the original and of the shipped file, with intervals."""
    rows = [
        (
            f"{text(label(m.name))}, {'higher' if m.higher_is_better else 'lower'} is better",
            *(with_interval(m, which, "{} ({})") for which in ("original", "final", "change")),
            f"{m.rows:,}",
        )
        for m in report.performance
    ]
    rendered = table(("Metric", "Original", "Shipped", "Change", "Rows"), rows, numbers=4)
    method = method_sentence([m.intervals for m in report.performance])
    return f"{rendered}\n\n{text(f'In brackets: {method}')}" if method else rendered


def _frontier(report: Report) -> list[str]:
    """Render the networks of other sizes as a table and as a picture in characters."""
    record = report.frontier
    if record is None:
        return []
    metric = text(label(record.metric))
    head = (
        "",
        "Features",
        f"{metric}, validation",
        "Against the best",
        f"{metric}, test",
        "95 % interval",
        "Parameters",
    )
    rows = [
        (
            "shipped" if point.shipped else "",
            f"{len(point.features):,}",
            f"{point.valid:.4f}",
            f"{point.gain:+.4f} ± {point.gain_standard_error:.4f}" if point.gain else "best",
            *_tested(point),
            f"{point.parameters:,}",
        )
        for point in record.points
    ]
    return [
        "## Networks of other sizes",
        table(head, rows, numbers=6),
        f"```text\n{_interval_picture(record)}\n```",
    ]


def _tested(point: FrontierPoint) -> tuple[str, str]:
    if point.test is None or point.test_interval is None:
        return "not measured", "-"
    return f"{point.test:.4f}", f"{point.test_interval.low:.4f} to {point.test_interval.high:.4f}"


def _interval_picture(frontier: Frontier) -> str:
    """Draw the test metric of every size with its interval, on one scale."""
    measured = [(p, p.test, p.test_interval) for p in frontier.points]
    known = [
        (p, test, interval) for p, test, interval in measured if test is not None and interval is not None
    ]
    if not known:
        return "no size was measured on the test split"
    low, high = min(i.low for _, _, i in known), max(i.high for _, _, i in known)
    lines = [f"{'features':>8}  {f'{low:.4f}':<{_WIDTH - 6}}{high:.4f}"]
    for point, test, interval in known:
        first, middle, last = (
            round((_WIDTH - 1) * (value - low) / max(high - low, 1e-12))
            for value in (interval.low, test, interval.high)
        )
        bar = " " * first + "|" + "-" * max(0, last - first - 1) + "|"
        bar = f"{bar[:middle]}o{bar[middle + 1 :]}"
        lines.append(
            f"{len(point.features):>8,}  {bar:<{_WIDTH}}{'  shipped' if point.shipped else ''}".rstrip()
        )
    return "\n".join(lines)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int) -> str:
    """Format a table whose last ``numbers`` columns are right-aligned; cells are not escaped."""
    rule = ["---"] * (len(head) - numbers) + ["---:"] * numbers
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))
