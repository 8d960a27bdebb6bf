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

import copy
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from glprune import crew
from glprune.data import Narrowing
from glprune.errors import TargetError
from glprune.events import Listener, PointDone, Stage
from glprune.forbidden import without_forbidden
from glprune.groups import sliced, support
from glprune.job import Job, continued, everything, first_rows, validate
from glprune.journal import Record
from glprune.measure import macs, parameters
from glprune.objective import Objective
from glprune.path import RegularisationPath, at_lambda, at_most, towards
from glprune.point import Point, Size
from glprune.recall import Kept, keep_points, keep_refit, recall_points, recall_refit
from glprune.recipe import AUTO_MULTIPLE, FASTER, RefitSpec
from glprune.refitting import refitted
from glprune.removal import Removed, followed_by, kept_units, remove, shaped
from glprune.report import Latency, PathPoint, Widths
from glprune.sizes import MEASURES, Stopwatch, measured, uniform, unit_costs
from glprune.task import gain
from glprune.train import RefitResult
from glprune.units import Kind

Counted = Literal["fields", "hidden", "parameters", "macs"]
Pick = Callable[[RegularisationPath, Job], Point | None]

WORDS: Mapping[Counted, str] = {
    "fields": "input fields",
    "hidden": "hidden units",
    "parameters": "parameters",
    "macs": "multiply-accumulates for one row",
}
_STEP = 0.5  # share of the size a stage of max_drop aims at, until one loses too much
_FAILURES = 4
_LEAST_STEP = 0.2
_MANY_FIELDS = 1000
_NEAR, _ROUGHLY = 0.02, 0.1
_CLOCKED, _CLOCKINGS = 3, 6
_DENSEST = "of the points that keep no more, the one that keeps most"


@dataclass(frozen=True)
class StageRun:
    """One path and the network it led to.

    Attributes:
        job: The network it began with, its groups and its data.
        kinds: Kinds of groups under the penalty.
        rule: What its point was chosen by.
        balance: Factor on the strength of input groups.
        points: The path, by growing lambda.
        selected: The chosen point.
        cut: What this stage cut.
        removed: Everything cut so far, in the numbering of the original network.
        fitted: The refit.
        metric: The selection metric on the validation split after it.
        widths: What the clock said of hidden widths, where it was asked.
    """

    job: Job
    kinds: tuple[Kind, ...]
    rule: str
    balance: float
    points: list[Point]
    selected: Point
    cut: Removed
    removed: Removed
    fitted: RefitResult
    metric: float
    widths: Widths | None = None


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


@dataclass(frozen=True)
class Goal:
    """At most so much of something.

    Attributes:
        counted: What is counted.
        limit: How much of it may stay.
        kinds: Kinds of groups under the penalty.
        name: The target's key, for messages.
        slack: Share of the limit by which a point may stay below it without a search for a larger one.
    """

    counted: Counted
    limit: float
    kinds: tuple[Kind, ...]
    name: str
    slack: float = 0.0

    @property
    def least(self) -> float:
        """The size from which on a larger one is not searched for."""
        return (1 - self.slack) * self.limit


def search(job: Job, listener: Listener) -> Chosen:
    """Find the network the recipe's target asks for.

    Raises:
        TargetError: No network meets the target.
    """
    return _Search(job, listener).run()


