"""Which sections of a report serve as evidence for which rules: ``regulations.yaml``, read strictly."""

from __future__ import annotations

import functools
from importlib import resources
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from ruamel.yaml import YAML

_Text = Annotated[str, Field(min_length=1)]
_Date = Annotated[str, Field(pattern=r"^\d{4}(-\d\d(-\d\d)?)?$")]
_Pointer = Annotated[str, Field(pattern=r"^(/[a-z_]+)+$")]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Source(_Entry):
    """Where a rule was read: in its own text or its author's (primary), or in somebody's account of it."""

    kind: Literal["primary", "secondary"]
    url: Annotated[str, Field(pattern=r"^https://\S+$")]
    note: str = ""


class Rule(_Entry):
    """One rule.

    Attributes:
        id: Short and lasting.
        title: Its name and the part of it that is meant.
        jurisdiction: Where, and for whom.
        status: Its standing.
        status_date: Since when that is so, as exact as the source: a year, a month or a day.
        asks: What it asks, in short.
        evidence: JSON pointers into ``report.json``.
        missing: What it asks that no section holds.
        unconfirmed: What the sources did not confirm.
        sources: Where it was read.
    """

    id: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    title: _Text
    jurisdiction: _Text
    status: _Text
    status_date: _Date
    asks: _Text
    evidence: Annotated[list[_Pointer], Field(min_length=1)]
    missing: _Text
    unconfirmed: list[_Text]
    sources: Annotated[list[Source], Field(min_length=1)]


class Regulations(_Entry):
    """All of ``regulations.yaml``; ``as_of`` is the day its facts were read."""

    as_of: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]
    rules: Annotated[list[Rule], Field(min_length=1)]


@functools.cache
def regulations() -> Regulations:
    """The rules that ship with this version."""
    text = resources.files("glprune.report").joinpath("regulations.yaml").read_text(encoding="utf-8")
    return Regulations.model_validate(YAML(typ="safe", pure=True).load(text))
