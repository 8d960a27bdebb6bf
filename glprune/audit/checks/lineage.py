"""C14: the model the auditor expects, and the bundle they had before."""

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
    """A SHA-256 as given, or that of a file, as ``sha256:<hex>``.

    Raises:
        UsageError: It is neither.
    """
    given = _HEX.match(text)
    if given is not None:
        return f"sha256:{given[2].lower()}"
    why = unreadable_reason(Path(text))
    if why is not None:
        raise UsageError(f"{text!r} is no SHA-256 and no file ({why}).")
    return bundles.digest(Path(text))


def check_expected(report: Report, model: str | None, original: str | None) -> list[Finding]:
    """Compare the shipped and the original model with digests the auditor has from elsewhere."""
    findings = []
    shipped = report.digests.outputs.get(bundles.ONNX)
    if model is not None and shipped != model:
        findings.append(Finding(bundles.ONNX, "", f"is {shipped}; --expect-model is {model}"))
    if original is not None and report.digests.model != original:
        what = f"is {report.digests.model}; --expect-original is {original}"
        findings.append(Finding(bundles.REPORT, "/digests/model", what))
    return findings


def check_previous(report: Report, previous: Report) -> list[Finding]:
    """A bundle follows another: not older, from the same original or from what that one shipped."""
    return [Finding(bundles.REPORT, where, what) for where, what in _against(report, previous)]


def _against(report: Report, previous: Report) -> Iterator[tuple[str, str]]:
    now, then = instant(report.timing.generated_at), instant(previous.timing.generated_at)
    if now is not None and then is not None and now < then:
        yield (
            "/timing/generated_at",
            f"{report.timing.generated_at} is before the previous bundle's: a rollback",
        )
    parents = {previous.digests.model, previous.digests.outputs.get(bundles.WEIGHTS)}
    if report.digests.model not in parents:
        yield "/digests/model", "is neither the previous bundle's original nor what it shipped"
    same = report.digests.outputs.get(bundles.ONNX) == previous.digests.outputs.get(bundles.ONNX)
    if same and report.digests.data == previous.digests.data and report.performance != previous.performance:
        yield "/performance", "differs from the previous bundle's for the same model and data"
