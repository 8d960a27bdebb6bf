"""The numbered sections of the report page: the keys of ``report.json`` and the rules behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup
from pydantic import BaseModel

from glprune.report.regulations import Rule, rules_for

if TYPE_CHECKING:
    from glprune.schema.report import Report


@dataclass(frozen=True)
class Section:
    """One section of evidence.

    Attributes:
        id: Its anchor.
        number: Its number on this page, from 1.
        title: Its heading.
        shows: The keys of ``report.json`` it shows.
    """

    id: str
    number: int
    title: str
    shows: tuple[str, ...]

    @property
    def heading(self) -> Markup:
        """Return the heading with its number, as a link target."""
        return Markup('<h2 id="{}"><span class="number">{}</span> {}</h2>').format(
            self.id, self.number, self.title
        )


_ALL = (
    ("removed", "Removed features", ("features",)),
    ("performance", "Performance on the test split", ("performance", "agreement", "task")),
    ("baselines", "Comparison with simpler selections", ("baselines",)),
    ("frontier", "Networks of other sizes", ("frontier",)),
    ("policy", "Policy, decisions and protected groups", ("policy", "reason_codes", "segments", "proxies")),
    ("size", "Size and speed", ("size", "latency", "widths")),
    ("kept", "Kept features", ("features",)),
    ("chosen", "How features were selected", ("penalty", "path", "selection", "stages", "refit")),
    ("stability", "Stability of the selection", ("stability",)),
    ("costs", "Cost of dropping one more feature", ("drop_costs",)),
    ("removal", "Certification of the removal", ("removal", "hidden")),
    ("file", "The shipped file", ("export", "quantized")),
    ("data", "Data", ("data",)),
    ("provenance", "Provenance", ("digests", "run", "timing", "schema")),
    ("rules", "Evidence for regulations", ("domain", "jurisdiction")),
)
_OPTIONAL = {
    "baselines": "baselines",
    "frontier": "frontier",
    "policy": "policy",
    "stability": "stability",
    "costs": "drop_costs",
    "rules": "domain",
}


def sections(report: Report) -> dict[str, Section]:
    """Return the sections of a report by id, in order; what was not measured has no section."""
    titles = {"performance": "Agreement with the original network on the test split"}
    renamed = titles if report.task == "distillation" else {}
    there = [s for s in _ALL if s[0] not in _OPTIONAL or getattr(report, _OPTIONAL[s[0]]) is not None]
    return {
        id: Section(id, number, renamed.get(id, title), shows)
        for number, (id, title, shows) in enumerate(there, 1)
    }


@dataclass(frozen=True)
class RuleEvidence:
    """The evidence of one report for one rule.

    Attributes:
        rule: The rule.
        sections: The sections with its evidence, in order.
        front: Whether some of it is on the first page.
        absent: JSON pointers of evidence that this report lacks.
    """

    rule: Rule
    sections: list[Section]
    front: bool
    absent: list[str]


def evidence_for(report: Report, shown: Sequence[Section]) -> list[RuleEvidence]:
    """Return the rules that the recipe asked for, each with the sections that are evidence for it."""
    return [_evidence(report, shown, rule) for rule in rules_for(report.domain, report.jurisdiction)]


def _evidence(report: Report, shown: Sequence[Section], rule: Rule) -> RuleEvidence:
    held = [pointer for pointer in rule.evidence if _holds(report, pointer)]
    keys = {pointer.split("/")[1] for pointer in held}
    return RuleEvidence(
        rule,
        sections=[s for s in shown if keys & {*s.shows}],
        front=bool(keys - {key for s in shown for key in s.shows}),
        absent=[pointer for pointer in rule.evidence if pointer not in held],
    )


def _holds(report: Report, pointer: str) -> bool:
    """Whether a report has a value other than null at a JSON pointer."""
    found: object = report
    for key in pointer.split("/")[1:]:
        if isinstance(found, dict):
            found = found.get(key)
        elif isinstance(found, BaseModel):
            found = getattr(found, "schema_" if key == "schema" else key)
        if found is None:
            return False
    return True
