"""The search: run paths one after another, each a stage on the way to the target.

Between two paths the zero groups are removed, the rest of the network is refitted without penalty, and the
penalty weight of every group is computed again from its present weights (multi-step adaptive LASSO). A single
path shrinks all groups while it chooses among them, so that a network of low accuracy chooses the last ones.
With stages, a network that was just refitted makes every choice.

References:
    Buehlmann and Meier (2008), discussion of "One-step sparse estimates in nonconcave penalized
    likelihood models", Ann. Stat. 36(4), 1534-1541: the multi-step adaptive LASSO.
    Candes, Wakin and Boyd (2008), "Enhancing sparsity by reweighted l1 minimization", J. Fourier
    Anal. Appl. 14, 877-905.
"""

from __future__ import annotations

import contextlib
import functools
import math
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from glprune._wording import counted
from glprune.data.splits import first_rows, identity
from glprune.errors import TargetError
from glprune.model.counting import macs
from glprune.model.prediction import score_network, validate
from glprune.model.task import improvement
from glprune.pruning.removal import RemovalResult, cut_uncertified
from glprune.report.rules import (
    drop_rule,
    filled_rule,
    lambda_rule,
    limit_rule,
    on_the_way_rule,
    only_kept_rule,
)
from glprune.runtime.checkpoint import UnusableStepError, reading
from glprune.runtime.events import Listener, Notice, Stage
from glprune.schema.recipe import resolve_budget
from glprune.search.budget import (
    MEASURES,
    SIZE_NAMES,
    LatencyMeter,
    SizeMetric,
    SizeTarget,
    current_size,
    filled,
    latency_meter,
    least_size,
    size_of_support,
    support_key,
    uniform_share,
    uniform_support,
    unit_costs,
)
from glprune.search.job import Job
from glprune.search.outcome import Outcomes, after_removal, after_stage, kept_names
from glprune.search.parallel import run_stages
from glprune.search.policy_removal import remove_forbidden
from glprune.search.portfolio.competition import Competition, compete, unused_folds
from glprune.search.portfolio.folds import fold_count
from glprune.search.portfolio.frontier import FrontierPoint, frontier_sizes, shipped_point
from glprune.search.refit import brief_spec, refit_or_resume
from glprune.search.stage import SearchState, StageResult, StageSpec, run_stage
from glprune.search.targets import AllZero, AtLambda, LargestWithin, OneStage, PointSelector

if TYPE_CHECKING:
    from glprune.pruning.units import GroupKind
    from glprune.runtime.process_pool import WorkerPool
    from glprune.schema.recipe import MaxDrop, Recipe, RefitSpec
    from glprune.search.portfolio.candidates import Candidate
    from glprune.training.refit import RefitResult

_DROP_STEP = 0.5  # share of the size that a stage of max_drop aims at, until one loses too much
_MAX_FAILURES = 4  # stages of max_drop that lose too much
_LAYER_FACTOR = 1.5  # a layer may lose this many times the share that each would if all lost the same
_MIN_STEP = 0.2  # smallest share of the size that a stage removes
_SLACK, _ROUGH_SLACK = 0.02, 0.1
_LATENCY_ROUNDS, _LATENCY_BISECTIONS = 3, 6
_PARALLEL_SECONDS = 10.0  # duration of a path from which on it pays to start other processes
_ELIMINATION_SIZE, _ELIMINATION_FACTOR = 64, 4  # features, or multiples of the target, it begins with


@dataclass(frozen=True)
class SearchResult:
    """The network a run ships and how it was chosen.

    Attributes:
        stages: The stages that led to it, in order.
        reference: The selection metric of the original network on the validation split.
        removed: Everything removed, and the evidence.
        refit: The last refit.
        refit_metric: The selection metric on the validation split after it.
        outcomes: What became of each feature, in the order of ``data.features``.
        competition: The candidates that were compared; None for a pure path.
        frontier: The networks of all sizes, the largest first; empty without ``target.frontier``.
    """

    stages: tuple[StageResult, ...]
    reference: float
    removed: RemovalResult
    refit: RefitResult
    refit_metric: float
    outcomes: Outcomes
    competition: Competition | None = None
    frontier: tuple[FrontierPoint, ...] = ()


