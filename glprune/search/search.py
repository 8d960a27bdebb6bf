"""The search: paths one after another, each a step of the way to what the target asks.

Between two paths the zero groups are cut, what is left is refitted without penalty, and every
group is weighted anew by what it then is (multi-step adaptive LASSO). A single path shrinks all
groups while it chooses among them, so that the last ones to leave are chosen by a network that
hardly works; here every choice is made by one that was just repaired.

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from glprune.data.splits import ColumnSelection, first_rows, identity
from glprune.errors import TargetError
from glprune.export.latency import LatencyMeter
from glprune.model.counting import macs
from glprune.model.task import improvement
from glprune.pruning.removal import RemovalResult, cut_uncertified
from glprune.runtime.events import Listener, Stage
from glprune.search.budget import MEASURES, uniform_support, unit_costs
from glprune.search.job import Job, validate
from glprune.search.parallel import run_stages
from glprune.search.policy_removal import remove_forbidden
from glprune.search.refit import refit_or_resume
from glprune.search.stage import SearchState, StageResult, StageSpec, run_stage
from glprune.search.targets import (
    WORDS,
    AtLambda,
    LargestWithin,
    PointSelector,
    SizeMetric,
    SizeTarget,
    SmallestAbove,
    current_size,
    resolve_budget,
    support_key,
)

if TYPE_CHECKING:
    from glprune.pruning.units import Kind
    from glprune.runtime.process_pool import WorkerPool
    from glprune.schema.recipe import RefitSpec
    from glprune.training.refit import RefitResult

_STEP = 0.5  # share of the size a stage of max_drop aims at, until one loses too much
_FAILURES = 4
_LEAST_STEP = 0.2
_NEAR, _ROUGHLY = 0.02, 0.1
_CLOCKED, _CLOCKINGS = 3, 6
_WORTH = 10.0  # seconds of a path from which on other processes are worth their start
_DENSEST = "of the points that keep no more, the one that keeps most"


@dataclass(frozen=True)
class SearchResult:
    """The network a run ships and how it was chosen.

    Attributes:
        stages: The stages that led to it, in order.
        reference: The selection metric of the original network on the validation split.
        removed: Everything cut, and the evidence.
        fitted: The last refit.
        refit_metric: The selection metric on the validation split after it.
    """

    stages: tuple[StageResult, ...]
    reference: float
    removed: RemovalResult
    refit: RefitResult
    refit_metric: float


def search(
    job: Job, listener: Listener, workers: Callable[[], WorkerPool[Job]] | None = None
) -> SearchResult:
    """Find the network the recipe's target asks for.

    Args:
        job: The job.
        listener: Told stages and points.
        workers: Makes processes that prepared the same job, for paths side by side; they are started where
            paths take long. The outcome does not depend on them.

    Raises:
        TargetError: No network meets the target.
    """
    with contextlib.ExitStack() as open_:
        start = functools.cache(lambda: open_.enter_context(workers())) if workers is not None else None
        return _Search(job, listener, start).run()


class _Search:
    """A search at work: the original job, the network it stands on, and the stages so far."""

    def __init__(self, job: Job, listener: Listener, workers: Callable[[], WorkerPool[Job]] | None) -> None:
        self.original, self.listener, self.workers = job, listener, workers
        self.standing = SearchState(job, job)
        self.stages: list[StageResult] = []
        self.pace = 0.0
        self.reference = validate(job, job.network, identity)
        removed = remove_forbidden(job)
        if removed is not None:
            listener(Stage("policy", "refitting the network without the features that must go"))
            fitted, _ = refit_or_resume(job, removed, self._brief_refit())
            self.standing = SearchState.advanced(job, fitted.network, removed, 0)

    @property
    def job(self) -> Job:
        """The job of the network the search stands on."""
        return self.standing.job

    def run(self) -> SearchResult:
        target = self.original.recipe.target
        hidden = SizeTarget("hidden", float(target.max_hidden or 0), ("hidden",), "target.max_hidden")
        first: tuple[Kind, ...] = ("input", "hidden") if target.max_hidden is None else ("input",)
        if target.lam is not None:
            self._search_lambda(target.lam, first)
        elif target.max_features is not None:
            self._search_target(SizeTarget("features", target.max_features, first, "target.max_features"))
        elif target.max_drop is not None:
            self._search_max_drop(first, target.max_drop.metric, target.max_drop.amount)
        elif target.latency is not None:
            self._search_latency(target.latency, target.batch, first)
        elif not target.hidden_alone:
            self._search_target(self._budget(first))
        if target.max_hidden is not None:
            self._search_target(hidden)
        last = self.stages[-1]
        return SearchResult(tuple(self.stages), self.reference, last.removed, last.refit, last.metric)

    def _search_lambda(self, lam: float, kinds: tuple[Kind, ...]) -> None:
        rule = f"lambda {lam:g} as the recipe states"
        run = self._run_stage(StageSpec(kinds, rule, AtLambda(lam), self._full_refit()))
        assert run is not None  # it picks a point or raises
        self._commit(run)

    def _search_target(self, goal: SizeTarget) -> None:
        """Stages of equal ratios from the present size down to the goal's."""
        now = start = current_size(self.job, goal.counted)
        count = self._stages(start, goal)
        for number in range(1, count):
            limit = start * (goal.limit / start) ** (number / count)
            if now <= limit:
                continue
            pick = SmallestAbove(goal, now, limit)
            rule = f"on the way to at most {goal.limit:,.0f} {WORDS[goal.counted]}"
            run = self._best_result(goal, rule, pick, self._brief_refit())
            if run is None:
                continue
            self._commit(run)
            now = current_size(self.job, goal.counted)
            if now <= goal.limit:  # another path would cut more
                self.stages[-1] = self._with_refit(run)
                return
        rule = f"at most {goal.limit:,.0f} {WORDS[goal.counted]}: {_DENSEST}"
        run = self._best_result(goal, rule, LargestWithin(goal), self._full_refit())
        assert run is not None  # it picks a point or raises
        self._commit(run)

    def _stages(self, start: float, goal: SizeTarget) -> int:
        """As many stages as the recipe says, but none for less than a fifth of what there is."""
        steps = math.log(max(1.0, start / goal.limit)) / -math.log(1 - _LEAST_STEP)
        return max(1, min(self.original.recipe.train.n_stages, round(steps)))

    def _search_latency(self, asked: str | float, batch: int, kinds: tuple[Kind, ...]) -> None:
        """A budget of multiply-accumulates found by the clock, lowered until the clock agrees."""
        self.listener(Stage("latency", "timing narrower networks through ONNX Runtime"))
        with tempfile.TemporaryDirectory(prefix="glprune-") as folder:
            watch = LatencyMeter(self.original, batch, Path(folder))
            limit = self._check_latency(
                "limit", lambda: _macs_for_latency(self.original, watch, asked, kinds)
            )
            for _ in range(_CLOCKED):
                self._search_target(SizeTarget("macs", limit, kinds, "target.latency", slack=_NEAR))
                reached = self._check_latency("reached", lambda: self._excess_now(watch, asked))
                if reached <= 1:
                    return
                limit = 0.95 * current_size(self.job, "macs") / reached
        raise TargetError(
            f"target.latency: {asked} was not reached; the network found takes {reached:.2f} times as much "
            f"at batch {batch}. Ask for less, or for macs: widths alone do not make it faster here."
        )

    def _excess_now(self, watch: LatencyMeter, asked: str | float) -> float:
        last = self.stages[-1]
        return _excess(watch(last.refit.network, last.removed.columns), asked)

    def _check_latency(self, what: str, measure: Callable[[], float]) -> float:
        """What the clock said, to a stopped run too: another time it would say something else."""
        record = self.original.journal.open_step("clock", {"what": what})
        if not record.values:
            record.values["value"] = self.original.process_group.measure_on_rank0(measure)
        return float(record.values["value"])

    def _search_max_drop(self, kinds: tuple[Kind, ...], metric: str, amount: float) -> None:
        """Stages that go on while the refitted network loses no more than the amount."""
        both = self.original.recipe.penalty.hidden is not None and "hidden" in kinds
        counted: SizeMetric = "parameters" if both else "features"
        rule = f"{metric} after the refit at most {amount:g} worse than the original network's"
        share, failures, tried = _STEP, 0, -math.inf
        lost: set[bytes] = set()  # supports that lost too much; their refit would again
        while failures < _FAILURES:
            now = current_size(self.job, counted)
            limit = math.floor(now * share)
            if now <= 1:
                break
            goal = SizeTarget(counted, max(1, min(limit, now - 1)), kinds, "target.max_drop", slack=_ROUGHLY)
            run = self._try_drop(goal, rule, lost)
            whole = run and self._with_refit(run)
            if run is not None and whole is not None:
                tried = max(tried, improvement(metric, self.reference, whole.metric))
                if improvement(metric, self.reference, whole.metric) >= -amount:
                    self._commit(whole, run.refit)
                    lost.clear()
                    continue
                lost.add(support_key(run.selected))
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

    def _try_drop(self, goal: SizeTarget, rule: str, lost: set[bytes]) -> StageResult | None:
        try:
            return self._best_result(goal, rule, LargestWithin(goal, frozenset(lost)), self._brief_refit())
        except TargetError:  # the groups leave together: as good as losing too much
            return None

    def _best_result(
        self, goal: SizeTarget, rule: str, pick: PointSelector, spec: RefitSpec
    ) -> StageResult | None:
        """The best on the validation split over the balances of input and hidden strengths.

        Raises:
            TargetError: None of them has a network, and some path cannot meet the target.
        """
        joint = goal.counted in MEASURES and self._run_both(goal.kinds)
        balances = self.original.recipe.penalty.input_strength_list if joint else (1.0,)
        costs = unit_costs(self.job, MEASURES[goal.counted]) if goal.counted in MEASURES else {}
        outcomes = self._candidate_results(
            [StageSpec(goal.kinds, rule, pick, spec, b, costs) for b in balances]
        )
        found = [run for run in outcomes if isinstance(run, StageResult)]
        failures = [error for error in outcomes if isinstance(error, TargetError)]
        if failures and not found:
            raise failures[0]
        metric = self.original.metric
        return max(found, key=lambda run: improvement(metric, 0.0, run.metric), default=None)

    def _candidate_results(self, asks: Sequence[StageSpec]) -> list[StageResult | TargetError | None]:
        """What comes of several paths, in their order: here, or side by side where they take long."""
        outcomes: list[StageResult | TargetError | None] = []
        for number, asked in enumerate(asks):
            left = asks[number:]
            if self.workers is not None and len(left) > 1 and self.pace >= _WORTH:
                return [*outcomes, *run_stages(self.standing, left, self.workers(), self.listener)]
            try:
                outcomes.append(self._run_stage(asked))
            except TargetError as error:
                outcomes.append(error)
        return outcomes

    def _run_stage(self, asked: StageSpec) -> StageResult | None:
        start = time.monotonic()
        try:
            return run_stage(self.standing, asked, self.listener)
        finally:
            self.pace = max(self.pace, time.monotonic() - start)

    def _run_both(self, kinds: tuple[Kind, ...]) -> bool:
        penalised = {groups.kind for groups, _ in self.job.penalised(kinds)}
        return penalised == {"input", "hidden"}

    def _with_refit(self, run: StageResult) -> StageResult:
        """A stage with the refit of the recipe instead of the brief one."""
        fitted, metric = refit_or_resume(self.original, run.removed)
        run.selected.refit_metric = metric
        return replace(run, refit=fitted, metric=metric)

    def _commit(self, run: StageResult, stand: RefitResult | None = None) -> None:
        """Stand on the network a stage led to, or on ``stand``, the same after another refit.

        After a long refit weak groups have grown again, so that a path has a worse start.
        """
        self.stages.append(run)
        network = (stand or run.refit).network
        self.standing = SearchState.advanced(self.original, network, run.removed, len(self.stages))

    def _full_refit(self) -> RefitSpec:
        return self.original.recipe.refit

    def _brief_refit(self) -> RefitSpec:
        """The refit between two stages: it goes on from the path's own weights."""
        spec, epochs = self.original.recipe.refit, self.original.recipe.train.stage_refit_epochs
        return spec.model_copy(update={"epochs": epochs, "patience": max(1, epochs), "start": "path"})

    def _budget(self, kinds: tuple[Kind, ...]) -> SizeTarget:
        """The goal of a budget of parameters or multiply-accumulates."""
        target = self.original.recipe.target
        counted: SizeMetric = "parameters" if target.parameters is not None else "macs"
        asked = target.parameters if target.parameters is not None else target.macs
        assert asked is not None  # the recipe holds a target
        limit = resolve_budget(asked, current_size(self.original, counted))
        return SizeTarget(counted, limit, kinds, f"target.{counted}", slack=_NEAR)


