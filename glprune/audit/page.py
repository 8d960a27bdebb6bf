"""C12: the page says what the report says; it is rendered again and compared."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re

from glprune import bundle as bundles
from glprune._version import __version__
from glprune.audit.findings import Check, Finding, judged
from glprune.render import render_html
from glprune.report import Report

_PICTURE = re.compile(r"<svg\b.*?</svg>", re.DOTALL)
_INERT = re.compile(r"<style type=\"text/css\">[^<]*</style>|<!--.*?-->|(?<=>)[^<]+(?=<)", re.DOTALL)
_ACTIVE = re.compile(
    r"<(?:script|foreignObject|iframe|image|a|animate|set|style|embed|object)\b|\son\w+\s*=|url\((?!#)"
    r"|href\s*=\s*[\"'](?!#)",
    re.IGNORECASE,
)


def check_page(report: Report, raw: bytes) -> tuple[Check, str | None]:
    """Render the page again and compare it byte for byte, the pictures where they can be drawn alike.

    Args:
        report: The report.
        raw: The page.

    Returns:
        The check, and what of the page was not checked.
    """
    made = report.run.versions.get("glprune")
    if made != __version__:
        return Check("C12", "incomplete", note=f"made by glprune {made}, this is {__version__}"), None
    try:
        page = raw.decode("utf-8")
    except UnicodeDecodeError:
        return judged("C12", [Finding(bundles.PAGE, "", "is not UTF-8")]), None
    findings = _text(page, render_html(report, pictures=False))
    findings += [
        Finding(bundles.PAGE, f"picture {n}", f"holds {found[0][:40]!r}, which a picture never needs")
        for n, picture in enumerate(_PICTURE.findall(page), 1)
        if (found := _ACTIVE.search(_INERT.sub("", picture))) is not None
    ]
    reason = _cannot_draw(report)
    if reason is None and not findings and render_html(report) != page:
        findings.append(Finding(bundles.PAGE, "", "a picture is not the one the report's numbers give"))
    skipped = f"The pictures of report.html: {reason}." if reason else None
    return judged("C12", findings, "text and tables" if reason else "byte for byte"), skipped


def _text(page: str, expected: str) -> list[Finding]:
    found = _PICTURE.sub("<svg></svg>", page).splitlines()
    wanted = _PICTURE.sub("<svg></svg>", expected).splitlines()
    for number, (a, b) in enumerate(zip(found, wanted, strict=False), 1):
        if a != b:
            return [
                Finding(
                    bundles.PAGE,
                    f"line {number}",
                    f"is {a.strip()[:80]!r}, the report gives {b.strip()[:80]!r}",
                )
            ]
    if len(found) != len(wanted):
        return [Finding(bundles.PAGE, "", f"has {len(found)} lines, the report gives {len(wanted)}")]
    return []


def _cannot_draw(report: Report) -> str | None:
    """Why pictures cannot be drawn as they were; None where they can."""
    made = report.run.versions.get("matplotlib")
    if importlib.util.find_spec("matplotlib") is None:
        return "matplotlib is not installed"
    here = importlib.metadata.version("matplotlib")
    return None if here == made else f"drawn by matplotlib {made}, this is {here}"
