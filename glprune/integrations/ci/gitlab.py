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
    """Format test cases as a JUnit XML document with one suite."""
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
        for tag, reason in (("failure", case.failure), ("skipped", case.skipped)):
            if reason is not None:
                message = escape_for_terminal(reason)
                ET.SubElement(node, tag, message=message).text = message
    root = ET.Element("testsuites", name="glprune")
    root.append(suite)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def openmetrics(metrics: Iterable[Metric]) -> str:
    """Format metrics as OpenMetrics text, all gauges, grouped by name."""
    families: dict[str, list[str]] = {}
    for metric in metrics:
        labels = ",".join(f'{key}="{_label(value)}"' for key, value in metric.labels.items())
        sample = (
            f"glprune_{metric.name}{{{labels}}} {metric.value!r}"
            if labels
            else f"glprune_{metric.name} {metric.value!r}"
        )
        families.setdefault(metric.name, []).append(sample)
    lines = [
        line for name, samples in families.items() for line in (f"# TYPE glprune_{name} gauge", *samples)
    ]
    return "\n".join([*lines, "# EOF"]) + "\n"


def _label(text: str) -> str:
    return escape_for_terminal(text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n"))
