"""One stage of a search: a path over the network it stands on, the cut at the chosen point, and a refit."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from glprune.data.splits import identity
from glprune.errors import TargetError
from glprune.export.latency import LatencyMeter
from glprune.model.counting import parameters
from glprune.pruning.groups import sliced
from glprune.pruning.removal import RemovalResult, remove, then
from glprune.runtime.events import Listener, PointDone, Stage
from glprune.schema.recipe import AUTO_MULTIPLE, FASTER, RefitSpec
from glprune.schema.report import Latency, WidthTiming
from glprune.search.job import Job, narrowed_job, validate
from glprune.search.path import RegularisationPath
from glprune.search.path_point import Point, path_record
from glprune.search.refit import refit_or_resume
from glprune.search.serialization import Kept, load_points, load_refit, save_points, save_refit
from glprune.training.objective import Objective

if TYPE_CHECKING:
    from glprune.pruning.units import Kind
    from glprune.search.targets import PointSelector
    from glprune.training.refit import RefitResult


@dataclass(frozen=True)
class SearchState:
    """The network a stage begins with.

    Attributes:
        original: The job of the original network.
        job: The job of this one.
        removed: Everything cut so far, in the numbering of the original network.
        stages: Stages that led here.
    """

    original: Job
    job: Job
    removed: RemovalResult | None = None
    stages: int = 0

    @classmethod
    def advanced(cls, original: Job, network: nn.Module, removed: RemovalResult, stages: int) -> SearchState:
        """Stand on a network with what was removed from the original one."""
        groups = [sliced(g, removed.plan.kept) for g in original.groups]
        return cls(original, narrowed_job(original, network, removed.columns, groups), removed, stages)


@dataclass(frozen=True)
class StageSpec:
    """What a stage is to do; it pickles.

    Attributes:
        kinds: Kinds of groups under the penalty.
        rule: What its point is chosen by, in words.
        pick: Runs the path and chooses.
        spec: The refit after the cut.
        balance: Factor on the strength of input groups.
        costs: Factor on the strength of each unit set, by its name; 1 where there is none.
    """

    kinds: tuple[Kind, ...]
    rule: str
    selector: PointSelector
    spec: RefitSpec
    input_strength: float = 1.0
    costs: Mapping[str, float] = field(default_factory=dict)

    def key(self, number: int) -> dict[str, Any]:
        """What the journal knows a stage by."""
        return {
            "number": number,
            "rule": self.rule,
            "input_strength": self.input_strength,
            "epochs": self.spec.epochs,
        }


@dataclass(frozen=True)
class StageResult:
    """One path and the network it led to.

    Attributes:
        job: The network it began with, its groups and its data.
        asked: What it was to do.
        points: The path, by growing lambda.
        selected: The chosen point.
        cut: What this stage cut.
        removed: Everything cut so far, in the numbering of the original network.
        fitted: The refit.
        metric: The selection metric on the validation split after it.
        widths: What the clock said of hidden widths, where it was asked.
    """

    job: Job
    spec: StageSpec
    points: list[Point]
    selected: Point
    cut: RemovalResult
    removed: RemovalResult
    refit: RefitResult
    metric: float
    widths: WidthTiming | None = None


def run_stage(standing: SearchState, asked: StageSpec, listener: Listener) -> StageResult | None:
    """Run one path, cut at its chosen point and refit; nothing is changed here.

    Returns:
        None where the path has no point that will do.

    Raises:
        TargetError: The path cannot meet the target.
    """
    number, journal = standing.stages + 1, standing.original.journal
    listener(Stage(f"path {number}", f"training along growing lambda, {asked.rule}"))
    place, key = journal.position, asked.key(number)
    record = journal.load_step("stage", key)
    if record is not None:
        return from_record(standing, asked, record.values, journal.weights(record))
    try:
        run, points = run_stage_uncached(standing, asked, listener)
    except TargetError as error:
        journal.save_step("stage", key, {"failed": str(error)}, since=place)
        raise
    journal.save_step("stage", key, *to_record(run), since=place)
    for point in points:
        point.state = {}
    return run


def run_stage_uncached(
    standing: SearchState, asked: StageSpec, listener: Listener
) -> tuple[StageResult | None, list[Point]]:
    """:func:`attempt` without a journal; the points of the path still have their weights."""
    path = _solve_path(standing, asked, listener)
    point = asked.selector(path, standing.job)
    run = None if point is None else _cut_at(standing, asked, point, path.points, listener)
    return run, path.points


def to_record(run: StageResult | None) -> Kept:
    """A stage as the journal keeps it: points, of which the selected one has its weights, and the refit."""
    if run is None:
        return {}, {}
    points = [p if p is run.selected else replace(p, state={}) for p in run.points]
    facts, tensors = save_points(points)
    refit, own = save_refit(run.refit)
    chosen = {"selected": run.points.index(run.selected), "refit": refit, "metric": run.metric}
    chosen["widths"] = run.widths.model_dump() if run.widths else None
    return facts | chosen, tensors | own


def from_record(
    standing: SearchState, asked: StageSpec, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> StageResult | None:
    """A stage that was done before, or elsewhere; its cut is made and certified again.

    Raises:
        TargetError: It had failed.
    """
    if "failed" in facts:
        raise TargetError(facts["failed"])
    if not facts:
        return None
    points = load_points(facts, tensors)
    selected = points[facts["selected"]]
    widths = WidthTiming.model_validate(facts["widths"]) if facts["widths"] else None
    target = standing.original.recipe.target
    multiple = 1 if target.round_to == "auto" else target.round_to
    cut, removed = _removals(standing, selected, widths.round_to if widths else multiple)
    selected.state = {}
    fitted = load_refit(facts["refit"], tensors, removed.network)
    metric = facts["metric"]
    return StageResult(standing.job, asked, points, selected, cut, removed, fitted, metric, widths)


def _solve_path(standing: SearchState, asked: StageSpec, listener: Listener) -> RegularisationPath:
    job, original = standing.job, standing.original
    recipe, number = original.recipe, standing.stages + 1
    network = copy.deepcopy(job.network)
    penalised = [
        (g, w * asked.costs.get(g.name, 1.0) * (asked.input_strength if g.kind == "input" else 1.0))
        for g, w in job.penalised(asked.kinds)
    ]
    objective = Objective(
        network,
        job.task,
        job.data.train,
        penalised,
        recipe.train.constrain_unpenalised,
        recipe.penalty,
        job.make_penalty,
        job.process_group,
    )

    def done(point: Point) -> None:
        record = path_record(point, number, job, original)
        listener(PointDone(len(path.points), recipe.train.n_lambdas, record))

    def measure() -> float:
        return validate(job, network, identity)

    path = RegularisationPath(
        objective, job.groups, recipe.train, recipe.seed, measure, done, original.journal
    )
    return path


def _cut_at(
    standing: SearchState, asked: StageSpec, point: Point, points: list[Point], listener: Listener
) -> StageResult:
    number = standing.stages + 1
    listener(Stage(f"cut {number}", "cutting zero groups, comparing outputs at every cut"))
    cut, removed, widths = _largest_fitting(standing, point, listener)
    listener(Stage(f"refit {number}", "training the slim network without penalty"))
    fitted, metric = refit_or_resume(standing.original, removed, asked.spec)
    point.refit_metric = metric
    return StageResult(standing.job, asked, points, point, cut, removed, fitted, metric, widths)


def _largest_fitting(
    standing: SearchState, point: Point, listener: Listener
) -> tuple[RemovalResult, RemovalResult, WidthTiming | None]:
    """The removals of a point, with the hidden widths the recipe asks for or the clock prefers."""
    original = standing.original
    target = original.recipe.target
    if target.round_to != "auto":
        return *_removals(standing, point, target.round_to), None
    exact, rounded = (_removals(standing, point, m) for m in (1, AUTO_MULTIPLE))
    if parameters(exact[0].network) == parameters(rounded[0].network):
        return *exact, None
    listener(Stage(f"widths {standing.stages + 1}", f"timing widths that are multiples of {AUTO_MULTIPLE}"))
    widths = _time_widths(standing, exact[1], rounded[1])
    return *(exact if widths.round_to == 1 else rounded), widths


def _time_widths(standing: SearchState, exact: RemovalResult, rounded: RemovalResult) -> WidthTiming:
    """What the clock says of two removals, or said before the run was stopped."""
    original = standing.original

    def measure() -> WidthTiming:
        with tempfile.TemporaryDirectory(prefix="glprune-") as folder:
            watch = LatencyMeter(original, original.recipe.target.batch, Path(folder))
            return _width_timing(watch.against(exact, rounded))

    journal, asked = original.journal, {"number": standing.stages + 1}
    record = journal.load_step("widths", asked)
    if record is None:
        record = journal.save_step(
            "widths", asked, original.process_group.measure_on_rank0(measure).model_dump(mode="json")
        )
    return WidthTiming.model_validate(record.values)


def _removals(standing: SearchState, point: Point, multiple: int) -> tuple[RemovalResult, RemovalResult]:
    """What a point cuts out of the network the search stands on, and everything cut so far."""
    job = standing.job
    zeroed = copy.deepcopy(job.network)
    zeroed.load_state_dict(point.state)
    cut = remove(zeroed, job.groups, job.probe, job.axes, multiple=multiple)
    return cut, then(standing.removed, cut) if standing.removed is not None else cut


def _width_timing(times: Latency) -> WidthTiming:
    """The widths the clock prefers; rounded ones have more weights and must be faster beyond its noise."""
    return WidthTiming(
        round_to=AUTO_MULTIPLE if times.speedup > 1 + FASTER else 1,
        tried=AUTO_MULTIPLE,
        batch=times.batch,
        runs=times.runs,
        exact_ms=times.original_ms,
        rounded_ms=times.slim_ms,
        speedup=times.speedup,
    )
