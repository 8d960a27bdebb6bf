"""Find candidates, compare them, and choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from glprune.errors import TargetError
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
from glprune.search.stage import SearchState, StageSpec, path_support
from glprune.search.targets import LargestWithin

if TYPE_CHECKING:
    from glprune.model.validation_score import Gain
    from glprune.search.budget import SizeTarget
    from glprune.search.job import Job

_MARGIN = 2.0  # standard errors
RULE = (
    "the set of the regularisation path, unless the metric of another is better by more than two standard "
    "errors of the paired difference"
)
PATH, ONE_PATH = "the regularisation path in stages", "one regularisation path"
ELIMINATION, MAGNITUDE = "backward elimination", "group magnitude"


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


def compete(state: SearchState, path: Support, goal: SizeTarget, listener: Listener) -> Competition:
    """Find and compare candidates of the goal's number of features.

    Args:
        state: The network that the candidates are found in and scored from.
        path: The features that the regularisation path keeps after all stages.
        goal: The number of features.
        listener: Receives the progress.
    """
    listener(Stage("candidates", f"comparing other sets of {goal.limit:,.0f} features"))
    log, job = state.original.checkpoints, state.job
    place, key = log.position, {"size": goal.limit, "path": sorted(path)}
    record = log.load_step("candidates", key)
    if record is None:
        candidates = tuple(score_candidates(fold_jobs(job), {PATH: path, **_find(state, goal)}))
        log.save_step("candidates", key, *save_candidates(candidates), since=place)
    else:
        candidates = load_candidates(record.values, log.weights(record))
    jobs = len(candidates[0].scores)  # the recipe may mean other folds where several processes ran
    repeats = job.recipe.data.validation.repeats if jobs > 1 else 1
    return Competition(candidates, choose(candidates), jobs // repeats, repeats, RULE)


def choose(candidates: Sequence[Candidate]) -> Candidate:
    """Choose by ``RULE``; the path's candidate is the first one.

    The others were found on validation rows, so that their scores are better than they are on new rows.
    """
    path, *others = candidates
    better = [c for c in others if c.gain_over(path).exceeds(_MARGIN)]
    return max(better, key=lambda candidate: candidate.rank, default=path)


def _find(state: SearchState, goal: SizeTarget) -> dict[str, Support]:
    """Find sets in other ways than by the stages of the path."""
    job, size = state.job, int(goal.limit)
    found = {
        ONE_PATH: _one_path(state, goal),
        ELIMINATION: eliminate(job, [size])[size],
        MAGNITUDE: by_magnitude(job, size),
    }
    return {name: kept for name, kept in found.items() if kept is not None and _fits(job, kept, size)}


def _one_path(state: SearchState, goal: SizeTarget) -> Support | None:
    spec = StageSpec(goal.kinds, "one path to the target", LargestWithin(goal), state.original.recipe.refit)
    try:
        return path_support(state, spec)
    except TargetError:  # the groups leave together
        return None


def _fits(job: Job, kept: Support, size: int) -> bool:
    """Whether a set is small enough and leaves every input a feature."""
    return len(kept) <= size and all(kept.intersection(g.labels) for g in job.input_groups)
