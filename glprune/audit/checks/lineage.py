"""C14: compare with the model that the auditor expects and with the previous bundle."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from glprune._files import unreadable_reason
from glprune.audit.findings import Check, Finding, make_check
from glprune.audit.signing import Signature, instant
from glprune.audit.trust.attestation import Attestation, Attested, read_attestation, verify_attestation
from glprune.audit.trust.roles import Trust
from glprune.errors import UsageError
from glprune.schema import bundle as bundles
from glprune.schema.strict_json import StrictError

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


def expected_original(text: str) -> str | Attestation:
    """Return a given SHA-256, a statement on the original, or the digest of any other file.

    Raises:
        UsageError: The text is neither a SHA-256 nor a file, or a JSON file that is no such statement.
    """
    path = Path(text)
    readable = _HEX.match(text) is None and unreadable_reason(path) is None
    return (read_attestation(path) if readable else None) or expected_digest(text)


@dataclass(frozen=True)
class Expected:
    """What the auditor expects of a bundle's models.

    Attributes:
        model: Digest of ``model.onnx``.
        original: Digest of the original model, or a signed statement on it.
        previous: Report of the previous bundle.
        trust: The keys that may sign the statement.
    """

    model: str | None
    original: str | Attestation | None
    previous: Report | None
    trust: Trust


def check_lineage(report: Report, expected: Expected, signatures: Sequence[Signature]) -> Check:
    """C14: compare a bundle with what the auditor expects of its models."""
    if not _asked(expected):
        return Check("C14", "skipped", note="no --expect-model, --expect-original or --previous")
    notes, findings = _asked(expected), check_model(report, expected.model)
    if expected.previous is not None:
        findings += check_previous(report, expected.previous)
    if isinstance(expected.original, str):
        findings += check_original(report, expected.original)
    elif expected.original is not None:
        found, note = _check_attested(report, expected.original, expected.trust, signatures)
        findings += found
        notes.append(note)
        if not findings and not expected.trust.keys:
            return Check("C14", "incomplete", note=note)
    return make_check("C14", findings, "; ".join(notes))


def _asked(expected: Expected) -> list[str]:
    """Return what the auditor asked for, in words, and what not; nothing where it is nothing."""
    questions = (
        (expected.model, f"{bundles.ONNX} is the expected one", "--expect-model"),
        (expected.original, "the original is the expected one", "--expect-original"),
        (expected.previous, "the bundle follows the previous one", "--previous"),
    )
    asked = [words for given, words, _ in questions if given is not None]
    others = [option for given, _, option in questions if given is None]
    return [*asked, f"not asked: {', '.join(others)}"] if asked and others else asked


def check_model(report: Report, model: str | None) -> list[Finding]:
    """Compare the shipped model with a digest from another source."""
    shipped = report.digests.outputs.get(bundles.ONNX)
    if model is None or shipped == model:
        return []
    return [Finding(bundles.ONNX, "", f"is {shipped}; --expect-model is {model}")]


def check_original(report: Report, original: str) -> list[Finding]:
    """Compare the original model with a digest from another source."""
    if report.digests.model == original:
        return []
    what = f"is {report.digests.model}; --expect-original is {original}"
    return [Finding(bundles.REPORT, "/digests/model", what)]


def _check_attested(
    report: Report, attestation: Attestation, trust: Trust, signatures: Sequence[Signature]
) -> tuple[list[Finding], str]:
    """Compare the original model with a signed statement; return findings and who signed it."""
    try:
        found = verify_attestation(attestation, trust)
    except StrictError as error:
        return [Finding(attestation.file, "", str(error))], ""
    findings, role = check_original(report, found.digest), found.predicate.role
    if not trust.keys:
        return findings, f"{attestation.file} is signed; name the signer's key with --trust {role}=KEY"
    if not found.signers:
        what = f"has no signature by a key that --trust gives the role {role}"
        return [*findings, Finding(attestation.file, "", what)], ""
    return findings, _signer(found, signatures)


def _signer(found: Attested, signatures: Sequence[Signature]) -> str:
    """Say who attested the original, and in which roles the same keys signed the bundle."""
    keys = ", ".join(keyid[:12] for keyid in found.signers)
    words = f"original attested by {found.predicate.role} ({keys}) on {found.predicate.signed_at}"
    if found.predicate.statement:
        words += f", who says {found.predicate.statement!r}"
    also = [s.role for s in signatures if {*s.trusted} & {*found.signers}]
    return words + (f"; the same key signed the bundle as {' and '.join(also)}" if also else "")


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
