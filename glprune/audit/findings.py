"""Findings, the checks that make them, and the verdict with its exit code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from glprune.errors import GlpruneError

_ROUND_OFF = 1e-9  # the last digits of a sum depend on its order
Found = tuple[str, str]
"""A JSON pointer into the report and the error there."""
Status = Literal["passed", "failed", "incomplete", "skipped"]
CheckKind = Literal["trust", "recomputation", "policy"]


class UnreadableError(GlpruneError):
    """The folder is not a bundle that this version can read."""

    exit_code = 5


@dataclass(frozen=True)
class Finding:
    """One error in a bundle.

    Attributes:
        file: The file, relative to the bundle.
        where: JSON pointer, node, tensor or input in the file; may be empty.
        what: What was found, and what was expected.
    """

    file: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}{f' {self.where}' if self.where else ''}: {self.what}"


@dataclass(frozen=True)
class CheckInfo:
    """Description of a check.

    Attributes:
        kind: ``trust`` depends on keys, ``policy`` on rules, ``recomputation`` only on the files.
        title: Short name.
        proves: What is true if the check passed.
        not_proved: What may still be wrong.
    """

    kind: CheckKind
    title: str
    proves: str
    not_proved: str


CHECKS: dict[str, CheckInfo] = {
    "C1": CheckInfo(
        "recomputation",
        "files",
        "the folder contains exactly the files of the manifest, as plain files within the size limits",
        "that their content is true",
    ),
    "C2": CheckInfo(
        "recomputation",
        "hashes",
        "every file has the SHA-256 that manifest and report state",
        "who wrote the files: see C3",
    ),
    "C3": CheckInfo(
        "trust",
        "signatures",
        "holders of the keys given by --trust signed this manifest",
        "that their statements are true",
    ),
    "C4": CheckInfo(
        "recomputation",
        "formats",
        "every JSON file is unambiguous (no duplicate key, no NaN) and fits its schema",
        "that its content is true",
    ),
    "C5": CheckInfo(
        "recomputation",
        "figures",
        "counts, statuses, sums, warnings and rules of the report follow from its tables and the recipe",
        "metrics, norms along the path and latencies: the producer measured them",
    ),
    "C6": CheckInfo(
        "recomputation",
        "graph",
        "no path leads from a removed column to an output; the file has no hidden data, code or second model",
        "which values the serving code passes to the file",
    ),
    "C7": CheckInfo(
        "recomputation",
        "names",
        "every column has one owner; report, recipe, plan, input schema and ONNX file list the same columns",
        "that upstream systems provide them in this order",
    ),
    "C8": CheckInfo(
        "recomputation",
        "weights",
        "the shipped weights have the stated shapes, group norms and counts of parameters and units",
        "that model.onnx was made from the tensors that it does not contain bit for bit",
    ),
    "C9": CheckInfo(
        "recomputation",
        "golden",
        "the model gives the recorded outputs on the recorded rows, in two runtimes if both can; it has "
        "the stated multiply-accumulates",
        "anything, if the producer made both model and rows again",
    ),
    "C10": CheckInfo(
        "recomputation",
        "probes",
        "NaN, Inf and 3e38 in removed columns change no bit of the outputs",
        "other inputs: see C6",
    ),
    "C11": CheckInfo(
        "policy",
        "policy",
        "nothing that the file reads is, looks like or is derived from a name in must_drop; what must_keep "
        "lists is kept; every rule matches something",
        "proxies: other kept columns may carry the same information",
    ),
    "C12": CheckInfo(
        "recomputation",
        "page",
        "report.html and report.md match report.json, and hold no other markup, styles or active content",
        "text and numbers in the pictures, if matplotlib is missing or has another version (incomplete)",
    ),
    "C13": CheckInfo(
        "trust",
        "people",
        "times are in order, no key signed in two roles, and keys of several roles are bound to them",
        "that the clocks of the signers were right",
    ),
    "C14": CheckInfo(
        "trust",
        "lineage",
        "the model is the expected one; the bundle is a successor of the previous one",
        "how the original was trained",
    ),
}
NOT_CHECKED = (
    "The training data, and whether the metrics were measured on them as the report states.",
    "Norms along the path, optimality residuals, latencies, sizes of the original: measured by the producer.",
    "Words of the producer: notes of the data, the purpose, versions, processor and platform.",
    "Whether upstream systems still collect the removed features, or provide the inputs in the stated order.",
    "Whether kept features carry the information of removed ones (proxies).",
    "Times other than that of a verified timestamp: they come from the clocks of producer and signers.",
)


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        id: ``C1`` to ``C14``.
        status: ``skipped``: not requested or not applicable; ``incomplete``: required, but could not run.
        findings: Errors; empty unless the check failed.
        note: What was checked, or why it was not.
        left_out: A sentence on the part that was not checked; empty if there is none.
    """

    id: str
    status: Status
    findings: tuple[Finding, ...] = ()
    note: str = ""
    left_out: str = ""

    @property
    def info(self) -> CheckInfo:
        """Return the description of the check."""
        return CHECKS[self.id]


