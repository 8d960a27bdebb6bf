"""Render a report for people, from its records alone and without PyTorch.

``html`` makes the page, ``markdown`` the summary and ``sentences`` their text; ``plots`` draws the pictures
with ``path_lines``. ``sections`` numbers the sections and links them to ``regulations``;
``stability_index`` computes the indices of stability.
"""

from glprune.report.html import render_findings, render_html
from glprune.report.markdown import render_markdown

__all__ = ["render_findings", "render_html", "render_markdown"]
