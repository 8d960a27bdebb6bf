"""Which lines the picture of the path holds and what it leaves out, as its caption says; no matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from glprune.schema.report import Feature, PathPoint

Norms = NDArray[np.float64]
Status = Literal["kept", "removed"]
MOST = 1000  # lines of one status: a page of many more opens slowly, and nobody tells them apart
_VERTICES = 15_000  # above, lines go from one chosen point to the next


@dataclass(frozen=True)
class PathLines:
    """Group norms along the path of the features of one status.

    Attributes:
        status: Theirs.
        norms: Of the features drawn, one line for each, shape (n_lines, n_points).
        others: How many features have no line.
        band: Least and largest norm of those at each point, shape (2, n_points); None where there are none.
    """

    status: Status
    norms: Norms
    others: int
    band: Norms | None


def drawn_points(points: Sequence[PathPoint], features: int) -> list[int]:
    """Numbers of the points the lines go through; of many features those of the chosen points alone."""
    thin = _thin(points, features)
    return [n for n, p in enumerate(points) if p.norms and (p.selected or not thin)]


def line_collections(points: Sequence[PathPoint], features: Sequence[Feature]) -> list[PathLines]:
    """The lines of removed and of kept features; of more than 1,000, those whose norm is largest anywhere."""
    drawn = [points[n].norms for n in drawn_points(points, len(features))]
    if not drawn:
        return []
    norms = np.array(drawn, dtype=np.float64).reshape(len(drawn), -1).T
    kept = np.array([f.status == "kept" for f in features], dtype=bool)
    return [_traces("removed", norms[~kept]), _traces("kept", norms[kept])]


def _traces(status: Status, norms: Norms) -> PathLines:
    order = np.argsort(-norms.max(axis=1), kind="stable")
    shown, rest = np.sort(order[:MOST]), order[MOST:]
    band = np.stack([norms[rest].min(axis=0), norms[rest].max(axis=0)]) if len(rest) else None
    return PathLines(status, norms[shown], len(rest), band)


def caption(points: Sequence[PathPoint], features: Sequence[Feature]) -> str:
    """What the picture shows, and what it does not."""
    counts = {status: sum(f.status == status for f in features) for status in ("kept", "removed")}
    many = {status: count for status, count in counts.items() if count > MOST}
    said = "one line for each feature"
    if many:
        whose = " and ".join(f"{count:,} {status} features" for status, count in many.items())
        said += (
            f"; of the {whose} only the {MOST:,} with the largest norms{' each' if len(many) > 1 else ''}, "
            "all others in the shaded band"
        )
    straight = " Lines go straight from one chosen point to the next." if _thin(points, len(features)) else ""
    return f"Regularisation path: {said}.{straight}"


def _thin(points: Sequence[PathPoint], features: int) -> bool:
    return features * len(points) > _VERTICES
