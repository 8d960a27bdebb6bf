"""Find candidates, compare them, and choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from glprune._wording import counted
from glprune.errors import TargetError
from glprune.report.rules import CHOICE, CROSSED, ELIMINATION, MAGNITUDE, MARGIN, ONE_PATH, PATH
from glprune.runtime.checkpoint import reading
from glprune.runtime.events import Listener, Stage
from glprune.search.portfolio.candidates import (
    Candidate,
    by_magnitude,
    cross_validate,
    features_that_stay,
    load_candidates,
    mean_gain,
    save_candidates,
    score_candidates,
)
from glprune.search.portfolio.elimination import eliminate
from glprune.search.portfolio.folds import fold_count, fold_jobs
from glprune.search.prepare import Support
from glprune.search.stage import SearchState, StageSpec, path_support
from glprune.search.targets import LargestWithin
from glprune.training.feature_groups import whole_groups

if TYPE_CHECKING:
    from glprune.model.validation_score import Gain
    from glprune.search.budget import SizeTarget
    from glprune.search.job import Job


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
    def lead(self) -> Gain | None:
        """The gain of the chosen candidate over the next best; None where it is the only one."""
        others = [c for c in self.candidates if c is not self.best]
        rivals = [c for c in others if c.folds] or others
        if not rivals:
            return None
        rival = max(rivals, key=lambda c: c.rank)
        if len(rival.folds) != len(self.best.folds):
            return mean_gain((self.best.valid,), (rival.valid,))
        return self.best.gain_over(rival)


def compete(state: SearchState, path: Support, goal: SizeTarget, listener: Listener) -> Competition:
    """Find and compare candidates of the goal's number of features.

    Args:
        state: The network that the candidates are found in and scored from.
        path: The features that the regularisation path keeps after all stages.
        goal: The number of features.
        listener: Receives the progress.
    """
    listener(Stage("candidates", f"comparing other sets of {counted(goal.limit, 'feature')}"))
    log, job = state.original.checkpoints, state.job
    place, key = log.position, {"size": goal.limit, "path": sorted(path)}
    record = log.load_step("candidates", key)
    if record is None:
        candidates = _scored(state, {PATH: path, **_find(state, goal)})
        values, tensors = save_candidates(candidates)
        record = log.save_step("candidates", key, values, tensors, since=place)
    else:
        with reading(record):
            candidates = load_candidates(record.values, log.weights(record))
            _check_loaded(job, path, candidates)
    crossed = any(candidate.folds for candidate in candidates)
    folds, repeats = (fold_count(job), job.recipe.data.validation.repeats) if crossed else (1, 1)
    rule = CHOICE + CROSSED if crossed else CHOICE
    return Competition(tuple(candidates), choose(candidates), folds, repeats, rule)


def unused_folds(job: Job, competitions: Sequence[Competition], uncompared: str) -> str | None:
    """Say why a search made none of the folds that its recipe asks for; None where it made some.

    Args:
        job: The job.
        competitions: All comparisons of the search.
        uncompared: Why there is none, if there is none.
    """
    spec = job.recipe.data.validation
    asked = spec.repeats > 1 if spec.folds == "auto" else spec.folds > 1
    if not asked or any(competition.folds > 1 for competition in competitions):
        return None
    where = job.recipe.where("data", "validation")
    return f"{where}: no fold of the rows was made: {_why_no_folds(job, competitions, uncompared)}."


def _why_no_folds(job: Job, competitions: Sequence[Competition], uncompared: str) -> str:
    if not competitions:
        return uncompared
    if fold_count(job) == 1:
        return "the validation split has rows enough for folds: auto"
    if all(len(competition.candidates) == 1 for competition in competitions):
        return "no other set of that many features was found, so there was nothing to compare"
    return "no other set of features was better than the path's on the validation split"


def _check_loaded(job: Job, path: Support, candidates: Sequence[Candidate]) -> None:
    """Check that stored candidates can be those of a job.

    Raises:
        ValueError: They are not.
    """
    first = candidates[0]
    features = {label for groups in job.input_groups for label in groups.labels}
    shapes = [score.influences.shape for score in (first.valid, *first.folds)]
    for candidate in candidates:
        scores = (candidate.valid, *candidate.folds)
        same_rows = [s.influences.shape for s in scores] == shapes[: len(scores)]
        if not (same_rows and all(s.metric == job.metric for s in scores) and candidate.kept <= features):
            raise ValueError(f"candidate {candidate.name!r} is not one of this network")
    if first.kept != path or first.name != PATH:
        raise ValueError("the path is not the first candidate")


def choose(candidates: Sequence[Candidate]) -> Candidate:
    """Choose by ``CHOICE``; the path's candidate is the first one.

    The others were found on validation rows, so that their scores are better than they are on new rows.
    """
    path, *others = candidates
    rivals = [c for c in others if len(c.folds) == len(path.folds)]
    better = [c for c in rivals if c.gain_over(path).exceeds(MARGIN)]
    return max(better, key=lambda candidate: candidate.rank, default=path)


def _scored(state: SearchState, supports: Mapping[str, Support]) -> list[Candidate]:
    """Score all sets on the validation split, and the path's and its best rival there on folds."""
    job, original = state.job, state.original.network
    path, *others = score_candidates(job, supports, original)
    rival = max(others, key=lambda c: c.rank, default=path)
    if not rival.gain_over(path).exceeds(0):
        return [path, *others]
    jobs = fold_jobs(job)
    if len(jobs) == 1:
        return [path, *others]
    crossed = {c.name: c for c in cross_validate(jobs, [path, rival], original)}
    return [crossed.get(c.name, c) for c in (path, *others)]


def _find(state: SearchState, goal: SizeTarget) -> dict[str, Support]:
    """Find sets in other ways than by the stages of the path."""
    job, size = state.job, int(goal.limit)
    found = {
        ONE_PATH: _one_path(state, goal),
        ELIMINATION: eliminate(job, [size], state.original.network)[size],
        MAGNITUDE: by_magnitude(job, size),
    }
    possible = {name: _possible(state, kept) for name, kept in found.items() if kept is not None}
    return {name: kept for name, kept in possible.items() if _fits(job, kept, size)}


def _possible(state: SearchState, kept: Support) -> Support:
    """Return the largest part of a set that the penalty could keep, with the features that must stay."""
    original = state.original
    features = [feature.name for feature in original.data.features]
    return whole_groups(original.recipe.penalty, features, kept) | (kept & features_that_stay(state.job))


def _one_path(state: SearchState, goal: SizeTarget) -> Support | None:
    spec = StageSpec(goal.kinds, "one path to the target", LargestWithin(goal), state.original.recipe.refit)
    try:
        return path_support(state, spec)
    except TargetError:  # the groups leave together
        return None


def _fits(job: Job, kept: Support, size: int) -> bool:
    """Whether a set is small enough and leaves every input a feature."""
    return len(kept) <= size and all(kept.intersection(g.labels) for g in job.input_groups)
