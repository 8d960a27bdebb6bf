"""Candidates: sets of features of the target's size, how each was found, and how they are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, TypeAdapter
from torch import Tensor, nn

from glprune.data.splits import identity
from glprune.metrics.influence import standard_error
from glprune.model.prediction import score_network
from glprune.model.validation_score import Gain, ValidationScore
from glprune.pruning.groups import group_norms, group_sizes
from glprune.search.prepare import Support, restrict_features
from glprune.search.refit import refit_in_place

if TYPE_CHECKING:
    from glprune.schema.recipe import Recipe, RefitSpec
    from glprune.search.job import Job
    from glprune.search.path_point import Checkpoint

_EPOCHS, _PATIENCE = 10, 2  # of the refit of a candidate, at most
Scores = tuple[ValidationScore, ...]


@dataclass(frozen=True)
class Candidate:
    """A set of features and its scores after a brief refit.

    Attributes:
        name: How it was found.
        kept: Names of its features.
        valid: Its score on the validation split.
        folds: Its scores on the validation rows of every fold; empty where it was not cross-validated.
        repeats: How often every row is in a fold.
    """

    name: str
    kept: Support
    valid: ValidationScore
    folds: Scores = ()
    repeats: int = 1

    @property
    def scores(self) -> Scores:
        """The scores that decide: those on the folds, or on the validation split without folds."""
        return self.folds or (self.valid,)

    @property
    def rank(self) -> tuple[float, float]:
        """Orders candidates with folds, or candidates without: larger is better."""
        ranks = [score.rank for score in self.scores]
        return sum(r[0] for r in ranks) / len(ranks), sum(r[1] for r in ranks) / len(ranks)

    def gain_over(self, other: Candidate) -> Gain:
        """Compare the deciding scores with those of another candidate, row by row."""
        return mean_gain(self.scores, other.scores, self.repeats)


def mean_gain(scores: Scores, others: Scores, repeats: int = 1) -> Gain:
    """Return the mean gain over folds, with its standard error over rows.

    Args:
        scores: Scores of every fold.
        others: Those of another candidate.
        repeats: How often every row is in a fold. Further divisions of the same rows are no new rows.
    """
    pairs = list(zip(scores, others, strict=True))
    differences = torch.cat([a.influences - b.influences for a, b in pairs])
    error = standard_error(differences) * repeats**0.5
    return Gain(sum(a.gain_over(b).mean for a, b in pairs) / len(pairs), error)


def score_candidates(job: Job, supports: Mapping[str, Support], original: nn.Module) -> list[Candidate]:
    """Refit a network on every candidate's features and score it on the validation split.

    Args:
        job: The network all candidates start from.
        supports: Name of a candidate -> its features. Of equal ones the first is scored.
        original: The trained network.

    Returns:
        The candidates, in order.
    """
    first: dict[Support, str] = {}
    for name, kept in supports.items():
        first.setdefault(kept, name)
    return [Candidate(name, kept, _score(job, kept, original)) for kept, name in first.items()]


def cross_validate(
    jobs: Sequence[Job], candidates: Sequence[Candidate], original: nn.Module
) -> list[Candidate]:
    """Score candidates on the validation rows of every fold as well.

    Args:
        jobs: The network all candidates start from, on the rows of every fold.
        candidates: The candidates.
        original: The trained network.
    """
    repeats = jobs[0].recipe.data.validation.repeats
    return [
        replace(c, folds=tuple(_score(job, c.kept, original) for job in jobs), repeats=repeats)
        for c in candidates
    ]


def save_candidates(candidates: Sequence[Candidate]) -> Checkpoint:
    """Return candidates as values and tensors of a checkpoint."""
    values: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for number, candidate in enumerate(candidates):
        scores = (candidate.valid, *candidate.folds)
        figures = [(score.metric, score.value, score.loss) for score in scores]
        kept = sorted(candidate.kept)
        values.append({"name": candidate.name, "kept": kept, "scores": figures, "repeats": candidate.repeats})
        tensors |= {f"{number}/{place}": score.influences for place, score in enumerate(scores)}
    return {"candidates": values}, tensors


def load_candidates(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[Candidate]:
    """Return the candidates that ``save_candidates`` saved."""
    found = []
    for number, saved in enumerate(_SAVED.validate_python(values["candidates"])):
        valid, *folds = (
            ValidationScore(metric, value, tensors[f"{number}/{place}"], loss)
            for place, (metric, value, loss) in enumerate(saved.scores)
        )
        kept = frozenset(saved.kept)
        found.append(Candidate(saved.name, kept, valid, tuple(folds), saved.repeats))
    return found


class _Saved(BaseModel):
    """The values of a candidate in a checkpoint; scores are metric, value and loss."""

    name: str
    kept: list[str]
    scores: list[tuple[str, float, float]]
    repeats: int


_SAVED = TypeAdapter(list[_Saved])


def by_magnitude(job: Job, size: int) -> Support:
    """Return the features whose groups have the largest root mean squares, with those that must stay.

    Args:
        job: A job.
        size: Number of features.
    """
    state = job.network.state_dict()
    means: dict[str, float] = {}
    for groups in job.input_groups:
        values = group_norms(state, groups) / group_sizes(state, groups).clamp(min=1).sqrt()
        means |= dict(zip(groups.labels, values.tolist(), strict=True))
    stay = features_that_stay(job)
    others = sorted((label for label in means if label not in stay), key=lambda label: -means[label])
    return stay | frozenset(others[: max(0, size - len(stay))])


def features_that_stay(job: Job) -> Support:
    """Return the features that a rule keeps or that cannot be removed."""
    return frozenset(
        label
        for groups in job.input_groups
        for label in groups.labels
        if groups.units.refused or label in job.rules.required
    )


def _score(job: Job, kept: Support, original: nn.Module) -> ValidationScore:
    slim = restrict_features(job, kept)
    refit = refit_in_place(slim, _scoring_spec(job.recipe), original)
    return score_network(refit.network, job.task, job.metric, slim.data.valid, identity)


def _scoring_spec(recipe: Recipe) -> RefitSpec:
    """Return the refit of a candidate: that of the recipe, cut short."""
    spec = recipe.refit
    return spec.model_copy(
        update={
            "epochs": min(spec.epochs, _EPOCHS),
            "patience": min(spec.patience, _PATIENCE),
            "distill": 0.0,
        }
    )
