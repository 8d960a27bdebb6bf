"""``frontier.json``: the steps of a search, with which a bundle ships another point of its frontier."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from glprune.schema.report import Record


class SearchStep(Record):
    """The result of one step; its tensors are in the file of its point, as ``<number>/<name>``."""

    name: str = Field(description="kind of the step")
    key: dict[str, Any] = Field(description="arguments of the step")
    values: dict[str, Any] = Field(description="its result")


class StoredPoint(Record):
    """The steps from the point before to this one."""

    size: int = Field(ge=1, description="number of features asked for")
    steps: list[SearchStep] = Field(description="in the order in which they were made")


class StoredFrontier(Record):
    """All of ``frontier.json``."""

    schema_: Literal["glprune.frontier/1"] = Field("glprune.frontier/1", alias="schema")
    recipe: str | None = Field(description="path of the recipe from the bundle; null: made in Python")
    model: str = Field(description="path of the trained weights from the bundle")
    points: list[StoredPoint] = Field(description="in the order in which they were found, largest first")
