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

from glprune.data.splits import Narrowing, everything, first_rows
from glprune.errors import TargetError
from glprune.export.latency import Stopwatch
from glprune.model.counting import macs
from glprune.model.task import gain
from glprune.pruning.removal import Removed, shaped
from glprune.pruning.units import Kind
from glprune.runtime import process_group
from glprune.runtime.events import Listener, Stage
from glprune.runtime.process_pool import Fan
from glprune.schema.recipe import RefitSpec
from glprune.search.budget import MEASURES, uniform, unit_costs
from glprune.search.job import Job, validate
from glprune.search.parallel import attempts
from glprune.search.policy_removal import without_forbidden
from glprune.search.refit import refitted
from glprune.search.stage import Asked, StageRun, Standing, attempt
from glprune.search.targets import (
    WORDS,
    Approach,
    Arrive,
    Counted,
    Exactly,
    Goal,
    Pick,
    absolute,
    size_now,
    support_of,
)
from glprune.training.refit import RefitResult

_STEP = 0.5  # share of the size a stage of max_drop aims at, until one loses too much
_FAILURES = 4
_LEAST_STEP = 0.2
_NEAR, _ROUGHLY = 0.02, 0.1
_CLOCKED, _CLOCKINGS = 3, 6
_WORTH = 10.0  # seconds of a path from which on other processes are worth their start
_DENSEST = "of the points that keep no more, the one that keeps most"


@dataclass(frozen=True)
class Chosen:
    """The network a run ships and how it was chosen.

    Attributes:
        stages: The stages that led to it, in order.
        reference: The selection metric of the original network on the validation split.
        removed: Everything cut, and the evidence.
        fitted: The last refit.
        refit_metric: The selection metric on the validation split after it.
    """

    stages: tuple[StageRun, ...]
    reference: float
    removed: Removed
    fitted: RefitResult
    refit_metric: float