class _Search:
    """A search at work: the original job, the network it stands on, what that lost, and the stages so far."""

    def __init__(self, job: Job, listener: Listener) -> None:
        self.original, self.job, self.listener = job, job, listener
        self.stages: list[StageRun] = []
        self.reference = validate(job, job.network, everything)
        self.removed = without_forbidden(job)
        if self.removed is not None:
            listener(Stage("policy", "refitting the network without the fields that must go"))
            fitted, _ = refitted(job, self.removed, self._brief())
            groups = [sliced(g, self.removed.surgery.kept) for g in job.groups]
            self.job = continued(job, fitted.network, self.removed.columns, groups)

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
        run = self._attempt(kinds, rule, lambda path, job: at_lambda(path, lam), self._full())
        assert run is not None  # at_lambda returns a point or raises
        self._commit(run)

    def _reach(self, goal: Goal) -> None:
        """Stages of equal ratios from the present size down to the goal's."""
        now = start = _size_now(self.job, goal.counted)
        count = self._stages(start, goal)
        for number in range(1, count):
            limit = start * (goal.limit / start) ** (number / count)
            if now <= limit:
                continue
            pick = _approach(goal, now, limit)
            rule = f"on the way to at most {goal.limit:,.0f} {WORDS[goal.counted]}"
            run = self._best(goal, rule, pick, self._brief())
            if run is None:
                continue
            self._commit(run)
            now = _size_now(self.job, goal.counted)
            if now <= goal.limit:  # another path would cut more
                self.stages[-1] = self._refitted(run)
                return
        rule = f"at most {goal.limit:,.0f} {WORDS[goal.counted]}: {_DENSEST}"
        run = self._best(goal, rule, _arrive(goal), self._full())
        assert run is not None  # at_most returns a point or raises
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
                limit = 0.95 * _size_now(self.job, "macs") / reached
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
            record.facts["value"] = crew.agreed(measure())
        return float(record.facts["value"])

    def _within_drop(self, kinds: tuple[Kind, ...], metric: str, amount: float) -> None:
        """Stages that go on while the refitted network loses no more than the amount."""
        both = self.original.recipe.penalty.hidden is not None and "hidden" in kinds
        counted: Counted = "parameters" if both else "fields"
        rule = f"{metric} after the refit at most {amount:g} worse than the original network's"
        share, failures, tried = _STEP, 0, -math.inf
        lost: set[bytes] = set()  # supports that lost too much; their refit would again
        while failures < _FAILURES:
            now = _size_now(self.job, counted)
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
                lost.add(_support_of(run.selected))
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
        def pick(path: RegularisationPath, job: Job) -> Point | None:
            point = _arrive(goal)(path, job)
            return None if _support_of(point) in lost else point

        try:
            return self._best(goal, rule, pick, self._brief())
        except TargetError:  # the groups leave together: as good as losing too much
            return None

    def _best(self, goal: Goal, rule: str, pick: Pick, spec: RefitSpec) -> StageRun | None:
        """The best on the validation split over the balances of input and hidden strengths."""
        joint = goal.counted in MEASURES and self._both(goal.kinds)
        balances = self.original.recipe.penalty.balances if joint else (1.0,)
        costs = unit_costs(self.job, MEASURES[goal.counted]) if goal.counted in MEASURES else {}
        runs = [self._attempt(goal.kinds, rule, pick, spec, b, costs) for b in balances]
        found = [run for run in runs if run is not None]
        metric = self.original.metric
        return max(found, key=lambda run: gain(metric, 0.0, run.metric), default=None)

    def _both(self, kinds: tuple[Kind, ...]) -> bool:
        penalised = {groups.kind for groups, _ in self.job.penalised(kinds)}
        return penalised == {"input", "hidden"}

    def _attempt(
        self,
        kinds: tuple[Kind, ...],
        rule: str,
        pick: Pick,
        spec: RefitSpec,
        balance: float = 1.0,
        costs: Mapping[str, float] = {},
    ) -> StageRun | None:
        """Run one path, cut at its chosen point and refit; nothing is changed here."""
        number = len(self.stages) + 1
        self.listener(Stage(f"path {number}", f"training along growing lambda, {rule}"))
        journal = self.original.journal
        asked = {"number": number, "rule": rule, "balance": balance, "epochs": spec.epochs}
        place, record = journal.place, journal.recall("stage", asked)
        if record is not None:
            return self._recalled(record, kinds, rule, balance) if record.facts else None
        path = self._path(kinds, balance, costs, number)
        point = pick(path, self.job)
        run = None if point is None else self._cut_at(point, path.points, kinds, rule, balance, spec)
        facts, tensors = _keep_stage(run) if run is not None else ({}, {})
        journal.keep("stage", asked, facts, tensors, since=place)
        for p in path.points:
            p.state = {}
        return run

    def _cut_at(
        self,
        point: Point,
        points: list[Point],
        kinds: tuple[Kind, ...],
        rule: str,
        balance: float,
        spec: RefitSpec,
    ) -> StageRun:
        number = len(self.stages) + 1
        self.listener(Stage(f"cut {number}", "cutting zero groups, comparing outputs at every cut"))
        cut, removed, widths = self._fitting(point, number)
        self.listener(Stage(f"refit {number}", "training the slim network without penalty"))
        fitted, metric = refitted(self.original, removed, spec)
        point.refit_metric = metric
        return StageRun(self.job, kinds, rule, balance, points, point, cut, removed, fitted, metric, widths)

    def _fitting(self, point: Point, number: int) -> tuple[Removed, Removed, Widths | None]:
        """The removals of a point, with the hidden widths the recipe asks for or the clock prefers."""
        target = self.original.recipe.target
        if target.multiple != "auto":
            return *self._removals(point, target.multiple), None
        exact, rounded = (self._removals(point, m) for m in (1, AUTO_MULTIPLE))
        if parameters(exact[0].network) == parameters(rounded[0].network):
            return *exact, None
        self.listener(Stage(f"widths {number}", f"timing widths that are multiples of {AUTO_MULTIPLE}"))
        with tempfile.TemporaryDirectory(prefix="glprune-") as folder:
            times = Stopwatch(self.original, target.batch, Path(folder)).against(exact[1], rounded[1])
        found = _widths(times)
        widths = Widths.model_validate(crew.agreed(found.model_dump()))
        return *(exact if widths.multiple == 1 else rounded), widths

    def _recalled(self, record: Record, kinds: tuple[Kind, ...], rule: str, balance: float) -> StageRun:
        """A stage that a stopped run had done; its cut is made and certified again."""
        facts, tensors = record.facts, self.original.journal.weights(record)
        points = recall_points(facts, tensors)
        selected = points[facts["selected"]]
        widths = Widths.model_validate(facts["widths"]) if facts["widths"] else None
        target = self.original.recipe.target
        multiple = 1 if target.multiple == "auto" else target.multiple
        cut, removed = self._removals(selected, widths.multiple if widths else multiple)
        selected.state = {}
        fitted, metric = recall_refit(facts["refit"], tensors, removed.network), facts["metric"]
        return StageRun(
            self.job, kinds, rule, balance, points, selected, cut, removed, fitted, metric, widths
        )

    def _removals(self, point: Point, multiple: int) -> tuple[Removed, Removed]:
        """What a point cuts out of the network the search stands on, and everything cut so far."""
        cut = removal_at(self.job, point, multiple)
        return cut, followed_by(self.removed, cut) if self.removed is not None else cut

    def _path(
        self, kinds: tuple[Kind, ...], balance: float, costs: Mapping[str, float], number: int
    ) -> RegularisationPath:
        job, recipe = self.job, self.original.recipe
        network = copy.deepcopy(job.network)
        penalised = [
            (g, w * costs.get(g.name, 1.0) * (balance if g.kind == "input" else 1.0))
            for g, w in job.penalised(kinds)
        ]
        objective = Objective(
            network, job.task, job.data.train, penalised, recipe.train.bound, recipe.penalty, job.make_penalty
        )

        def done(point: Point) -> None:
            record = path_record(point, number, job, self.original)
            self.listener(PointDone(len(path.points), recipe.train.points, record))

        def measure() -> float:
            return validate(job, network, everything)

        journal = self.original.journal
        path = RegularisationPath(objective, job.groups, recipe.train, recipe.seed, measure, done, journal)
        return path

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
        self.removed = run.removed
        groups = [sliced(g, run.cut.surgery.kept) for g in run.job.groups]
        network = (stand or run.fitted).network
        self.job = continued(self.original, network, run.removed.columns, groups)

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
        limit = absolute(asked, _size_now(self.original, counted))
        return Goal(counted, limit, kinds, f"target.{counted}", slack=_NEAR)


