"""Candidates: sets of features of the target's size, how each was found, and how they are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glprune.data.splits import identity
from glprune.model.validation_score import Gain, ValidationScore, score_network, standard_error
from glprune.pruning.groups import group_norms, group_sizes
from glprune.search.portfolio.elimination import Support, restrict
from glprune.search.refit import refit_in_place

if TYPE_CHECKING:
    from glprune.schema.recipe import Recipe, RefitSpec
    from glprune.search.job import Job
    from glprune.search.path_point import Checkpoint

_FOLD_EPOCHS, _FOLD_PATIENCE = 30, 5


@dataclass(frozen=True)
class Candidate:
    """A set of features and its validation scores after a refit.

    Attributes:
        name: How it was found.
        kept: Names of its features.
        scores: Its score on the validation rows of every fold; one without folds.
    """

    name: str
    kept: Support
    scores: tuple[ValidationScore, ...]

    @property
    def metric(self) -> float:
        """Mean of the metric over the folds."""
        return sum(score.value for score in self.scores) / len(self.scores)

    @property
    def loss(self) -> float:
        """Mean of the loss over the folds."""
        return sum(score.loss for score in self.scores) / len(self.scores)

    @property
    def standard_error(self) -> float:
        """Standard error of the metric over the rows of all folds."""
        return standard_error(torch.cat([score.influences for score in self.scores]))

    @property
    def rank(self) -> tuple[float, float]:
        """Orders candidates: larger is better."""
        ranks = [score.rank for score in self.scores]
        return sum(r[0] for r in ranks) / len(ranks), -self.loss

    def gain_over(self, other: Candidate) -> Gain:
        """Compare with another candidate, row by row."""
        gains = [a.gain_over(b) for a, b in zip(self.scores, other.scores, strict=True)]
        pairs = zip(self.scores, other.scores, strict=True)
        differences = torch.cat([a.influences - b.influences for a, b in pairs])
        return Gain(sum(gain.mean for gain in gains) / len(gains), standard_error(differences))


def score_candidates(jobs: Sequence[Job], supports: Mapping[str, Support]) -> list[Candidate]:
    """Refit the network on every candidate's features, in every fold, and score it.

    Args:
        jobs: The network all candidates start from, on the rows of every fold.
        supports: Name of a candidate -> its features. Of equal ones the first is scored.

    Returns:
        The candidates, in order.
    """
    first: dict[Support, str] = {}
    for name, kept in supports.items():
        first.setdefault(kept, name)
    return [Candidate(name, kept, tuple(_score(job, kept) for job in jobs)) for kept, name in first.items()]


def save_candidates(candidates: Sequence[Candidate]) -> Checkpoint:
    """Return candidates as values and tensors of a checkpoint."""
    values: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for number, candidate in enumerate(candidates):
        figures = [(score.metric, score.value, score.loss) for score in candidate.scores]
        values.append({"name": candidate.name, "kept": sorted(candidate.kept), "scores": figures})
        tensors |= {f"{number}/{fold}": score.influences for fold, score in enumerate(candidate.scores)}
    return {"candidates": values}, tensors


def load_candidates(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[Candidate, ...]:
    """Return the candidates that ``save_candidates`` saved."""
    return tuple(
        Candidate(
            saved["name"],
            frozenset(saved["kept"]),
            tuple(
                ValidationScore(metric, value, tensors[f"{number}/{fold}"], loss)
                for fold, (metric, value, loss) in enumerate(saved["scores"])
            ),
        )
        for number, saved in enumerate(values["candidates"])
    )


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
    stay = {
        label
        for groups in job.input_groups
        for label in groups.labels
        if groups.units.refused or label in job.rules.required
    }
    others = sorted((label for label in means if label not in stay), key=lambda label: -means[label])
    return frozenset(stay) | frozenset(others[: max(0, size - len(stay))])


def _score(job: Job, kept: Support) -> ValidationScore:
    slim = restrict(job, kept)
    refit = refit_in_place(slim, _scoring_spec(job.recipe))
    return score_network(refit.network, job.task, job.metric, slim.data.valid, identity)


def _scoring_spec(recipe: Recipe) -> RefitSpec:
    """Return the refit of a candidate: that of the recipe with a shorter patience."""
    spec = recipe.refit
    return spec.model_copy(
        update={
            "epochs": min(spec.epochs, _FOLD_EPOCHS),
            "patience": min(spec.patience, _FOLD_PATIENCE),
            "distill": 0.0,
        }
    )
