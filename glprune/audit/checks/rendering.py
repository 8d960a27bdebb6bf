"""C12: page and summary say what the report says; they are rendered again and compared."""

from __future__ import annotations

import importlib.metadata
import re
from typing import TYPE_CHECKING

from glprune._version import __version__
from glprune.audit.findings import Check, Finding, make_check
from glprune.report.html import can_draw, render_html
from glprune.report.markdown import render_markdown
from glprune.schema import bundle as bundles

if TYPE_CHECKING:
    from glprune.schema.report import Report

_ACTIVE = re.compile(
    r"^(?:script|foreignObject|iframe|image|a|animate|set|style|embed|object)\b|\son\w+\s*=|url\((?!#)"
    r"|href\s*=\s*[\"'](?!#)",
    re.IGNORECASE,
)
_STYLE = 'style type="text/css"'  # the one that matplotlib puts into each picture


def check_rendering(report: Report, raw: bytes, summary: bytes) -> tuple[Check, str | None]:
    """Render both again and compare byte for byte, the page's pictures where they can be drawn alike.

    Args:
        report: The report.
        raw: ``report.html``.
        summary: ``report.md``.

    Returns:
        The check, and what of the page was not checked.
    """
    made = report.run.versions.get("glprune")
    if made != __version__:
        return Check("C12", "incomplete", note=f"made by glprune {made}, this is {__version__}"), None
    findings = _summary(summary, render_markdown(report))
    try:
        page = raw.decode("utf-8")
    except UnicodeDecodeError:
        return make_check("C12", [*findings, Finding(bundles.PAGE, "", "is not UTF-8")]), None
    findings += _lines(bundles.PAGE, _pictures(page)[0], _pictures(render_html(report, pictures=False))[0])
    for number, picture in enumerate(_pictures(page)[1], 1):
        fault = _active(picture)
        if fault is not None:
            what = f"holds {fault[:40]!r}, which a picture never needs"
            findings.append(Finding(bundles.PAGE, f"picture {number}", what))
    reason = _cannot_draw(report)
    if reason is None and not findings and render_html(report) != page:
        findings.append(Finding(bundles.PAGE, "", "a picture is not the one the report's numbers give"))
    skipped = f"The pictures of report.html: {reason}." if reason else None
    return make_check("C12", findings, "text and tables" if reason else "byte for byte"), skipped


def _pictures(page: str) -> tuple[str, list[str]]:
    """The page with every picture emptied, and the pictures; in one pass, whatever the page holds."""
    kept, pictures, place = [], [], 0
    while (start := page.find("<svg", place)) >= 0 and (end := page.find("</svg>", start)) >= 0:
        kept.append(page[place:start] + "<svg>")
        pictures.append(page[start:end])
        place = end
    return "".join([*kept, page[place:]]), pictures


def _active(picture: str) -> str | None:
    """The first tag of a picture that could do something; None where there is none."""
    for piece in picture.split("<")[1:]:
        tag, _, text = piece.partition(">")
        if tag == _STYLE:
            tag = "css " + text
        elif tag.startswith("!--"):
            continue
        if _ACTIVE.search(tag) is not None or tag.count('"') % 2:
            return tag
    return None


def _summary(raw: bytes, expected: str) -> list[Finding]:
    if raw == expected.encode("utf-8"):
        return []
    findings = _lines(bundles.SUMMARY, raw.decode("utf-8", errors="replace"), expected)
    return findings or [Finding(bundles.SUMMARY, "", "has other line ends or bytes than the report gives")]


def _lines(file: str, text: str, expected: str) -> list[Finding]:
    """The first line that is not as expected."""
    found, wanted = text.splitlines(), expected.splitlines()
    for number, (a, b) in enumerate(zip(found, wanted, strict=False), 1):
        if a != b:
            return [
                Finding(
                    file,
                    f"line {number}",
                    f"is {a.strip()[:80]!r}, the report gives {b.strip()[:80]!r}",
                )
            ]
    if len(found) != len(wanted):
        return [Finding(file, "", f"has {len(found)} lines, the report gives {len(wanted)}")]
    return []


def _cannot_draw(report: Report) -> str | None:
    """Why pictures cannot be drawn as they were; None where they can."""
    made = report.run.versions.get("matplotlib")
    if not can_draw():
        return "matplotlib is not installed"
    here = importlib.metadata.version("matplotlib")
    return None if here == made else f"drawn by matplotlib {made}, this is {here}"