def _keep_stage(run: StageRun) -> Kept:
    """A stage as the journal keeps it: points, of which the selected one has its weights, and the refit."""
    points = [p if p is run.selected else replace(p, state={}) for p in run.points]
    facts, tensors = keep_points(points)
    refit, own = keep_refit(run.fitted)
    chosen = {"selected": run.points.index(run.selected), "refit": refit, "metric": run.metric}
    chosen["widths"] = run.widths.model_dump() if run.widths else None
    return facts | chosen, tensors | own


def _approach(goal: Goal, now: float, limit: float) -> Pick:
    """Pick the smallest point above the goal, on a path that stops at a limit before it."""
    return lambda path, job: towards(path, size_of(goal.counted, job, path), now, limit, goal.least)


def _arrive(goal: Goal) -> Callable[[RegularisationPath, Job], Point]:
    """Pick the largest point within the goal."""
    return lambda path, job: at_most(
        path, size_of(goal.counted, job, path), goal.limit, goal.name, goal.slack
    )


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


def _widths(times: Latency) -> Widths:
    """The widths the clock prefers; rounded ones have more weights and must be faster beyond its noise."""
    return Widths(
        multiple=AUTO_MULTIPLE if times.speedup > 1 + FASTER else 1,
        tried=AUTO_MULTIPLE,
        batch=times.batch,
        runs=times.runs,
        exact_ms=times.original_ms,
        rounded_ms=times.slim_ms,
        speedup=times.speedup,
    )


