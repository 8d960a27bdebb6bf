"""The outcome of a pipeline step, independent of the CI system."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["notice", "warning", "error"]


@dataclass(frozen=True)
class Annotation:
    """A message shown next to a change.

    Attributes:
        level: Severity.
        title: A few words.
        text: A sentence.
        file: The file it refers to; empty for none.
        line: The line in that file, from 1; 0 for none.
    """

    level: Level
    title: str
    text: str
    file: str = ""
    line: int = 0


@dataclass(frozen=True)
class TestCase:
    """The result of one test.

    Attributes:
        name: What was tested.
        failure: Why it failed; None if it passed.
        skipped: Why it could not be tested; None if it was.
    """

    name: str
    failure: str | None = None
    skipped: str | None = None


@dataclass(frozen=True)
class Metric:
    """A number to compare between runs, such as ``metric`` with labels ``{"name": "auroc"}``."""

    name: str
    value: float
    labels: dict[str, str]


@dataclass(frozen=True)
class Outcome:
    """Everything one command reports to a CI system.

    Attributes:
        step: ``run`` or ``gate``; part of the names of written files.
        annotations: Messages.
        cases: Test results.
        metrics: Metrics; may be empty.
        summary: Markdown in which text from the bundle is escaped.
    """

    step: str
    annotations: tuple[Annotation, ...]
    cases: tuple[TestCase, ...]
    metrics: tuple[Metric, ...] = ()
    summary: str = ""
