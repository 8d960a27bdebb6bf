"""GitLab CI: a JUnit report and a metrics report (OpenMetrics text).

Source: "GitLab CI/CD artifacts reports types", docs.gitlab.com; OpenMetrics 1.0.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from glprune._escaping import escape_for_terminal

if TYPE_CHECKING:
    from glprune.integrations.ci.outcome import Metric, TestCase


def junit(step: str, cases: Sequence[TestCase]) -> str:
    """A JUnit XML document of one suite."""
    suite = ET.Element(
        "testsuite",
        name=f"glprune {step}",
        tests=str(len(cases)),
        failures=str(sum(case.failure is not None for case in cases)),
        skipped=str(sum(case.skipped is not None for case in cases)),
        errors="0",
    )
    for case in cases:
        node = ET.SubElement(
            suite, "testcase", classname=f"glprune.{step}", name=escape_for_terminal(case.name)
        )
        for kind, why in (("failure", case.failure), ("skipped", case.skipped)):
            if why is not None:
                ET.SubElement(node, kind, message=escape_for_terminal(why)).text = escape_for_terminal(why)
    root = ET.Element("testsuites", name="glprune")
    root.append(suite)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def openmetrics(figures: Iterable[Metric]) -> str:
    """Figures as OpenMetrics text, all gauges; those of one name stand together."""
    families: dict[str, list[str]] = {}
    for figure in figures:
        labels = ",".join(f'{key}="{_label(value)}"' for key, value in figure.labels.items())
        sample = (
            f"glprune_{figure.name}{{{labels}}} {figure.value!r}"
            if labels
            else f"glprune_{figure.name} {figure.value!r}"
        )
        families.setdefault(figure.name, []).append(sample)
    lines = [
        line for name, samples in families.items() for line in (f"# TYPE glprune_{name} gauge", *samples)
    ]
    return "\n".join([*lines, "# EOF"]) + "\n"


def _label(text: str) -> str:
    return escape_for_terminal(text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n"))
