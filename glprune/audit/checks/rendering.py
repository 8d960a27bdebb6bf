"""C12: render page and summary again and compare them with the bundle."""

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
_STYLE = 'style type="text/css"'  # matplotlib adds this one to each picture


def check_rendering(report: Report, raw: bytes, summary: bytes) -> tuple[Check, str | None]:
    """Compare byte for byte; pictures only where this matplotlib draws the same ones.

    Args:
        report: The report.
        raw: ``report.html``.
        summary: ``report.md``.

    Returns:
        The check, and the part of the page that was not checked.
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
        tag = _active_tag(picture)
        if tag is not None:
            what = f"contains {tag[:40]!r}, which no picture of a report needs"
            findings.append(Finding(bundles.PAGE, f"picture {number}", what))
    reason = _cannot_draw(report)
    if reason is None and not findings and render_html(report) != page:
        findings.append(Finding(bundles.PAGE, "", "a picture does not match the numbers of the report"))
    skipped = f"The pictures of report.html: {reason}." if reason else None
    return make_check("C12", findings, "text and tables" if reason else "byte for byte"), skipped


def _pictures(page: str) -> tuple[str, list[str]]:
    """Split a page into text with empty pictures, and pictures; in linear time for any page."""
    kept, pictures, position = [], [], 0
    while (start := page.find("<svg", position)) >= 0 and (end := page.find("</svg>", start)) >= 0:
        kept.append(page[position:start] + "<svg>")
        pictures.append(page[start:end])
        position = end
    return "".join([*kept, page[position:]]), pictures


def _active_tag(picture: str) -> str | None:
    """Return the first tag of a picture with active content; None where there is none."""
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
    """Return a finding for the first line that differs."""
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
    """Say why pictures cannot be drawn identically; None where they can."""
    made = report.run.versions.get("matplotlib")
    if not can_draw():
        return "matplotlib is not installed"
    here = importlib.metadata.version("matplotlib")
    return None if here == made else f"drawn by matplotlib {made}, this is {here}"
