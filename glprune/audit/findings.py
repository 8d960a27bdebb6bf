"""What checks say: findings, their checks, the verdict and its exit code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from glprune.errors import GlpruneError

_ROUND_OFF = 1e-9  # the last digits of a sum depend on its order
Found = tuple[str, str]
"""A JSON pointer into the report and what is wrong there."""
Status = Literal["passed", "failed", "incomplete", "skipped"]
Kind = Literal["trust", "recomputation", "policy"]


class UnreadableError(GlpruneError):
    """The folder is not a bundle this version can read."""

    exit_code = 5


@dataclass(frozen=True)
class Finding:
    """One thing that does not hold.

    Attributes:
        file: The file it is about, relative to the bundle.
        where: JSON pointer, node, tensor or input within the file; may be empty.
        what: What was found and what was expected.
    """

    file: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}{f' {self.where}' if self.where else ''}: {self.what}"


@dataclass(frozen=True)
class CheckInfo:
    """What a check is about.

    Attributes:
        kind: ``trust`` rests on keys, ``policy`` on rules; ``recomputation`` on the files alone.
        title: In a few words.
        proves: What holds where it passed.
        not_proved: What may be wrong all the same.
    """

    kind: Kind
    title: str
    proves: str
    not_proved: str


SUBJECTS: dict[str, CheckInfo] = {
    "C1": CheckInfo(
        "recomputation",
        "files",
        "the folder holds exactly the files of the manifest, plain files of a bearable size",
        "that they say the truth",
    ),
    "C2": CheckInfo(
        "recomputation",
        "hashes",
        "every file is the one the manifest and the report name",
        "who wrote them: that is C3",
    ),
    "C3": CheckInfo(
        "trust",
        "signatures",
        "holders of the keys given by --trust signed this manifest",
        "that they were right",
    ),
    "C4": CheckInfo(
        "recomputation",
        "formats",
        "every JSON file has one reading (no duplicate key, no NaN) and fits its schema",
        "its contents",
    ),
    "C5": CheckInfo(
        "recomputation",
        "figures",
        "every count, status and sum of the report follows from its own tables, plan, weights and recipe",
        "metrics, norms along the path and latencies: they are the producer's measurements",
    ),
    "C6": CheckInfo(
        "recomputation",
        "graph",
        "no path leads from a removed column to an output; no hidden data, code or second model is inside",
        "what the serving code feeds to the file",
    ),
    "C7": CheckInfo(
        "recomputation",
        "names",
        "report, plan, contract and ONNX file list the same columns in the same order",
        "that upstream systems fill them in this order",
    ),
    "C8": CheckInfo(
        "recomputation",
        "weights",
        "the shipped weights have the stated shapes, counts and group norms",
        "that model.onnx was made from those tensors that are not in it bit for bit",
    ),
    "C9": CheckInfo(
        "recomputation",
        "golden",
        "the model gives the recorded outputs on the recorded rows, in two runtimes where both can run it",
        "anything, where model and rows were both made anew by their producer",
    ),
    "C10": CheckInfo(
        "recomputation",
        "probes",
        "NaN, Inf and 3e38 in removed columns change no bit of the outputs",
        "inputs that were not tried: C6 covers those",
    ),
    "C11": CheckInfo(
        "policy",
        "policy",
        "no kept column is, or is derived from, a feature that must go; none that must stay is gone",
        "proxies: other kept columns may carry the same information",
    ),
    "C12": CheckInfo(
        "recomputation",
        "page",
        "report.html and report.md say what report.json says",
        "the pictures, where matplotlib or its version differs",
    ),
    "C13": CheckInfo(
        "trust",
        "people",
        "times are in order and no one signed in two roles with one key",
        "the clocks of the signers",
    ),
    "C14": CheckInfo(
        "trust",
        "lineage",
        "the model is the expected one; the bundle follows the previous one",
        "how the original was trained",
    ),
}
NOT_CHECKED = (
    "The training data, and whether the metrics were measured on them as the report says.",
    "Norms along the path, optimality residuals, multiply-accumulates and latencies: the producer's word.",
    "Whether systems upstream still collect the removed features or fill the inputs in the stated order.",
    "Whether kept features carry the information of removed ones (proxies).",
    "Times: they come from the producer's and the signers' clocks.",
)


@dataclass(frozen=True)
class Check:
    """One check and its outcome.

    Attributes:
        id: ``C1`` to ``C14``.
        status: ``skipped`` was not asked for or does not apply; ``incomplete`` should have run and could not.
        findings: What does not hold; empty unless failed.
        note: What was checked, or why not.
    """

    id: str
    status: Status
    findings: tuple[Finding, ...] = ()
    note: str = ""

    @property
    def info(self) -> CheckInfo:
        """What the check is about."""
        return SUBJECTS[self.id]


def make_check(check: str, findings: Sequence[Finding], note: str = "") -> Check:
    """A check that ran: passed where it found nothing."""
    return Check(check, "failed" if findings else "passed", tuple(findings), note)


@dataclass(frozen=True)
class Verdict:
    """What verification found.

    Attributes:
        bundle: The folder.
        signature: ``unsigned``, ``signed, not checked`` or who signed.
        model: SHA-256 of ``model.onnx``, to be put in logs; empty where it cannot be read.
        checks: All checks, in order.
        not_checked: What nothing here can prove, and what was skipped.
    """

    bundle: str
    signature: str
    model: str
    checks: tuple[Check, ...]
    not_checked: tuple[str, ...] = field(default=NOT_CHECKED)

    @property
    def exit_code(self) -> int:
        """0 verified, 1 failed, 3 incomplete, 4 policy violated."""
        failed = {c.info.kind for c in self.checks if c.status == "failed"}
        if failed - {"policy"}:
            return 1
        if failed:
            return 4
        return 3 if any(c.status == "incomplete" for c in self.checks) else 0

    @property
    def result(self) -> str:
        """The verdict in a word."""
        return {0: "verified", 1: "FAILED", 3: "incomplete", 4: "POLICY VIOLATED"}[self.exit_code]


def as_record(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON values."""
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
    """Tell that a value is another than the one found."""
    if stated != found:
        yield where, f"says {stated}, but {why} {found}"


def check_close(where: str, stated: float | None, found: float | None, why: str) -> Iterator[Found]:
    """The same for numbers, but for round-off."""
    close = (
        stated is not None and found is not None and abs(stated - found) <= _ROUND_OFF * max(1.0, abs(found))
    )
    if not close:
        yield from check_equal(where, stated, found, why)