def search(
    job: Job, listener: Listener, workers: Callable[[], WorkerPool[Job]] | None = None
) -> SearchResult:
    """Find the network the recipe's target asks for.

    Args:
        job: The job.
        listener: Receives stages and points.
        workers: Starts processes that prepared the same job, to run paths in parallel; called once paths take
            long. The result does not depend on them.

    Raises:
        TargetError: No network meets the target.
        RecipeError: The recipe asks for folds that cannot be made.
    """
    fold_count(job)  # a wrong number is reported now, not after hours
    with contextlib.ExitStack() as open_:
        start = functools.cache(lambda: open_.enter_context(workers())) if workers is not None else None
        while True:
            try:
                return _Search(job, listener, start).run()
            except UnusableStepError as error:
                job.checkpoints.forget(error)
                listener(Notice(f"Work of the stopped run is done again: {error}."))


class _Search:
    """A search in progress: the original job, the present network, and the stages so far."""

    def __init__(self, job: Job, listener: Listener, workers: Callable[[], WorkerPool[Job]] | None) -> None:
        self.original, self.listener, self.workers = job, listener, workers
        self.state = SearchState.initial(job)
        self.stages: list[StageResult] = []
        self.before: list[SearchState] = []  # the state that each stage began with
        self.competition: Competition | None = None
        self.competitions: list[Competition] = []  # those of every size
        self.uncompared = "sets of features are compared for target.max_features and target.frontier alone"
        self.longest_path = 0.0  # seconds
        self.reference = validate(job.network, job.task, job.metric, job.data.valid, identity)
        removed = remove_forbidden(job)
        if removed is not None:
            listener(Stage("policy", "refitting the network without the features that must go"))
            refit, _ = refit_or_resume(job, removed, brief_spec(self.original.recipe))
            outcomes = after_removal(self.state.outcomes, job, removed.selection)
            self.state = self.state.advanced(refit.network, removed, outcomes, 0)

    @property
    def job(self) -> Job:
        """The job of the present network."""
        return self.state.job

    def run(self) -> SearchResult:
        """Search, and say where the recipe asks for folds that were not needed."""
        found = self._run()
        note = unused_folds(self.original, self.competitions, self.uncompared)
        if note is not None:
            self.listener(Notice(note))
        return found

    def _run(self) -> SearchResult:
        target = self.original.recipe.target
        hidden = SizeTarget("hidden", float(target.max_hidden or 0), ("hidden",), "target.max_hidden")
        first: tuple[GroupKind, ...] = ("input", "hidden") if target.max_hidden is None else ("input",)
        if target.frontier is not None:
            return self._search_frontier(first)
        if target.lam is not None:
            self._search_lambda(target.lam, first)
        elif target.max_features is not None:
            self._search_features(SizeTarget("features", target.max_features, first, "target.max_features"))
        elif target.max_drop is not None:
            self._search_max_drop(first, target.max_drop)
        elif target.latency is not None:
            self._search_latency(target.latency, target.batch, first)
        elif not target.hidden_alone:
            self._search_target(self._budget(first))
        if target.max_hidden is not None:
            self._search_target(hidden)
        return self._result()

    def _result(self) -> SearchResult:
        last = self.stages[-1]
        return SearchResult(
            tuple(self.stages),
            self.reference,
            last.removed,
            last.refit,
            last.metric,
            self.state.outcomes,
            self.competition,
        )

    def _search_frontier(self, kinds: tuple[GroupKind, ...]) -> SearchResult:
        """Go from size to size, the largest first; every point has its own refit and candidates."""
        points, sizes = [], frontier_sizes(self.job)
        for size in sizes:
            begin = self.state, [*self.stages], [*self.before]
            self.competition = None
            self._search_features(SizeTarget("features", size, kinds, "target.frontier"))
            points.append(self._frontier_point(size))
            if _feature_count(begin[0]) <= size:  # a longer refit of the same features
                self.state, self.stages, self.before = begin
            elif size != sizes[-1]:
                self._shorten_refit()
        shipped = shipped_point(points, self.original.recipe.target.max_features)
        return replace(shipped.found, frontier=tuple(points))

    def _frontier_point(self, size: int) -> FrontierPoint:
        found, job = self._result(), self.original
        network, select = found.refit.network, found.removed.selection
        score = score_network(network, job.task, job.metric, job.data.valid, select)
        return FrontierPoint(size, found, score, job.checkpoints.position)

    def _shorten_refit(self) -> None:
        """Go on from a brief refit of the present network; see ``_commit``."""
        removed = self.stages[-1].removed
        refit, _ = refit_or_resume(self.original, removed, brief_spec(self.original.recipe))
        self.state = self.before[-1].advanced(refit.network, removed, self.state.outcomes, len(self.stages))

    def _search_features(self, goal: SizeTarget) -> None:
        """Run the path, compare its features with those found in other ways, and keep the best."""
        self._search_target(goal)
        uncompared = self._why_uncompared(goal)
        if uncompared is not None:
            self.uncompared = uncompared
            return
        most = max(_ELIMINATION_SIZE, _ELIMINATION_FACTOR * goal.limit)
        small = (n for n, state in enumerate(self.before) if _feature_count(state) <= most)
        begin = next(small, len(self.before) - 1)
        kept = frozenset(kept_names(self.state.outcomes))
        self.competition = compete(self.before[begin], kept, goal, self.listener)
        self.competitions.append(self.competition)
        if self.competition.best.kept != kept:
            self._certify(self.competition.best, begin, goal)

    def _why_uncompared(self, goal: SizeTarget) -> str | None:
        """Say why the path's features are not compared with other sets; None where they are."""
        if self.original.recipe.search == "path":
            return "search: path compares no sets of features"
        if _feature_count(self.before[0]) <= goal.limit:
            return f"the network has no more features than {goal.name} allows"
        if penalises_both(self.job, goal.kinds):
            return (
                "penalty.hidden removes hidden units along the path of the inputs, so sets of features are "
                "not compared"
            )
        return None

    def _certify(self, best: Candidate, begin: int, goal: SizeTarget) -> None:
        """Go back to a state and remove the features that a candidate does not have; stay if that fails."""
        path = self.state, self.stages, self.before
        self.state, self.stages, self.before = self.before[begin], self.stages[:begin], self.before[:begin]
        kept = {
            (g.name, label)
            for g in self.job.groups
            for label in g.labels
            if g.kind != "input" or label in best.kept
        }
        if not self._remove_all_but(kept, goal, only_kept_rule(best.name)):
            self.state, self.stages, self.before = path
            assert self.competition is not None  # a candidate comes from one
            self.competition = replace(self.competition, best=self.competition.candidates[0])

    def _remove_all_but(
        self, kept: Collection[tuple[str, str]], goal: SizeTarget, rule: str, input_strength: float = 1.0
    ) -> bool:
        """Remove groups along a path that penalises them alone: their zeros are exact and certified.

        Returns:
            Whether it was possible; a group may not become zero.
        """
        pick, refit = AllZero(goal.name), self._full_refit()
        try:
            run = self._run_stage(
                StageSpec(goal.kinds, rule, pick, refit, input_strength, unpenalised=frozenset(kept))
            )
        except TargetError:
            return False
        assert run is not None  # it picks a point or raises
        self._commit(run)
        return True

    def _search_lambda(self, lam: float, kinds: tuple[GroupKind, ...]) -> None:
        run = self._run_stage(StageSpec(kinds, lambda_rule(lam), AtLambda(lam), self._full_refit()))
        assert run is not None  # it picks a point or raises
        self._commit(run)

    def _search_target(self, goal: SizeTarget) -> None:
        """Run stages whose sizes have equal ratios, from the present size down to the goal's."""
        now = start = current_size(self.job, goal.counted)
        count = stage_count(self.original.recipe, start, goal.limit)
        for number in range(1, count):
            limit = start * (goal.limit / start) ** (number / count)
            if now <= limit:
                continue
            pick = OneStage(goal, now, limit)
            rule = on_the_way_rule(goal.limit, SIZE_NAMES[goal.counted])
            run = self._best_result(goal, rule, pick, brief_spec(self.original.recipe))
            if run is None:
                continue
            self._commit(run)
            now = current_size(self.job, goal.counted)
            if now <= goal.limit:  # another path would cut more
                self.stages[-1] = self._with_refit(run)
                return
        rule = limit_rule(goal.limit, SIZE_NAMES[goal.counted])
        run = self._best_result(goal, rule, LargestWithin(goal), self._full_refit())
        assert run is not None  # it picks a point or raises
        kept = self._fill_budget(run, goal)
        rule = filled_rule(goal.limit, SIZE_NAMES[goal.counted])
        if kept is None or not self._remove_all_but(kept, goal, rule, run.spec.input_strength):
            self._commit(run)

    def _fill_budget(self, run: StageResult, goal: SizeTarget) -> frozenset[tuple[str, str]] | None:
        """Return the groups to keep where more fit into a budget than a stage kept; else None."""
        if goal.counted not in MEASURES:
            return None
        multiple, measure = self.job.recipe.target.counting_multiple, MEASURES[goal.counted]
        if size_of_support(self.job, run.selected.alive, measure, multiple) >= goal.least:
            return None
        marks = filled(self.job, run.selected.alive, goal)
        if all(torch.equal(a, b) for a, b in zip(marks, run.selected.alive, strict=True)):
            return None
        return frozenset(
            (g.name, label)
            for g, alive in zip(self.job.groups, marks, strict=True)
            for label, left in zip(g.labels, alive.tolist(), strict=True)
            if left
        )

    def _search_latency(self, budget: str | float, batch: int, kinds: tuple[GroupKind, ...]) -> None:
        """Search within a budget of multiply-accumulates, lowered until the latency is within its budget."""
        self.listener(Stage("latency", "timing narrower networks through ONNX Runtime"))
        with tempfile.TemporaryDirectory(prefix="glprune-") as folder:
            meter = latency_meter(self.original, batch, Path(folder))
            limit = self._measure_or_resume(
                "limit", lambda: _macs_for_latency(self.original, meter, budget, kinds)
            )
            for _ in range(_LATENCY_ROUNDS):
                self._search_target(SizeTarget("macs", limit, kinds, "target.latency", slack=_SLACK))
                reached = self._measure_or_resume("reached", lambda: self._present_excess(meter, budget))
                if reached <= 1:
                    return
                limit = 0.95 * current_size(self.job, "macs") / reached
        raise TargetError(
            f"target.latency: {budget} was not reached; the network found takes {reached:.2f} times as much "
            f"at batch {batch}. Ask for less, or for macs: widths alone do not make it faster here."
        )

    def _present_excess(self, meter: LatencyMeter, budget: str | float) -> float:
        last = self.stages[-1]
        return _excess(meter(last.refit.network, last.removed.selection), budget)

    def _measure_or_resume(self, what: str, measure: Callable[[], float]) -> float:
        """Measure a latency, or return what a stopped run measured: a second measurement would differ."""
        record = self.original.checkpoints.open_step("clock", {"what": what})
        if not record.values:
            record.values["value"] = self.original.process_group.measure_on_rank0(measure)
        with reading(record):
            return float(record.values["value"])

    def _search_max_drop(self, kinds: tuple[GroupKind, ...], drop: MaxDrop) -> None:
        """Run stages as long as the refitted network loses no more than the amount."""
        metric, amount, rule = drop.metric, drop.amount, drop_rule(drop)
        both = self.original.recipe.penalty.hidden is not None and "hidden" in kinds
        counted: SizeMetric = "parameters" if both else "features"
        share, failures, tried = _DROP_STEP, 0, -math.inf
        rejected: set[bytes] = set()  # supports that lost too much, and would again after another refit
        while failures < _MAX_FAILURES:
            now = current_size(self.job, counted)
            limit = math.floor(now * share)
            if now <= 1:
                break
            goal = SizeTarget(
                counted, max(1, min(limit, now - 1)), kinds, "target.max_drop", slack=_ROUGH_SLACK
            )
            run = self._try_drop(goal, rule, rejected)
            whole = run and self._with_refit(run)
            if run is not None and whole is not None:
                tried = max(tried, improvement(metric, self.reference, whole.metric))
                if improvement(metric, self.reference, whole.metric) >= -amount:
                    self._commit(whole, run.refit)
                    rejected.clear()
                    continue
                rejected.add(support_key(run.selected))
            failures += 1
            if limit >= now - 1:
                break
            share **= 0.5
        if not self.stages:
            raise TargetError(
                f"target.max_drop: no network tried keeps {metric} within {amount:g} of {self.reference:.4f} "
                f"on the validation split; the best after a refit changes it by {tried:+.4f}. Allow a larger "
                "amount or raise refit.epochs."
            )

    def _try_drop(self, goal: SizeTarget, rule: str, rejected: set[bytes]) -> StageResult | None:
        try:
            pick = LargestWithin(goal, frozenset(rejected))
            return self._best_result(goal, rule, pick, brief_spec(self.original.recipe))
        except TargetError:  # the groups leave together: counts as losing too much
            return None

    def _best_result(
        self, goal: SizeTarget, rule: str, pick: PointSelector, spec: RefitSpec
    ) -> StageResult | None:
        """Run a stage for every ratio of input to hidden strength; return the best on the validation split.

        Raises:
            TargetError: None of them found a network, and at least one path cannot meet the target.
        """
        joint = goal.counted in MEASURES and penalises_both(self.job, goal.kinds)
        strengths = self.original.recipe.penalty.input_strength_list if joint else (1.0,)
        costs = unit_costs(self.job, MEASURES[goal.counted]) if goal.counted in MEASURES else {}
        loss = self._max_layer_loss(goal, pick)
        outcomes = self._candidate_results(
            [
                StageSpec(goal.kinds, rule, pick, spec, strength, costs, max_layer_loss=loss)
                for strength in strengths
            ]
        )
        found = [run for run in outcomes if isinstance(run, StageResult)]
        failures = [error for error in outcomes if isinstance(error, TargetError)]
        if failures and not found:
            raise failures[0]
        metric = self.original.metric
        return max(found, key=lambda run: improvement(metric, 0.0, run.metric), default=None)

    def _max_layer_loss(self, goal: SizeTarget, pick: PointSelector) -> float:
        """Return the largest share of a layer's units that a stage may remove."""
        if goal.counted not in MEASURES or "hidden" not in goal.kinds:
            return 1.0
        limit = pick.limit if isinstance(pick, OneStage) else goal.limit
        share = uniform_share(self.job, goal, limit)
        return min(1.0, _LAYER_FACTOR * (1 - share)) if share < 1 else 1.0

    def _candidate_results(self, specs: Sequence[StageSpec]) -> list[StageResult | TargetError | None]:
        """Run several stages in order, here, or in parallel in other processes where paths take long."""
        outcomes: list[StageResult | TargetError | None] = []
        for number, spec in enumerate(specs):
            left = specs[number:]
            if self.workers is not None and len(left) > 1 and self.longest_path >= _PARALLEL_SECONDS:
                return [*outcomes, *run_stages(self.state, left, self.workers(), self.listener)]
            try:
                outcomes.append(self._run_stage(spec))
            except TargetError as error:
                outcomes.append(error)
        return outcomes

    def _run_stage(self, spec: StageSpec) -> StageResult | None:
        start = time.monotonic()
        try:
            return run_stage(self.state, spec, self.listener)
        finally:
            self.longest_path = max(self.longest_path, time.monotonic() - start)

    def _with_refit(self, run: StageResult) -> StageResult:
        """Return a stage with the refit of the recipe instead of the brief one."""
        refit, metric = refit_or_resume(self.original, run.removed)
        run.selected.refit_metric = metric
        return replace(run, refit=refit, metric=metric)

    def _commit(self, run: StageResult, refit: RefitResult | None = None) -> None:
        """Accept a stage and go on from its network, or from another refit of the same network.

        After a long refit weak groups have grown again, so that a path has a worse start.
        """
        self.before.append(self.state)
        self.stages.append(run)
        number = len(self.stages)
        outcomes = after_stage(self.state.outcomes, self.original, run, number)
        self.state = self.state.advanced((refit or run.refit).network, run.removed, outcomes, number)

    def _full_refit(self) -> RefitSpec:
        return self.original.recipe.refit

    def _budget(self, kinds: tuple[GroupKind, ...]) -> SizeTarget:
        """Return the goal of a budget of parameters or multiply-accumulates.

        Raises:
            TargetError: The network is not larger, or cannot be as small.
        """
        target = self.original.recipe.target
        metric: SizeMetric = "parameters" if target.parameters is not None else "macs"
        budget = target.parameters if target.parameters is not None else target.macs
        assert budget is not None  # the recipe has a target
        now = current_size(self.original, metric)
        limit = math.floor(resolve_budget(budget, now))
        asked = budget if isinstance(budget, str) else f"{budget:,.0f}"
        what, least = f"target.{metric}: {asked}", least_size(self.original, metric, kinds)
        unit = SIZE_NAMES[metric]
        if limit >= now:
            raise TargetError(f"{what}: the network has only {counted(now, unit)}; ask for less.")
        if limit < least:
            raise TargetError(
                f"{what} cannot be met: with one group left in every penalised layer the network has "
                f"{counted(least, unit)}; ask for more, or penalise more layers."
            )
        return SizeTarget(metric, limit, kinds, f"target.{metric}", slack=_SLACK)


