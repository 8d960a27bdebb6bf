"""Detect the CI system and write its files.

Files are written next to the bundle, in ``<bundle>.ci``: the manifest covers every file of the bundle.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO, cast

from glprune._wording import counted
from glprune.errors import GlpruneError, UsageError
from glprune.integrations.ci import dvc, github, gitlab
from glprune.integrations.ci.outcome import Annotation, Metric, Outcome, TestCase
from glprune.report.markdown import render_markdown
from glprune.report.sentences import headline
from glprune.report.uncertainty import change_of

if TYPE_CHECKING:
    from glprune.schema.report import Report

System = Literal["github", "gitlab", "dvc"]
_VARIABLES: tuple[tuple[System, str], ...] = (
    ("github", "GITHUB_ACTIONS"),
    ("gitlab", "GITLAB_CI"),
    ("dvc", "DVC_STAGE"),
)


def systems(choice: str, environment: Mapping[str, str] = os.environ) -> tuple[System, ...]:
    """Return the CI systems to write for; ``auto`` detects them by their environment variables."""
    if choice == "none":
        return ()
    if choice != "auto":
        return (cast(System, choice),)
    return tuple(system for system, variable in _VARIABLES if environment.get(variable))


def folder_of(bundle: Path) -> Path:
    """Return the folder for the files of CI systems: ``<bundle>.ci``."""
    return bundle.with_name(bundle.name + ".ci")


@contextlib.contextmanager
def ci_context(where: tuple[System, ...], step: str, bundle: Path) -> Iterator[None]:
    """Escape workflow commands in everything printed, and report an error to the CI system.

    An error reported as an annotation is not printed a second time: the process ends with its exit code.
    """
    if not where:
        yield
        return
    stderr = sys.stderr
    try:
        with _escaped_commands() if "github" in where else contextlib.nullcontext():
            yield
    except GlpruneError as error:
        publish(where, failed(step, error), bundle, stderr)
        if "github" not in where:
            raise
        raise SystemExit(error.exit_code) from None


def publish(where: tuple[System, ...], outcome: Outcome, bundle: Path, stream: TextIO | None = None) -> None:
    """Write the outcome of a command in the format of each CI system.

    Raises:
        UsageError: The folder next to the bundle cannot be written.
    """
    if "github" in where:
        for line in github.workflow_commands(outcome.annotations):
            print(line, file=stream or sys.stderr, flush=True)
        github.append_summary(outcome.summary, os.environ)
    if "gitlab" in where:
        _write(bundle, f"{outcome.step}-junit.xml", gitlab.junit(outcome.step, outcome.cases))
        if outcome.metrics:
            _write(bundle, "metrics.txt", gitlab.openmetrics(outcome.metrics))


def publish_run(where: tuple[System, ...], report: Report, bundle: Path) -> None:
    """Write the outcome of a run: annotations and summary, test reports, metrics and plots."""
    publish(where, _run_outcome(report), bundle)
    if "dvc" in where:
        _write(bundle, "metrics.json", json.dumps(dvc.metrics(report), indent=2) + "\n")
        _write(bundle, "path.csv", dvc.path_csv(report))
        _write(bundle, "features.csv", dvc.features_csv(report))


def failed(step: str, error: GlpruneError) -> Outcome:
    """Return the outcome of a command that ended with an error."""
    message = " ".join(str(error).split())
    location = re.match(r"(?P<file>[^:\s][^:]*\.ya?ml):(?P<line>\d+): ", message)
    file, line = (location["file"], int(location["line"])) if location else ("", 0)
    return Outcome(
        step,
        (Annotation("error", f"glprune {step}", message, file, line),),
        (TestCase(f"glprune {step}", failure=message),),
    )


def _run_outcome(report: Report) -> Outcome:
    findings = [Annotation("notice", report.title or "glprune", sentence) for sentence in headline(report)]
    warnings = [Annotation("warning", report.title or "glprune", warning) for warning in report.warnings]
    cases = [
        TestCase(f"removal agrees to {report.removal.tolerance:g}"),
        TestCase(f"ONNX Runtime agrees with PyTorch on {counted(report.export.rows, 'row')}"),
    ]
    return Outcome(
        "run", (*warnings, *findings), tuple(cases), tuple(_metrics(report)), render_markdown(report)
    )


def _metrics(report: Report) -> Iterator[Metric]:
    for metric in report.performance:
        for model, value in (("original", metric.original), ("shipped", metric.final)):
            yield Metric("metric", value, {"name": metric.name, "model": model, "split": "test"})
        if change := change_of(metric):
            for end, value in (("low", change.low), ("high", change.high)):
                yield Metric(
                    "metric_change_interval", value, {"name": metric.name, "end": end, "split": "test"}
                )
    kept = sum(f.status == "kept" for f in report.features)
    yield Metric("features", kept, {"status": "kept"})
    yield Metric("features", len(report.features) - kept, {"status": "removed"})
    yield Metric("parameters", report.size.parameters_before, {"model": "original"})
    yield Metric("parameters", report.size.parameters_after, {"model": "shipped"})
    yield Metric("onnx_bytes", report.size.onnx_bytes_before, {"model": "original"})
    yield Metric("onnx_bytes", report.size.onnx_bytes_after, {"model": "shipped"})
    for time in report.latency:
        yield Metric("latency_milliseconds", time.slim_ms, {"batch": str(time.batch), "model": "shipped"})


def _write(bundle: Path, name: str, text: str) -> None:
    folder = folder_of(bundle)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{folder / name}: cannot be written ({error.strerror}).") from None


@contextlib.contextmanager
def _escaped_commands() -> Iterator[None]:
    out, err = (
        cast(TextIO, github.CommandEscapingStream(sys.stdout)),
        cast(TextIO, github.CommandEscapingStream(sys.stderr)),
    )
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield
