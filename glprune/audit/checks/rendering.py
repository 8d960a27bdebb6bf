"""C12: render page and summary again and compare them with the bundle."""

from __future__ import annotations

import importlib.metadata
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from glprune._version import __version__
from glprune.audit.findings import Check, Finding, Found, make_check
from glprune.audit.page_markup import check_page, check_picture
from glprune.report.html import can_draw, render_html
from glprune.report.markdown import render_markdown
from glprune.schema import bundle as bundles

if TYPE_CHECKING:
    from glprune.schema.report import Report
_MAX_FINDINGS = 20


def check_rendering(report: Report, raw: bytes, summary: bytes) -> Check:
    """Compare byte for byte; pictures only where this matplotlib draws the same ones.

    Args:
        report: The report.
        raw: ``report.html``.
        summary: ``report.md``.

    Returns:
        The check; its sentence on what was left out names pictures that were not drawn.
    """
    try:
        page = raw.decode("utf-8")
    except UnicodeDecodeError:
        return make_check("C12", [Finding(bundles.PAGE, "", "is not UTF-8")])
    text, pictures = _pictures(page)
    findings = [Finding(bundles.PAGE, where, what) for where, what in _markup(text, pictures)]
    made = report.run.versions.get("glprune")
    if made != __version__:
        note = f"made by glprune {made}, this is {__version__}"
        return make_check("C12", findings) if findings else Check("C12", "incomplete", note=note)
    shown = summary.decode("utf-8", "surrogateescape")
    findings += _difference(bundles.SUMMARY, shown, render_markdown(report))
    findings += _difference(bundles.PAGE, text, _pictures(render_html(report, pictures=False))[0])
    reason = _cannot_draw(report)
    if reason is not None and not findings:
        note = f"text and tables; {reason}, so that text and numbers in pictures are unchecked"
        unchecked = f"Text and numbers in the pictures of {bundles.PAGE}: {reason}."
        return Check("C12", "incomplete", note=note, left_out=unchecked)
    if not findings and not _drawn_alike(report, page):
        findings.append(Finding(bundles.PAGE, "", "a picture does not match the numbers of the report"))
    return make_check("C12", findings, "byte for byte")


def _markup(text: str, pictures: Sequence[str]) -> Iterator[Found]:
    """Find elements and attributes that no report has, in the text and in the pictures."""
    yield from (("", what) for what in itertools.islice(check_page(text), _MAX_FINDINGS))
    for number, picture in enumerate(pictures, 1):
        for what in itertools.islice(check_picture(picture), _MAX_FINDINGS):
            yield f"picture {number}", what


def _pictures(page: str) -> tuple[str, list[str]]:
    """Split a page into text with empty pictures, and pictures; in linear time for any page."""
    kept, pictures, position = [], [], 0
    while (start := page.find("<svg", position)) >= 0 and (end := page.find("</svg>", start)) >= 0:
        end += len("</svg>")
        kept.append(page[position:start] + "<svg></svg>")
        pictures.append(page[start:end])
        position = end
    return "".join([*kept, page[position:]]), pictures


def _difference(file: str, text: str, expected: str) -> list[Finding]:
    """Return a finding for the first line that differs."""
    found, wanted = text.splitlines(), expected.splitlines()
    for number, (a, b) in enumerate(zip(found, wanted, strict=False), 1):
        if a != b:
            what = f"is {a.strip()[:80]!r}, the report gives {b.strip()[:80]!r}"
            return [Finding(file, f"line {number}", what)]
    if len(found) != len(wanted):
        return [Finding(file, "", f"has {len(found)} lines, the report gives {len(wanted)}")]
    if text != expected:
        return [Finding(file, "", "has other line ends or bytes than the report gives")]
    return []


def _drawn_alike(report: Report, page: str) -> bool:
    """Draw the pictures again, which takes most of the time of a verification, and compare the page."""
    return render_html(report) == page


def _cannot_draw(report: Report) -> str | None:
    """Say why pictures cannot be drawn identically; None where they can."""
    made = report.run.versions.get("matplotlib")
    if not can_draw():
        return "matplotlib is not installed"
    here = importlib.metadata.version("matplotlib")
    return None if here == made else f"drawn by matplotlib {made}, this is {here}"
