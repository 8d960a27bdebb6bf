"""Select the lines in the picture of the regularisation path, and write its caption; needs no matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from glprune._wording import counted

if TYPE_CHECKING:
    from glprune.schema.report import Feature, PathPoint

Norms = NDArray[np.float64]
Status = Literal["kept", "removed"]
MOST = 1000  # lines of one status: with more, a page opens slowly and lines cannot be distinguished
_VERTICES = 15_000  # above this number lines connect only the chosen points


@dataclass(frozen=True)
class PathLines:
    """Group norms along the path of the features of one status.

    Attributes:
        status: Status of the features.
        norms: Norms of the features drawn, one line for each, shape (n_lines, n_points).
        others: Number of features without a line.
        band: Smallest and largest norm of those at each point, shape (2, n_points), or None.
    """

    status: Status
    norms: Norms
    others: int
    band: Norms | None


def drawn_points(points: Sequence[PathPoint], features: int) -> list[int]:
    """Return the indices of the points drawn; with many features only the chosen points."""
    thin = _thin(points, features)
    return [n for n, p in enumerate(points) if p.norms and (p.selected or not thin)]


def line_collections(points: Sequence[PathPoint], features: Sequence[Feature]) -> list[PathLines]:
    """Return the lines of removed and of kept features; of over 1,000, those with the largest norms."""
    drawn = [points[n].norms for n in drawn_points(points, len(features))]
    if not drawn:
        return []
    norms = np.array(drawn, dtype=np.float64).reshape(len(drawn), -1).T
    kept = np.array([f.status == "kept" for f in features], dtype=bool)
    return [_lines("removed", norms[~kept]), _lines("kept", norms[kept])]


def _lines(status: Status, norms: Norms) -> PathLines:
    order = np.argsort(-norms.max(axis=1), kind="stable")
    shown, rest = np.sort(order[:MOST]), order[MOST:]
    band = np.stack([norms[rest].min(axis=0), norms[rest].max(axis=0)]) if len(rest) else None
    return PathLines(status, norms[shown], len(rest), band)


def caption(points: Sequence[PathPoint], features: Sequence[Feature]) -> str:
    """Describe what the picture shows and what it leaves out."""
    counts = {status: sum(f.status == status for f in features) for status in ("kept", "removed")}
    many = {status: count for status, count in counts.items() if count > MOST}
    text = "one line for each feature"
    if many:
        whose = " and ".join(counted(count, f"{status} feature") for status, count in many.items())
        text += (
            f"; of the {whose} only the {MOST:,} with the largest norms{' each' if len(many) > 1 else ''}, "
            "all others are in the shaded band"
        )
    straight = " Lines connect only the chosen points." if _thin(points, len(features)) else ""
    return f"Regularisation path: {text}.{straight}"


def _thin(points: Sequence[PathPoint], features: int) -> bool:
    return features * len(points) > _VERTICES
