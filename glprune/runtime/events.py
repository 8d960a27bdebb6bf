"""Events that a run reports; the command line prints them as lines or progress bars."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glprune.schema.report import PathPoint


@dataclass(frozen=True)
class Stage:
    """A stage of the run starts."""

    name: str
    detail: str = ""


@dataclass(frozen=True)
class PointDone:
    """A point of the regularisation path is finished; ``of`` is the number of points of the grid."""

    index: int
    of: int
    point: PathPoint


@dataclass(frozen=True)
class Progress:
    """One of the similar parts of a stage is finished, in any order; ``what`` names them."""

    what: str
    done: int
    of: int


@dataclass(frozen=True)
class Notice:
    """A message the user should read, for example about a constant column."""

    text: str


@dataclass(frozen=True)
class OriginalMeasured:
    """The metrics of the network as it was loaded, on one split."""

    split: str
    rows: int
    metrics: Mapping[str, float]


Event = Stage | PointDone | Progress | Notice | OriginalMeasured
Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """Ignore an event."""
