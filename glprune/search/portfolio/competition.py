"""Find candidates, compare them, and choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from glprune.runtime.events import Listener, Stage
from glprune.search.portfolio.candidates import (
    Candidate,
    by_magnitude,
    load_candidates,
    save_candidates,
    score_candidates,
)
from glprune.search.portfolio.elimination import Support, eliminate
from glprune.search.portfolio.folds import fold_jobs

if TYPE_CHECKING:
    from glprune.model.validation_score import Gain
    from glprune.search.job import Job

RULE = "the best mean of the selection metric; of equal ones the lowest loss"
PATH, ELIMINATION, MAGNITUDE = "the regularisation path", "backward elimination", "group magnitude"


@dataclass(frozen=True)
class Competition:
    """The candidates of a search.

    Attributes:
        candidates: In order of how they were found, the path first.
        best: The chosen one.
        folds: Number of folds they were compared on; 1 is the validation split.
        repeats: How often the rows were divided into folds.
        rule: The rule of the choice, in words.
    """

    candidates: tuple[Candidate, ...]
    best: Candidate
    folds: int
    repeats: int
    rule: str

    @property
    def rows(self) -> int:
        """Number of rows that every candidate was scored on."""
        return sum(len(score.influences) for score in self.best.scores) // self.repeats

    @property
    def lead(self) -> Gain | None:
        """The gain of the chosen candidate over the next best; None where it is the only one."""
        others = [c for c in self.candidates if c is not self.best]
        return self.best.gain_over(max(others, key=lambda c: c.rank)) if others else None


def compete(begin: Job, path: Support, size: int, listener: Listener) -> Competition:
    """Find and compare candidates of a size.

    Args:
        begin: The job of the network that the candidates are found in and scored from.
        path: The features that the regularisation path keeps.
        size: Number of features.
        listener: Receives the progress.
    """
    listener(Stage("candidates", f"comparing other sets of {size} features"))
    log, key = begin.checkpoints, {"size": size, "path": sorted(path)}
    record = log.load_step("candidates", key)
    if record is None:
        candidates = _find_candidates(fold_jobs(begin), begin, path, size)
        log.save_step("candidates", key, *save_candidates(candidates))
    else:
        candidates = load_candidates(record.values, log.weights(record))
    jobs = len(candidates[0].scores)
    repeats = begin.recipe.data.validation.repeats if jobs > 1 else 1
    return Competition(candidates, choose(candidates), jobs // repeats, repeats, RULE)


def _find_candidates(jobs: Sequence[Job], begin: Job, path: Support, size: int) -> tuple[Candidate, ...]:
    supports = {
        PATH: path,
        ELIMINATION: eliminate(jobs, [size])[size],
        MAGNITUDE: by_magnitude(begin, size),
    }
    valid = {name: kept for name, kept in supports.items() if name == PATH or _fits(begin, kept, size)}
    return tuple(score_candidates(jobs, valid))


def _fits(job: Job, kept: Support, size: int) -> bool:
    """Whether a set is small enough and leaves every input a feature."""
    return len(kept) <= size and all(kept.intersection(g.labels) for g in job.input_groups)


def choose(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate that is best on the validation rows."""
    return max(candidates, key=lambda candidate: candidate.rank)