def stage_count(recipe: Recipe, start: float, limit: float) -> int:
    """Return the number of stages between two sizes: that of the recipe, or fewer: each removes a fifth."""
    steps = math.log(max(1.0, start / limit)) / -math.log(1 - _MIN_STEP)
    return max(1, min(recipe.train.n_stages, round(steps)))


def penalises_both(job: Job, kinds: Collection[GroupKind]) -> bool:
    """Whether inputs and hidden units are under the penalty of one path."""
    return {groups.kind for groups, _ in job.penalised(kinds)} == {"input", "hidden"}


def _feature_count(state: SearchState) -> int:
    return len(state.job.data.features)


def _excess(times: tuple[float, float], budget: str | float) -> float:
    """Return a latency (in ms, and as a share of the original's) divided by its budget."""
    milliseconds, share = times
    return share / resolve_budget(budget, 1.0) if isinstance(budget, str) else milliseconds / budget


def _macs_for_latency(
    job: Job, meter: LatencyMeter, budget: str | float, kinds: Sequence[GroupKind]
) -> float:
    """Return the multiply-accumulates of the widest uniformly narrowed network within a latency budget.

    Latency depends on widths alone, so this needs no training.

    Raises:
        TargetError: Even the narrowest network exceeds the budget.
    """

    def narrowed(share: float) -> tuple[float, float]:
        marks, multiple = uniform_support(job, share, kinds), job.recipe.target.counting_multiple
        slim = cut_uncertified(job.network, job.groups, marks, job.probe, job.axes, multiple)
        size = macs(slim.network, slim.selection(first_rows(job.data.test, 1)))
        return _excess(meter(slim.network, slim.selection), budget), size

    excess, size = narrowed(0.0)
    if excess > 1:
        raise TargetError(
            f"target.latency: {budget} cannot be met: with one unit in every layer the network still takes "
            f"{excess:.2f} times as much. Ask for more, or for a larger target.batch."
        )
    low, high = 0.0, 1.0
    for _ in range(_LATENCY_BISECTIONS):
        middle = (low + high) / 2
        excess, counted = narrowed(middle)
        low, high, size = (middle, high, counted) if excess <= 1 else (low, middle, size)
    return size
