"""Estimate what a run costs, in passes over the training rows, before it starts.

The parts of a run are counted as ``glprune.search`` and ``glprune.evaluation`` run them: stages of paths,
bisections, balances of inputs and hidden units, refits, candidates, folds, baselines, resamples and drop
costs. How many lambdas a path needs and when a refit stops is known afterwards; the constants are typical.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from glprune.evaluation.baselines import PERMUTATIONS, RANDOM_DRAWS
from glprune.schema.recipe import resolve_budget
from glprune.search.budget import current_size
from glprune.search.portfolio.folds import fold_count
from glprune.search.portfolio.frontier import frontier_sizes
from glprune.search.search import penalises_both, stage_count
from glprune.training.epochs import passes_per_epoch

if TYPE_CHECKING:
    from glprune.schema.recipe import RefitSpec
    from glprune.search.budget import SizeMetric
    from glprune.search.job import Job

NOT_COUNTED = "loading, proofs of groups, exports, measurements of files and of latency, and pictures"
"""What takes time beside the passes, in words."""
FORWARD = 1 / 3
"""The cost of a pass without gradients, in passes with them."""
_WAY_SHARE = 0.5  # of the grid of a stage that goes part of the way
_BISECTIONS = 6  # at the end of the last stage
_EXTRA_EPOCHS = 25  # of a refit, before those without a better metric that end it
_STEP = 1 + 2 * FORWARD  # of a full-batch step: the gradient, and the loss at one or two step sizes
_SCORING_EPOCHS, _CANDIDATES, _COMPARED = 5, 3, 2
_DROPS = 6  # stages that target.max_drop tries
_LATENCY_ROUNDS = 1.5
_ELIMINATED = 0.25  # share of the features in one round


@dataclass(frozen=True)
class Cost:
    """The cost of a part of a run.

    Attributes:
        points: Lambdas at which it trains.
        passes: Passes over the training rows, forward and backward; a pass without gradients is a third.
    """

    points: float = 0.0
    passes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.points + other.points, self.passes + other.passes)

    def __mul__(self, times: float) -> Cost:
        return Cost(times * self.points, times * self.passes)


def run_cost(job: Job) -> Cost:
    """Estimate the cost of the whole run of a job."""
    parts = _Parts(job, job.recipe.refit)
    return parts.search() + parts.baselines() + parts.stability()


class _Parts:
    """The parts of a search with one kind of refit.

    Args:
        job: The job.
        refit: How the networks found are refitted.
    """

    def __init__(self, job: Job, refit: RefitSpec) -> None:
        self.job, self.recipe, self.refit_spec = job, job.recipe, refit
        self.features = len(job.data.features)
        rows = job.data.train.rows
        self.valid = FORWARD * job.data.valid.rows / rows
        self.epoch = float(passes_per_epoch(job.recipe.train.batch_size, job.data.train))
        self.refit_epoch = passes_per_epoch(refit.batch_size, job.data.train) + self.valid

    def search(self) -> Cost:
        """The search of the recipe's target."""
        target = self.recipe.target
        first = self._first(target.max_hidden is None)
        if target.max_hidden is None:
            return first
        return first + self._stages(current_size(self.job, "hidden"), target.max_hidden) + self.refit()

    def _first(self, alone: bool) -> Cost:
        """The search for the first target; hidden units may have one of their own after it."""
        target, job = self.recipe.target, self.job
        if target.frontier is not None:
            return self._frontier()
        if target.lam is not None:
            return self._path(self.recipe.train.n_lambdas) + self.refit()
        if target.max_features is not None:
            return self.for_features(target.max_features, self.features, alone)
        if target.max_drop is not None:
            return (self.last_path() + self.brief() + self.refit()) * _DROPS
        if target.latency is not None:
            return self._budget(0.5) * _LATENCY_ROUNDS
        if target.hidden_alone:
            return Cost()
        counted: SizeMetric = "parameters" if target.parameters is not None else "macs"
        before = current_size(job, counted)
        budget = target.parameters if target.parameters is not None else target.macs
        assert budget is not None  # the recipe has a target
        return self._budget(resolve_budget(budget, before) / before)

    def _frontier(self) -> Cost:
        """One search from size to size, each with its refit."""
        total, now = Cost(), self.features
        for size in frontier_sizes(self.job):
            total += self.for_features(size, now, alone=True) + self.brief()
            now = min(now, size)
        return total

    def for_features(self, size: int, now: int, alone: bool) -> Cost:
        """The stages to a number of features, and the candidates beside the path."""
        total = self._stages(now, size) + self.refit()
        both = alone and penalises_both(self.job, ("input", "hidden"))
        if self.recipe.search == "path" or both or now <= size:
            return total
        return total + self._candidates(size, now)

    def _budget(self, share: float) -> Cost:
        """The stages to a share of the budgeted size, at every balance, and the path that fills it."""
        joint = penalises_both(self.job, ("input", "hidden"))
        balances = len(self.recipe.penalty.input_strength_list) if joint else 1
        stages = self._stages(1.0, share) + self.refit()
        return stages * balances + self._path(self.recipe.train.n_lambdas) + self.refit()

    def _stages(self, now: float, limit: float) -> Cost:
        """All stages between two sizes; the refit after the last one is not counted."""
        way = stage_count(self.recipe, now, limit) - 1
        return (
            self._path(_WAY_SHARE * self.recipe.train.n_lambdas, 0) + self.brief()
        ) * way + self.last_path()

    def last_path(self) -> Cost:
        """The path of a last stage, with its bisections."""
        return self._path(self.recipe.train.n_lambdas + _BISECTIONS)

    def _path(self, points: float, polished: int = 1) -> Cost:
        """Some points of a path: their epochs, optimality conditions and metric, and the full-batch steps."""
        spec = self.recipe.train
        point = spec.epochs * self.epoch + 1 + self.valid
        steps = spec.full_batch_steps * _STEP
        return Cost(points, points * point + steps * (polished if spec.epochs else points))

    def refit(self) -> Cost:
        """The refit of a found network, from one or two starts."""
        spec = self.refit_spec
        epochs = min(spec.epochs, spec.patience + _EXTRA_EPOCHS)
        teacher = FORWARD * self.epoch if spec.distill else 0.0
        return Cost(passes=(2 if spec.start == "best" else 1) * epochs * (self.refit_epoch + teacher))

    def brief(self) -> Cost:
        """The refit between two stages."""
        return Cost(passes=self.recipe.train.stage_refit_epochs * self.refit_epoch)

    def _candidates(self, size: int, now: int) -> Cost:
        """Other sets of a size: one path, the rounds of an elimination, and the refits that score them."""
        epochs = min(self.refit_spec.epochs, _SCORING_EPOCHS)
        folds = fold_count(self.job)
        crossed = _COMPARED * folds * self.recipe.data.validation.repeats if folds > 1 else 0
        scoring = Cost(passes=(_CANDIDATES + crossed) * epochs * self.refit_epoch)
        total = self.last_path() + scoring
        for left in _eliminated(now, size):
            total += self.brief() + Cost(passes=left * PERMUTATIONS * self.valid)
        return total

    def baselines(self) -> Cost:
        """The refits of the baselines; two each where hidden units are removed after the inputs."""
        if not self.recipe.report.baselines:
            return Cost()
        times = 2 if self.recipe.target.max_hidden is not None and not self.recipe.target.hidden_alone else 1
        ranks = Cost(passes=self.features * PERMUTATIONS * self.valid)
        return self.refit() * (times * (RANDOM_DRAWS + 2)) + ranks

    def stability(self) -> Cost:
        """The searches on resamples, without the last refit, and the refits of the drop costs."""
        spec = self.recipe.stability
        if spec is None:
            return Cost()
        kept = self._kept()
        without = _Parts(self.job, self.refit_spec.model_copy(update={"epochs": 0}))
        resamples = without.for_features(kept, self.features, alone=self.recipe.target.max_hidden is None)
        drops = self.refit() * (kept + 1) if spec.drop_cost else Cost()
        return resamples * (spec.n_resamples * spec.subsample) + drops

    def _kept(self) -> int:
        """The number of features that the shipped network will have, or a guess."""
        target = self.recipe.target
        sizes = frontier_sizes(self.job) if target.frontier is not None else []
        return target.max_features or (sizes[len(sizes) // 2] if sizes else math.ceil(self.features / 2))


def _eliminated(now: int, size: int) -> Iterator[int]:
    """Yield the number of features at the start of every round of a backward elimination."""
    while now > size:
        yield now
        now -= min(max(1, int(_ELIMINATED * now)), now - size)