def search(job: Job, listener: Listener, workers: Callable[[], Fan[Job]] | None = None) -> Chosen:
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

    def __init__(self, job: Job, listener: Listener, workers: Callable[[], Fan[Job]] | None) -> None:
        self.original, self.listener, self.workers = job, listener, workers
        self.standing = Standing(job, job)
        self.stages: list[StageRun] = []
        self.pace = 0.0
        self.reference = validate(job, job.network, everything)
        removed = without_forbidden(job)
        if removed is not None:
            listener(Stage("policy", "refitting the network without the fields that must go"))
            fitted, _ = refitted(job, removed, self._brief())
            self.standing = Standing.on(job, fitted.network, removed, 0)

    @property
    def job(self) -> Job:
        """The job of the network the search stands on."""
        return self.standing.job

    def run(self) -> Chosen:
        target = self.original.recipe.target
        hidden = Goal("hidden", float(target.max_hidden or 0), ("hidden",), "target.max_hidden")
        first: tuple[Kind, ...] = ("input", "hidden") if target.max_hidden is None else ("input",)
        if target.lam is not None:
            self._lambda(target.lam, first)
        elif target.max_features is not None:
            self._reach(Goal("fields", target.max_features, first, "target.max_features"))
        elif target.max_drop is not None:
            self._within_drop(first, target.max_drop.metric, target.max_drop.amount)
        elif target.latency is not None:
            self._reach_latency(target.latency, target.batch, first)
        elif not target.hidden_alone:
            self._reach(self._budget(first))
        if target.max_hidden is not None:
            self._reach(hidden)
        last = self.stages[-1]
        return Chosen(tuple(self.stages), self.reference, last.removed, last.fitted, last.metric)

    def _lambda(self, lam: float, kinds: tuple[Kind, ...]) -> None:
        rule = f"lambda {lam:g} as the recipe states"
        run = self._attempt(Asked(kinds, rule, Exactly(lam), self._full()))
        assert run is not None  # it picks a point or raises
        self._commit(run)

    def _reach(self, goal: Goal) -> None:
        """Stages of equal ratios from the present size down to the goal's."""
        now = start = size_now(self.job, goal.counted)
        count = self._stages(start, goal)
        for number in range(1, count):
            limit = start * (goal.limit / start) ** (number / count)
            if now <= limit:
                continue
            pick = Approach(goal, now, limit)
            rule = f"on the way to at most {goal.limit:,.0f} {WORDS[goal.counted]}"
            run = self._best(goal, rule, pick, self._brief())
            if run is None:
                continue
            self._commit(run)
            now = size_now(self.job, goal.counted)
            if now <= goal.limit:  # another path would cut more
                self.stages[-1] = self._refitted(run)
                return
        rule = f"at most {goal.limit:,.0f} {WORDS[goal.counted]}: {_DENSEST}"
        run = self._best(goal, rule, Arrive(goal), self._full())
        assert run is not None  # it picks a point or raises
        self._commit(run)

    def _stages(self, start: float, goal: Goal) -> int:
        """As many stages as the recipe says, but none for less than a fifth of what there is."""
        steps = math.log(max(1.0, start / goal.limit)) / -math.log(1 - _LEAST_STEP)
        return max(1, min(self.original.recipe.train.stages, round(steps)))

    def _reach_latency(self, asked: str | float, batch: int, kinds: tuple[Kind, ...]) -> None:
        """A budget of multiply-accumulates found by the clock, lowered until the clock agrees."""
        self.listener(Stage("latency", "timing narrower networks through ONNX Runtime"))
        with tempfile.TemporaryDirectory(prefix="glprune-") as folder:
            watch = Stopwatch(self.original, batch, Path(folder))
            limit = self._clocked("limit", lambda: _macs_for_latency(self.original, watch, asked, kinds))
            for _ in range(_CLOCKED):
                self._reach(Goal("macs", limit, kinds, "target.latency", slack=_NEAR))
                reached = self._clocked("reached", lambda: self._excess_now(watch, asked))
                if reached <= 1:
                    return
                limit = 0.95 * size_now(self.job, "macs") / reached
        raise TargetError(
            f"target.latency: {asked} was not reached; the network found takes {reached:.2f} times as much "
            f"at batch {batch}. Ask for less, or for macs: widths alone do not make it faster here."
        )

    def _excess_now(self, watch: Stopwatch, asked: str | float) -> float:
        last = self.stages[-1]
        return _excess(watch(last.fitted.network, last.removed.columns), asked)

    def _clocked(self, what: str, measure: Callable[[], float]) -> float:
        """What the clock said, to a stopped run too: another time it would say something else."""
        record = self.original.journal.open("clock", {"what": what})
        if not record.facts:
            record.facts["value"] = process_group.measured(measure)
        return float(record.facts["value"])

    def _within_drop(self, kinds: tuple[Kind, ...], metric: str, amount: float) -> None:
        """Stages that go on while the refitted network loses no more than the amount."""
        both = self.original.recipe.penalty.hidden is not None and "hidden" in kinds
        counted: Counted = "parameters" if both else "fields"
        rule = f"{metric} after the refit at most {amount:g} worse than the original network's"
        share, failures, tried = _STEP, 0, -math.inf
        lost: set[bytes] = set()  # supports that lost too much; their refit would again
        while failures < _FAILURES:
            now = size_now(self.job, counted)
            limit = math.floor(now * share)
            if now <= 1:
                break
            goal = Goal(counted, max(1, min(limit, now - 1)), kinds, "target.max_drop", slack=_ROUGHLY)
            run = self._drop_attempt(goal, rule, lost)
            whole = run and self._refitted(run)
            if run is not None and whole is not None:
                tried = max(tried, gain(metric, self.reference, whole.metric))
                if gain(metric, self.reference, whole.metric) >= -amount:
                    self._commit(whole, run.fitted)
                    lost.clear()
                    continue
                lost.add(support_of(run.selected))
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

    def _drop_attempt(self, goal: Goal, rule: str, lost: set[bytes]) -> StageRun | None:
        try:
            return self._best(goal, rule, Arrive(goal, frozenset(lost)), self._brief())
        except TargetError:  # the groups leave together: as good as losing too much
            return None

    def _best(self, goal: Goal, rule: str, pick: Pick, spec: RefitSpec) -> StageRun | None:
        """The best on the validation split over the balances of input and hidden strengths.

        Raises:
            TargetError: None of them has a network, and some path cannot meet the target.
        """
        joint = goal.counted in MEASURES and self._both(goal.kinds)
        balances = self.original.recipe.penalty.balances if joint else (1.0,)
        costs = unit_costs(self.job, MEASURES[goal.counted]) if goal.counted in MEASURES else {}
        outcomes = self._outcomes([Asked(goal.kinds, rule, pick, spec, b, costs) for b in balances])
        found = [run for run in outcomes if isinstance(run, StageRun)]
        failures = [error for error in outcomes if isinstance(error, TargetError)]
        if failures and not found:
            raise failures[0]
        metric = self.original.metric
        return max(found, key=lambda run: gain(metric, 0.0, run.metric), default=None)

    def _outcomes(self, asks: Sequence[Asked]) -> list[StageRun | TargetError | None]:
        """What comes of several paths, in their order: here, or side by side where they take long."""
        outcomes: list[StageRun | TargetError | None] = []
        for number, asked in enumerate(asks):
            left = asks[number:]
            if self.workers is not None and len(left) > 1 and self.pace >= _WORTH:
                return [*outcomes, *attempts(self.standing, left, self.workers(), self.listener)]
            try:
                outcomes.append(self._attempt(asked))
            except TargetError as error:
                outcomes.append(error)
        return outcomes

    def _attempt(self, asked: Asked) -> StageRun | None:
        start = time.monotonic()
        try:
            return attempt(self.standing, asked, self.listener)
        finally:
            self.pace = max(self.pace, time.monotonic() - start)

    def _both(self, kinds: tuple[Kind, ...]) -> bool:
        penalised = {groups.kind for groups, _ in self.job.penalised(kinds)}
        return penalised == {"input", "hidden"}

    def _refitted(self, run: StageRun) -> StageRun:
        """A stage with the refit of the recipe instead of the brief one."""
        fitted, metric = refitted(self.original, run.removed)
        run.selected.refit_metric = metric
        return replace(run, fitted=fitted, metric=metric)

    def _commit(self, run: StageRun, stand: RefitResult | None = None) -> None:
        """Stand on the network a stage led to, or on ``stand``, the same after another refit.

        After a long refit weak groups have grown again, so that a path has a worse start.
        """
        self.stages.append(run)
        network = (stand or run.fitted).network
        self.standing = Standing.on(self.original, network, run.removed, len(self.stages))

    def _full(self) -> RefitSpec:
        return self.original.recipe.refit

    def _brief(self) -> RefitSpec:
        """The refit between two stages: it goes on from the path's own weights."""
        spec, epochs = self.original.recipe.refit, self.original.recipe.train.between
        return spec.model_copy(update={"epochs": epochs, "patience": max(1, epochs), "start": "path"})

    def _budget(self, kinds: tuple[Kind, ...]) -> Goal:
        """The goal of a budget of parameters or multiply-accumulates."""
        target = self.original.recipe.target
        counted: Counted = "parameters" if target.parameters is not None else "macs"
        asked = target.parameters if target.parameters is not None else target.macs
        assert asked is not None  # the recipe holds a target
        limit = absolute(asked, size_now(self.original, counted))
        return Goal(counted, limit, kinds, f"target.{counted}", slack=_NEAR)


def _excess(times: tuple[float, float], asked: str | float) -> float:
    """A latency (in ms, and as a share of the original's) over what was asked for."""
    milliseconds, share = times
    return share / absolute(asked, 1.0) if isinstance(asked, str) else milliseconds / asked


def _macs_for_latency(job: Job, watch: Stopwatch, asked: str | float, kinds: Sequence[Kind]) -> float:
    """Multiply-accumulates of the widest evenly narrowed network that is as fast as asked.

    Latency depends on widths alone, so this needs no training.

    Raises:
        TargetError: Not even the narrowest network is that fast.
    """

    def narrowed(share: float) -> tuple[float, float]:
        marks, multiple = uniform(job, share, kinds), job.recipe.target.counted_multiple
        network, columns = shaped(job.network, job.groups, marks, job.probe, job.axes, multiple)
        size = macs(network, Narrowing(columns, job.axes)(first_rows(job.data.test, 1)))
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