def _excess(times: tuple[float, float], asked: str | float) -> float:
    """A latency (in ms, and as a share of the original's) over what was asked for."""
    milliseconds, share = times
    return share / resolve_budget(asked, 1.0) if isinstance(asked, str) else milliseconds / asked


def _macs_for_latency(job: Job, watch: LatencyMeter, asked: str | float, kinds: Sequence[Kind]) -> float:
    """Multiply-accumulates of the widest evenly narrowed network that is as fast as asked.

    Latency depends on widths alone, so this needs no training.

    Raises:
        TargetError: Not even the narrowest network is that fast.
    """

    def narrowed(share: float) -> tuple[float, float]:
        marks, multiple = uniform_support(job, share, kinds), job.recipe.target.size_metric_round_to
        network, columns = cut_uncertified(job.network, job.groups, marks, job.probe, job.axes, multiple)
        size = macs(network, ColumnSelection(columns, job.axes)(first_rows(job.data.test, 1)))
        return _excess(watch(network, columns), asked), size

    excess, size = narrowed(0.0)
    if excess > 1:
        raise TargetError(
            f"target.latency: {asked} cannot be met: with one unit in every layer the network still takes "
            f"{excess:.2f} times as much. Ask for more, or for a larger target.batch."
        )
    low, high = 0.0, 1.0
    for _ in range(_CLOCKINGS):
        middle = (low + high) / 2
        excess, counted = narrowed(middle)
        low, high, size = (middle, high, counted) if excess <= 1 else (low, middle, size)
    return size