def absolute(asked: str | float, whole: float) -> float:
    """A budget as a number: itself, or a percentage of the whole."""
    return float(asked[:-1]) / 100 * whole if isinstance(asked, str) else float(asked)


def size_of(counted: Counted, job: Job, path: RegularisationPath) -> Size:
    """What a point of a path keeps."""
    if counted == "fields":
        return path.fields_kept
    multiple = job.recipe.target.counted_multiple
    if counted == "hidden":
        return lambda point: sum(
            len(k) for u, k in kept_units(job.groups, point.alive, multiple) if u.kind == "hidden"
        )
    known: dict[bytes, int] = {}  # by what is alive: a point would keep its weights

    def size(point: Point) -> int:
        key = _support_of(point)
        if key not in known:
            known[key] = measured(job, point.alive, MEASURES[counted], multiple)
        return known[key]

    return size


def _support_of(point: Point) -> bytes:
    return torch.cat(point.alive).numpy().tobytes()


def _size_now(job: Job, counted: Counted) -> float:
    """What the network of a job has."""
    if counted == "fields":
        return len(job.data.fields)
    if counted == "hidden":
        return sum(g.units.count for g in job.groups if g.kind == "hidden" and not g.units.refused)
    alive = [support(job.network.state_dict(), g) for g in job.groups]
    return measured(job, alive, MEASURES[counted], job.recipe.target.counted_multiple)


def removal_at(job: Job, point: Point, multiple: int = 1) -> Removed:
    """Cut what is zero at a point of a path over a job's network, hidden widths rounded to multiples."""
    zeroed = copy.deepcopy(job.network)
    zeroed.load_state_dict(point.state)
    return remove(zeroed, job.groups, job.probe, job.axes, multiple=multiple)


def path_record(point: Point, stage: int, job: Job, original: Job, selected: bool = False) -> PathPoint:
    """A point of the path as the report states it, norms in the order of all fields."""
    fields = original.data.fields
    norms = dict(zip((f.name for f in job.data.fields), point.norms, strict=True))
    told = selected or len(fields) <= _MANY_FIELDS
    return PathPoint(
        stage=stage,
        lam=point.lam,
        objective=point.loss + point.penalty,
        loss=point.loss,
        penalty=point.penalty,
        kkt_zero=point.kkt_zero,
        kkt_active=point.kkt_active,
        fields=point.fields,
        columns=point.columns,
        hidden=point.hidden,
        metric=point.metric,
        refit_metric=point.refit_metric,
        norms=[norms.get(f.name, 0.0) for f in fields] if told else [],
        selected=selected,
    )
