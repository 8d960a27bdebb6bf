"""The numbered sections of the report page, what of ``report.json`` each shows, and the rules they serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup
from pydantic import BaseModel

from glprune.report.regulations import Rule, regulations

if TYPE_CHECKING:
    from glprune.schema.report import Report


@dataclass(frozen=True)
class Section:
    """One section of evidence.

    Attributes:
        id: Its anchor.
        number: Its place on this page, from 1.
        title: Its heading.
        shows: The keys of ``report.json`` it is made from.
    """

    id: str
    number: int
    title: str
    shows: tuple[str, ...]

    @property
    def heading(self) -> Markup:
        """The heading with its number, as a target for links."""
        return Markup('<h2 id="{}"><span class="number">{}</span> {}</h2>').format(
            self.id, self.number, self.title
        )


_ALL = (
    ("removed", "Removed features", ("features",)),
    ("performance", "Performance on the test split", ("performance", "agreement", "task")),
    ("baselines", "Against simpler selections", ("baselines",)),
    ("policy", "Policy, decisions and protected groups", ("policy", "reason_codes", "segments", "proxies")),
    ("size", "Size and speed", ("size", "latency", "widths")),
    ("kept", "Kept features", ("features",)),
    ("chosen", "How the features were chosen", ("penalty", "path", "selection", "stages", "refit")),
    ("stability", "How stable the choice is", ("stability",)),
    ("costs", "What dropping one more feature costs", ("drop_costs",)),
    ("removal", "How removal was certified", ("removal", "hidden")),
    ("file", "The shipped file", ("export", "quantized")),
    ("data", "Data", ("data",)),
    ("provenance", "Provenance", ("digests", "run", "timing", "schema")),
    ("rules", "Which sections serve which rules", ()),
)
_OPTIONAL = {"baselines": "baselines", "policy": "policy", "stability": "stability", "costs": "drop_costs"}


def sections(report: Report) -> dict[str, Section]:
    """The sections of one report by their ids, in order; what was not measured has none."""
    titles = {"performance": "Agreement with the original network on the test split"}
    renamed = titles if report.task == "distillation" else {}
    there = [s for s in _ALL if s[0] not in _OPTIONAL or getattr(report, _OPTIONAL[s[0]]) is not None]
    return {
        id: Section(id, number, renamed.get(id, title), shows)
        for number, (id, title, shows) in enumerate(there, 1)
    }


@dataclass(frozen=True)
class RuleEvidence:
    """One rule beside one report.

    Attributes:
        rule: The rule.
        sections: Where its evidence stands, in order.
        front: Whether some of it stands on the first page.
        absent: JSON pointers of evidence this report does not hold.
    """

    rule: Rule
    sections: list[Section]
    front: bool
    absent: list[str]


def evidence_for(report: Report, shown: Sequence[Section]) -> list[RuleEvidence]:
    """Every rule with the sections of this report that are evidence for it."""
    return [_served(report, shown, rule) for rule in regulations().rules]


def _served(report: Report, shown: Sequence[Section], rule: Rule) -> RuleEvidence:
    held = [pointer for pointer in rule.evidence if _holds(report, pointer)]
    keys = {pointer.split("/")[1] for pointer in held}
    return RuleEvidence(
        rule,
        sections=[s for s in shown if keys & {*s.shows}],
        front=bool(keys - {key for s in shown for key in s.shows}),
        absent=[pointer for pointer in rule.evidence if pointer not in held],
    )


def _holds(report: Report, pointer: str) -> bool:
    """Whether a report has something but null at a JSON pointer."""
    found: object = report
    for key in pointer.split("/")[1:]:
        if isinstance(found, dict):
            found = found.get(key)
        elif isinstance(found, BaseModel):
            found = getattr(found, "schema_" if key == "schema" else key)
        if found is None:
            return False
    return True
