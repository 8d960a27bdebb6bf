"""Read ``regulations.yaml``: which parts of a report are evidence for which rules."""

from __future__ import annotations

import functools
from importlib import resources
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from ruamel.yaml import YAML

from glprune.schema.recipe import Domain, Jurisdiction

_Text = Annotated[str, Field(min_length=1)]
_Date = Annotated[str, Field(pattern=r"^\d{4}(-\d\d(-\d\d)?)?$")]
_Pointer = Annotated[str, Field(pattern=r"^(/[a-z_]+)+$")]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Rule(_Entry):
    """One rule.

    Attributes:
        id: Short, permanent identifier.
        title: Name of the rule and the part of it that applies.
        domains: What models it is about.
        jurisdictions: Where it applies.
        status: Legal status.
        status_date: Date of the status, as precise as the source: a year, a month or a day.
        asks: What the rule requires, in short.
        evidence: JSON pointers into ``report.json``.
        missing: What the rule requires and no section contains.
        unconfirmed: What the sources did not confirm.
        source: The text of the rule itself.
    """

    id: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    title: _Text
    domains: Annotated[list[Domain], Field(min_length=1)]
    jurisdictions: Annotated[list[Jurisdiction], Field(min_length=1)]
    status: _Text
    status_date: _Date
    asks: _Text
    evidence: Annotated[list[_Pointer], Field(min_length=1)]
    missing: _Text
    unconfirmed: list[_Text]
    source: Annotated[str, Field(pattern=r"^https://\S+$")]


class Regulations(_Entry):
    """All of ``regulations.yaml``; ``as_of`` is the day the sources were read."""

    as_of: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]
    rules: Annotated[list[Rule], Field(min_length=1)]


@functools.cache
def regulations() -> Regulations:
    """Return the rules of this version of glprune."""
    text = resources.files("glprune.report").joinpath("regulations.yaml").read_text(encoding="utf-8")
    return Regulations.model_validate(YAML(typ="safe", pure=True).load(text))


def rules_for(domain: Domain | None, jurisdiction: Jurisdiction | None) -> list[Rule]:
    """Return the rules of a domain, in one jurisdiction or in all; none without a domain."""
    return [
        rule
        for rule in regulations().rules
        if domain in rule.domains and (jurisdiction is None or jurisdiction in rule.jurisdictions)
    ]
