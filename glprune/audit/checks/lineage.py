"""C14: compare with the model that the auditor expects and with the previous bundle."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from glprune._files import unreadable_reason
from glprune.audit.findings import Finding
from glprune.audit.signing import instant
from glprune.errors import UsageError
from glprune.schema import bundle as bundles

if TYPE_CHECKING:
    from glprune.schema.report import Report

_HEX = re.compile(r"^(sha256:)?([0-9a-fA-F]{64})$")


def expected_digest(text: str) -> str:
    """Return a given SHA-256, or that of a file, as ``sha256:<hex>``.

    Raises:
        UsageError: The text is neither.
    """
    given = _HEX.match(text)
    if given is not None:
        return f"sha256:{given[2].lower()}"
    reason = unreadable_reason(Path(text))
    if reason is not None:
        raise UsageError(f"{text!r} is neither a SHA-256 nor a file ({reason}).")
    return bundles.digest(Path(text))


def check_expected(report: Report, model: str | None, original: str | None) -> list[Finding]:
    """Compare the shipped and the original model with digests from another source."""
    findings = []
    shipped = report.digests.outputs.get(bundles.ONNX)
    if model is not None and shipped != model:
        findings.append(Finding(bundles.ONNX, "", f"is {shipped}; --expect-model is {model}"))
    if original is not None and report.digests.model != original:
        what = f"is {report.digests.model}; --expect-original is {original}"
        findings.append(Finding(bundles.REPORT, "/digests/model", what))
    return findings


def check_previous(report: Report, previous: Report) -> list[Finding]:
    """Require a bundle not older than the previous one, from its original or from its shipped model."""
    return [Finding(bundles.REPORT, where, what) for where, what in _predecessor_errors(report, previous)]


def _predecessor_errors(report: Report, previous: Report) -> Iterator[tuple[str, str]]:
    now, then = instant(report.timing.generated_at), instant(previous.timing.generated_at)
    if now is not None and then is not None and now < then:
        yield (
            "/timing/generated_at",
            f"{report.timing.generated_at} is before the previous bundle's: a rollback",
        )
    parents = {previous.digests.model, previous.digests.outputs.get(bundles.WEIGHTS)}
    if report.digests.model not in parents:
        yield "/digests/model", "is neither the original nor the shipped model of the previous bundle"
    same = report.digests.outputs.get(bundles.ONNX) == previous.digests.outputs.get(bundles.ONNX)
    if same and report.digests.data == previous.digests.data and report.performance != previous.performance:
        yield "/performance", "differs from the previous bundle's for the same model and data"