def make_check(check: str, findings: Sequence[Finding], note: str = "") -> Check:
    """Make the result of a check that ran; it passed if there are no findings."""
    return Check(check, "failed" if findings else "passed", tuple(findings), note)


@dataclass(frozen=True)
class Verdict:
    """The result of a verification.

    Attributes:
        bundle: The folder.
        signature: ``unsigned``, ``signed, not checked`` or who signed.
        model: SHA-256 of ``model.onnx``, for logs; empty if it cannot be read.
        checks: All checks, in order.
        not_checked: What no check can prove, and what was skipped.
    """

    bundle: str
    signature: str
    model: str
    checks: tuple[Check, ...]
    not_checked: tuple[str, ...] = field(default=NOT_CHECKED)

    @property
    def exit_code(self) -> int:
        """0: verified; 1: failed; 3: incomplete; 4: policy violated."""
        failed = {c.info.kind for c in self.checks if c.status == "failed"}
        if failed - {"policy"}:
            return 1
        if failed:
            return 4
        return 3 if any(c.status == "incomplete" for c in self.checks) else 0

    @property
    def result(self) -> str:
        """The verdict in one word."""
        return {0: "verified", 1: "FAILED", 3: "incomplete", 4: "POLICY VIOLATED"}[self.exit_code]


def as_record(verdict: Verdict) -> dict[str, Any]:
    """Convert a verdict to JSON values."""
    return {
        "schema": "glprune.verification/1",
        "bundle": verdict.bundle,
        "result": verdict.result,
        "exit_code": verdict.exit_code,
        "signature": verdict.signature,
        "model_sha256": verdict.model,
        **{kind: _checks(verdict, kind) for kind in ("trust", "recomputation", "policy")},
        "not_checked": list(verdict.not_checked),
    }


def _checks(verdict: Verdict, kind: str) -> list[dict[str, Any]]:
    return [
        {
            "id": check.id,
            "title": check.info.title,
            "status": check.status,
            "note": check.note,
            "findings": [vars(finding) for finding in check.findings],
            "proves": check.info.proves,
            "does_not_prove": check.info.not_proved,
        }
        for check in verdict.checks
        if check.info.kind == kind
    ]


def check_equal(where: str, stated: object, found: object, why: str) -> Iterator[Found]:
    """Yield a finding if a stated value differs from the one found."""
    if stated != found:
        yield where, f"says {stated}, but {why} {found}"


def check_close(where: str, stated: float | None, found: float | None, why: str) -> Iterator[Found]:
    """Like ``check_equal`` for numbers, up to round-off."""
    close = (
        stated is not None and found is not None and abs(stated - found) <= _ROUND_OFF * max(1.0, abs(found))
    )
    if not close:
        yield from check_equal(where, stated, found, why)
