"""What a run tells while it works; the command line turns these into lines or bars."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glprune.schema.report import PathPoint


@dataclass(frozen=True)
class Stage:
    """A stage of the run begins."""

    name: str
    detail: str = ""


@dataclass(frozen=True)
class PointDone:
    """A point of the regularisation path is finished; ``of`` is how many the grid has."""

    index: int
    of: int
    point: PathPoint


@dataclass(frozen=True)
class Progress:
    """One of many like parts of a stage is finished, in whatever order; ``what`` names them."""

    what: str
    done: int
    of: int


@dataclass(frozen=True)
class Notice:
    """Something the user should read, such as a column that is constant."""

    text: str


Event = Stage | PointDone | Progress | Notice
Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """Listen to nothing."""
