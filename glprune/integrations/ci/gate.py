"""Compare the report of a bundle with limits, for a pipeline step that stops a bundle beyond them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from glprune._wording import counted
from glprune.audit.checks.policy import ancestors, check_policy, readable_names
from glprune.audit.parsed_bundle import open_bundle
from glprune.audit.verify import integrity_findings
from glprune.errors import UsageError, did_you_mean
from glprune.integrations.ci.outcome import Annotation, Outcome, TestCase
from glprune.report.markdown import code, text
from glprune.report.uncertainty import change_of, in_parentheses
from glprune.schema.column_table import column_tables
from glprune.schema.report import Feature, Policy, Report

Status = Literal["passed", "failed", "not measured"]


@dataclass(frozen=True)
class Limits:
    """The limits of a gate.

    Attributes:
        max_drop: Metric -> how much it may worsen on the test split, compared with the original.
        must_drop: Features or columns that must be removed, with everything derived from them.
        must_keep: Features or columns that must be kept.
        max_features: Largest number of kept features.
        min_stability: Smallest share of resamples that must have kept each kept feature.
        max_latency_ratio: Largest latency of the shipped file relative to the original, at any batch size.
    """

    max_drop: Mapping[str, float] = field(default_factory=dict)
    must_drop: Sequence[str] = ()
    must_keep: Sequence[str] = ()
    max_features: int | None = None
    min_stability: float | None = None
    max_latency_ratio: float | None = None

    def __bool__(self) -> bool:
        numbers = (self.max_features, self.min_stability, self.max_latency_ratio)
        return bool(self.max_drop or self.must_drop or self.must_keep) or any(n is not None for n in numbers)


@dataclass(frozen=True)
class Gate:
    """One limit and the result; ``text`` has the figures."""

    name: str
    status: Status
    text: str


@dataclass(frozen=True)
class Decision:
    """All gates of a bundle."""

    bundle: str
    gates: tuple[Gate, ...]

    @property
    def exit_code(self) -> int:
        """0: all passed; 1: one failed; 3: none failed and one could not be measured."""
        found = {gate.status for gate in self.gates}
        return 1 if "failed" in found else 3 if "not measured" in found else 0

    @property
    def result(self) -> str:
        """The decision in one word."""
        return {0: "passed", 1: "FAILED", 3: "incomplete"}[self.exit_code]


def judge(bundle: Path, limits: Limits) -> Decision:
    """Check a bundle against its manifest, then against limits.

    A bundle whose files do not match its manifest fails, whatever its report says. ``glprune verify`` checks
    signatures and figures.

    Raises:
        UnreadableError: The folder is not a bundle.
        UsageError: No limit is given, or one names a metric or feature that the bundle does not have.
    """
    if not limits:
        raise UsageError("no gate is given; see glprune gate --help.")
    opened = open_bundle(bundle)
    findings = integrity_findings(opened)
    manifest = (
        Gate("manifest", "failed", str(findings[0]))
        if findings
        else Gate("manifest", "passed", "every file matches the manifest")
    )
    if opened.report is None:
        return Decision(str(bundle), (manifest,))
    return Decision(str(bundle), (manifest, *_gates(opened.report, limits)))


def as_record(decision: Decision) -> dict[str, Any]:
    """Convert a decision to JSON values."""
    return {
        "schema": "glprune.gate/1",
        "bundle": decision.bundle,
        "result": decision.result,
        "exit_code": decision.exit_code,
        "gates": [vars(gate) for gate in decision.gates],
    }


def as_outcome(decision: Decision) -> Outcome:
    """Convert a decision to annotations, test cases and a summary."""
    levels: dict[Status, Literal["error", "warning"]] = {"failed": "error", "not measured": "warning"}
    annotations = [
        Annotation(levels[g.status], f"gate {g.name}", g.text) for g in decision.gates if g.status != "passed"
    ]
    cases = [
        TestCase(
            g.name,
            failure=g.text if g.status == "failed" else None,
            skipped=g.text if g.status == "not measured" else None,
        )
        for g in decision.gates
    ]
    rows = [f"| {code(g.name)} | {g.status} | {text(g.text)} |" for g in decision.gates]
    summary = "\n".join([f"### Gate: {decision.result}", "", "| Gate | | |", "|---|---|---|", *rows, ""])
    return Outcome("gate", tuple(annotations), tuple(cases), summary=summary)


def _gates(report: Report, limits: Limits) -> Iterator[Gate]:
    for name, max_drop in limits.max_drop.items():
        yield _max_drop(report, name, max_drop)
    yield from _named_features(report, limits)
    kept = [f for f in report.features if f.status == "kept"]
    if limits.max_features is not None:
        yield _max_features(len(kept), limits.max_features)
    if limits.min_stability is not None:
        yield min_stability(report, kept, limits.min_stability)
    if limits.max_latency_ratio is not None:
        yield _max_latency_ratio(report, limits.max_latency_ratio)


def _max_drop(report: Report, name: str, limit: float) -> Gate:
    known = {metric.name: metric for metric in report.performance}
    if name not in known:
        raise UsageError(f"--max-drop {name}: not a metric of this bundle; it has {', '.join(known)}.")
    metric = known[name]
    drop = metric.original - metric.final if metric.higher_is_better else metric.final - metric.original
    text = f"{metric.original:.4f} before, {metric.final:.4f} shipped: {drop:+.4f} worse, at most {limit:g}"
    text += in_parentheses(change_of(metric))
    return Gate(f"max-drop {name}", "passed" if drop <= limit else "failed", text)


def _named_features(report: Report, limits: Limits) -> Iterator[Gate]:
    rules = report.policy or Policy(must_drop=[])
    _check_names(report, rules, limits)
    read = readable_names(report, column_tables(report, None), None)
    for option, names in (("must_drop", limits.must_drop), ("must_keep", limits.must_keep)):
        for name in names:
            empty: dict[str, list[str]] = {"must_drop": [], "must_keep": [], "protected": []}
            rule = rules.model_copy(update=empty | {option: [name]})
            violations = check_policy(read, rule, "gate")
            text = "it is kept" if option == "must_keep" else "it and everything derived from it are removed"
            title = f"{option.replace('_', '-')} {name}"
            yield Gate(
                title, "failed" if violations else "passed", violations[0].what if violations else text
            )


def _check_names(report: Report, rules: Policy, limits: Limits) -> None:
    """Reject a name that the bundle does not contain: its gate would pass whatever the model reads."""
    known = {name for feature in report.features for name in ancestors(feature, rules)}
    for option, names in (("must-drop", limits.must_drop), ("must-keep", limits.must_keep)):
        for name in names:
            if name not in known:
                guess = did_you_mean(name, sorted(known))
                raise UsageError(f"--{option} {name!r}: not a feature or column of this bundle.{guess}")


def min_stability(report: Report, kept: Sequence[Feature], limit: float) -> Gate:
    """Require that each kept feature was kept in at least a share ``limit`` of the resamples."""
    if report.stability is None:
        return Gate(
            "min-stability", "not measured", "the recipe has no stability section; add one and run again"
        )
    shares = {f.name: f.kept_share for f in kept if f.kept_share is not None}
    low = sorted((share, name) for name, share in shares.items() if share < limit)
    if not low:
        return Gate(
            "min-stability", "passed", f"all {len(shares)} were kept in at least {limit:.0%} of the resamples"
        )
    named = ", ".join(f"{name!r} {share:.0%}" for share, name in low[:5])
    return Gate(
        "min-stability", "failed", f"{len(low)} kept features below {limit:.0%} of the resamples: {named}"
    )


def _max_latency_ratio(report: Report, limit: float) -> Gate:
    ratios = {time.batch: 1 / time.speedup for time in report.latency if time.speedup > 0}
    if not ratios:
        return Gate("max-latency-ratio", "not measured", "the report has no latency")
    worst = max(ratios, key=lambda batch: ratios[batch])
    text = f"shipped over original is {ratios[worst]:.2f} at batch size {worst}, at most {limit:g}"
    return Gate("max-latency-ratio", "passed" if ratios[worst] <= limit else "failed", text)


def _max_features(found: int, limit: int) -> Gate:
    return Gate(
        "max-features",
        "passed" if found <= limit else "failed",
        f"{counted(found, 'feature')} kept, at most {limit:,}",
    )
