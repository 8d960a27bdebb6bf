"""What a step of a pipeline has to say, before any pipeline's own notation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["notice", "warning", "error"]


@dataclass(frozen=True)
class Annotation:
    """One thing to be shown beside the change that was made.

    Attributes:
        level: How bad it is.
        title: In a few words.
        text: In a sentence.
        file: The file it is about; empty for none.
        line: The line in it, from 1; 0 for none.
    """

    level: Level
    title: str
    text: str
    file: str = ""
    line: int = 0


@dataclass(frozen=True)
class TestCase:
    """One thing that was tested.

    Attributes:
        name: What.
        failure: Why it failed; None where it passed.
        skipped: Why it could not be tested; None where it was.
    """

    name: str
    failure: str | None = None
    skipped: str | None = None


@dataclass(frozen=True)
class Metric:
    """One number to be compared from run to run, such as ``metric`` of ``{"name": "auroc"}``."""

    name: str
    value: float
    labels: dict[str, str]


@dataclass(frozen=True)
class Outcome:
    """Everything one command has to say to a pipeline.

    Attributes:
        step: ``run`` or ``gate``; names the files that are written.
        remarks: For annotations.
        cases: For test reports.
        figures: For metric reports; empty for none.
        summary: Markdown, in which nothing from the bundle can be markup.
    """

    step: str
    annotations: tuple[Annotation, ...]
    cases: tuple[TestCase, ...]
    metrics: tuple[Metric, ...] = ()
    summary: str = ""
