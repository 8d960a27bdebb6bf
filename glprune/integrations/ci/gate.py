"""Hold a bundle's report against limits, for a step of a pipeline that stops what does not keep them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from glprune.audit.checks.policy import ancestors, check_policy
from glprune.audit.verify import integrity_findings, open_bundle
from glprune.errors import UsageError, did_you_mean
from glprune.integrations.ci.outcome import Annotation, Outcome, TestCase
from glprune.schema.report import Feature, Policy, Report

Status = Literal["passed", "failed", "not measured"]


@dataclass(frozen=True)
class Limits:
    """What a bundle must keep.

    Attributes:
        max_drop: Metric -> how much worse than the original's it may be on the test split.
        must_drop: Features or columns that must be gone, with all that is derived from them.
        must_keep: Features or columns that must be there.
        max_features: Most input features that may be left.
        min_stability: Least share of the resamples in which each kept feature must have been kept.
        max_latency_ratio: Most the shipped file's latency over the original's, at every measured batch.
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
    """One limit and whether it is kept; ``text`` has the figures."""

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
        """0 all passed, 1 one failed, 3 none failed and one could not be judged."""
        found = {gate.status for gate in self.gates}
        return 1 if "failed" in found else 3 if "not measured" in found else 0

    @property
    def result(self) -> str:
        """The decision in a word."""
        return {0: "passed", 1: "FAILED", 3: "incomplete"}[self.exit_code]


def judge(bundle: Path, limits: Limits) -> Decision:
    """Hold a bundle against limits; its files are held against its manifest first.

    A bundle whose files are not those of its manifest fails, whatever its report says. Signatures and figures
    are ``glprune verify``'s to check.

    Raises:
        UnreadableError: It is no bundle.
        UsageError: No limit is given, or one names a metric or a feature the bundle does not have.
    """
    if not limits:
        raise UsageError("no gate is given; see glprune gate --help.")
    opened = open_bundle(bundle)
    findings = integrity_findings(opened)
    seal = (
        Gate("manifest", "failed", str(findings[0]))
        if findings
        else Gate("manifest", "passed", "every file is as sealed")
    )
    if opened.report is None:
        return Decision(str(bundle), (seal,))
    return Decision(str(bundle), (seal, *_gates(opened.report, limits)))


def as_record(decision: Decision) -> dict[str, Any]:
    """A decision as JSON values."""
    return {
        "schema": "glprune.gate/1",
        "bundle": decision.bundle,
        "result": decision.result,
        "exit_code": decision.exit_code,
        "gates": [vars(gate) for gate in decision.gates],
    }


def as_outcome(decision: Decision) -> Outcome:
    """A decision in the words of pipelines."""
    from glprune.report.markdown import code, text

    levels: dict[Status, Literal["error", "warning"]] = {"failed": "error", "not measured": "warning"}
    remarks = [
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
    return Outcome("gate", tuple(remarks), tuple(cases), summary=summary)


def _gates(report: Report, limits: Limits) -> Iterator[Gate]:
    for name, most in limits.max_drop.items():
        yield _drop(report, name, most)
    yield from _named(report, limits)
    kept = [f for f in report.features if f.status == "kept"]
    if limits.max_features is not None:
        yield _at_most("max-features", len(kept), limits.max_features, "features are kept")
    if limits.min_stability is not None:
        yield _stable(report, kept, limits.min_stability)
    if limits.max_latency_ratio is not None:
        yield _latency(report, limits.max_latency_ratio)


def _drop(report: Report, name: str, most: float) -> Gate:
    known = {metric.name: metric for metric in report.performance}
    if name not in known:
        raise UsageError(f"--max-drop {name}: no metric of this bundle; it has {', '.join(known)}.")
    metric = known[name]
    drop = metric.original - metric.final if metric.higher_is_better else metric.final - metric.original
    figures = f"{metric.original:.4f} before, {metric.final:.4f} shipped: {drop:+.4f} worse, at most {most:g}"
    return Gate(f"max-drop {name}", "passed" if drop <= most else "failed", figures)


def _named(report: Report, limits: Limits) -> Iterator[Gate]:
    rules = report.policy or Policy(must_drop=[])
    _check_names(report, rules, limits)
    for option, names in (("must_drop", limits.must_drop), ("must_keep", limits.must_keep)):
        for name in names:
            empty: dict[str, list[str]] = {"must_drop": [], "must_keep": [], "protected": []}
            one = rules.model_copy(update=empty | {option: [name]})
            broken = check_policy(report, one, "gate")
            good = "it and what is made of it are gone" if option == "must_drop" else "it is kept"
            title = f"{option.replace('_', '-')} {name}"
            yield Gate(title, "failed" if broken else "passed", broken[0].what if broken else good)


def _check_names(report: Report, rules: Policy, limits: Limits) -> None:
    """Refuse a name that is nowhere in the bundle: a gate for it would pass whatever the model reads."""
    known = {name for feature in report.features for name in ancestors(feature, rules)}
    for option, names in (("must-drop", limits.must_drop), ("must-keep", limits.must_keep)):
        for name in names:
            if name not in known:
                guess = did_you_mean(name, sorted(known))
                raise UsageError(f"--{option} {name!r}: no feature or column of this bundle.{guess}")


def _stable(report: Report, kept: Sequence[Feature], least: float) -> Gate:
    if report.stability is None:
        return Gate(
            "min-stability", "not measured", "the recipe has no stability section; add one and run again"
        )
    shares = {f.name: f.kept_share for f in kept if f.kept_share is not None}
    low = sorted((share, name) for name, share in shares.items() if share < least)
    if not low:
        return Gate(
            "min-stability", "passed", f"all {len(shares)} were kept in at least {least:.0%} of the resamples"
        )
    named = ", ".join(f"{name!r} {share:.0%}" for share, name in low[:5])
    return Gate(
        "min-stability", "failed", f"{len(low)} kept features below {least:.0%} of the resamples: {named}"
    )


def _latency(report: Report, most: float) -> Gate:
    ratios = {time.batch: 1 / time.speedup for time in report.latency if time.speedup > 0}
    if not ratios:
        return Gate("max-latency-ratio", "not measured", "the report has no latency")
    worst = max(ratios, key=lambda batch: ratios[batch])
    text = f"shipped over original is {ratios[worst]:.2f} at batch {worst}, at most {most:g}"
    return Gate("max-latency-ratio", "passed" if ratios[worst] <= most else "failed", text)


def _at_most(name: str, found: int, most: int, what: str) -> Gate:
    return Gate(name, "passed" if found <= most else "failed", f"{found} {what}, at most {most}")
