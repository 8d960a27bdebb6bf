"""Find candidates, compare them, and choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from glprune.runtime.events import Listener, Stage
from glprune.search.portfolio.candidates import Candidate, by_magnitude, score_candidates
from glprune.search.portfolio.elimination import Support, eliminate
from glprune.search.portfolio.folds import fold_jobs

if TYPE_CHECKING:
    from glprune.search.job import Job

PATH, ELIMINATION, MAGNITUDE = "the regularisation path", "backward elimination", "group magnitude"


@dataclass(frozen=True)
class Competition:
    """The candidates of a search.

    Attributes:
        candidates: In order of how they were found, the path first.
        best: The chosen one.
        folds: Number of folds they were compared on; 1 is the validation split.
    """

    candidates: tuple[Candidate, ...]
    best: Candidate
    folds: int


def compete(begin: Job, path: Support, size: int, listener: Listener) -> Competition:
    """Find and compare candidates of a size.

    Args:
        begin: The job of the network that the candidates are found in and scored from.
        path: The features that the regularisation path keeps.
        size: Number of features.
        listener: Receives the progress.
    """
    listener(Stage("candidates", f"comparing other sets of {size} features"))
    jobs = fold_jobs(begin)
    supports = {
        PATH: path,
        ELIMINATION: eliminate(jobs, [size])[size],
        MAGNITUDE: by_magnitude(begin, size),
    }
    candidates = tuple(score_candidates(jobs, supports))
    return Competition(candidates, choose(candidates), len(jobs))


def choose(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate that is best on the validation rows."""
    return max(candidates, key=lambda candidate: candidate.rank)
