"""One stage of a search: a path from the present network, the removal at the chosen point, and a refit."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from glprune.data.splits import identity
from glprune.errors import TargetError
from glprune.model.counting import parameters
from glprune.model.prediction import validate
from glprune.pruning.groups import sliced
from glprune.pruning.removal import RemovalResult, remove, then
from glprune.runtime.checkpoint import reading
from glprune.runtime.events import Listener, PointDone, Stage, silent
from glprune.schema.recipe import AUTO_MULTIPLE, FASTER, RefitSpec
from glprune.schema.report import Latency, WidthTiming
from glprune.search.budget import latency_meter
from glprune.search.job import Job
from glprune.search.outcome import Outcomes, initial_outcomes
from glprune.search.path import RegularisationPath
from glprune.search.path_point import NUMBER, Checkpoint, Point, load_points, path_record, save_points
from glprune.search.prepare import slim_job
from glprune.search.refit import load_refit, refit_or_resume, save_refit
from glprune.training.feature_groups import remaining_groups
from glprune.training.objective import Objective
from glprune.training.solver import PointSolver

if TYPE_CHECKING:
    from glprune.pruning.groups import GroupSet
    from glprune.pruning.units import GroupKind
    from glprune.search.targets import PointSelector
    from glprune.training.refit import RefitResult


@dataclass(frozen=True)
class SearchState:
    """The network a stage begins with.

    Attributes:
        original: The job of the original network.
        job: The job of this network.
        outcomes: What became of each feature of the original network.
        removed: Everything removed so far, in the numbering of the original network.
        stages: Number of stages that led here.
    """

    original: Job
    job: Job
    outcomes: Outcomes
    removed: RemovalResult | None = None
    stages: int = 0

    @classmethod
    def initial(cls, job: Job) -> SearchState:
        """Begin with the trained network."""
        return cls(job, job, initial_outcomes(job))

    def advanced(
        self, network: nn.Module, removed: RemovalResult, outcomes: Outcomes, stages: int
    ) -> SearchState:
        """Go on to a slim network.

        Args:
            network: The network, in evaluation mode.
            removed: Everything removed from the original network.
            outcomes: What became of each feature.
            stages: Number of stages that led to the network.
        """
        groups = [sliced(g, removed.plan.kept) for g in self.original.groups]
        job = slim_job(self.original, network, removed.selection, groups)
        return replace(self, job=job, outcomes=outcomes, removed=removed, stages=stages)


@dataclass(frozen=True)
class StageSpec:
    """What a stage does; it pickles.

    Attributes:
        kinds: Kinds of groups under the penalty.
        rule: How the point is chosen, in words.
        selector: Runs the path and chooses the point.
        refit: The refit after the removal.
        input_strength: Factor on the strength of input groups.
        costs: Factor on the strength of each unit set, by its name; default 1.
        unpenalised: Set and label of the groups without a penalty, which the stage therefore keeps.
        max_layer_loss: Largest share of a hidden layer's units that the stage may remove; the strongest
            others have no penalty.
    """

    kinds: tuple[GroupKind, ...]
    rule: str
    selector: PointSelector
    refit: RefitSpec
    input_strength: float = 1.0
    costs: Mapping[str, float] = field(default_factory=dict)
    unpenalised: frozenset[tuple[str, str]] = frozenset()
    max_layer_loss: float = 1.0

    def key(self, number: int) -> dict[str, Any]:
        """Return what identifies the stage in the checkpoint log."""
        return {
            "number": number,
            "rule": self.rule,
            "input_strength": self.input_strength,
            "epochs": self.refit.epochs,
            "unpenalised": sorted(map(list, self.unpenalised)),
            "max_layer_loss": self.max_layer_loss,
        }


@dataclass(frozen=True)
class StageResult:
    """One path and the network it led to.

    Attributes:
        job: The job of the network it began with.
        spec: What the stage did.
        points: The path, by growing lambda.
        selected: The chosen point.
        cut: What this stage removed.
        removed: Everything removed so far, in the numbering of the original network.
        refit: The refit.
        metric: The selection metric on the validation split after the refit.
        widths: The measured latency of hidden widths, if the recipe asks for it.
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

    @property
    def penalised(self) -> list[GroupKind]:
        """The kinds of groups that were under the penalty."""
        kinds = {groups.kind for groups, _ in _penalised(self.job, self.spec)}
        return [kind for kind in self.spec.kinds if kind in kinds]


def run_stage(state: SearchState, spec: StageSpec, listener: Listener) -> StageResult | None:
    """Run one path, remove the zero groups of its chosen point and refit; the state is not changed.

    Returns:
        None where the path has no suitable point.

    Raises:
        TargetError: The path cannot meet the target.
    """
    number, journal = state.stages + 1, state.original.checkpoints
    listener(Stage(f"path {number}", f"training along growing lambda, {spec.rule}"))
    place, key = journal.position, spec.key(number)
    record = journal.load_step("stage", key)
    if record is not None:
        with reading(record):
            return from_record(state, spec, record.values, journal.weights(record))
    try:
        run, points = run_stage_uncached(state, spec, listener)
    except TargetError as error:
        journal.save_step("stage", key, {"failed": str(error)}, since=place)
        raise
    journal.save_step("stage", key, *to_record(run), since=place)
    for point in points:
        point.state = {}
    return run


def run_stage_uncached(
    state: SearchState, spec: StageSpec, listener: Listener
) -> tuple[StageResult | None, list[Point]]:
    """``run_stage`` without the checkpoint log; the points of the path still have their weights."""
    path = _make_path(state, spec, listener)
    point = spec.selector(path, state.job)
    if point is None:
        return None, path.points
    return _cut_at(state, spec, point, path.points, listener), path.points


def path_support(state: SearchState, spec: StageSpec) -> frozenset[str] | None:
    """Return the features that a stage's path would keep, without a removal; None where it has no point."""
    point = spec.selector(_make_path(state, spec, silent), state.job)
    if point is None:
        return None
    pairs = zip(state.job.groups, point.alive, strict=True)
    return frozenset(
        label
        for groups, alive in pairs
        if groups.kind == "input"
        for label, kept in zip(groups.labels, alive.tolist(), strict=True)
        if kept
    )


def to_record(run: StageResult | None) -> Checkpoint:
    """Return the checkpoint of a stage: its points, the selected one with weights, and its refit."""
    if run is None:
        return {}, {}
    points = [p if p is run.selected else replace(p, state={}) for p in run.points]
    values, tensors = save_points(points)
    refit_values, refit_tensors = save_refit(run.refit)
    chosen = {"selected": run.points.index(run.selected), "refit": refit_values, "metric": run.metric}
    chosen["widths"] = run.widths.model_dump() if run.widths else None
    return values | chosen, tensors | refit_tensors


def from_record(
    state: SearchState, spec: StageSpec, values: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> StageResult | None:
    """Return a stage that was run before, or in another process; its removal is made and verified again.

    Raises:
        TargetError: The stage failed.
        ValueError: The record is not one of this stage; or another error about its content.
    """
    if "failed" in values:
        raise TargetError(values["failed"])
    if not values:
        return None
    points = load_points(values, tensors, state.job.network, state.job.groups)
    selected = points[values["selected"]]
    widths = WidthTiming.model_validate(values["widths"]) if values["widths"] else None
    target = state.original.recipe.target
    multiple = 1 if target.round_to == "auto" else target.round_to
    cut, removed = _removals(state, selected, widths.round_to if widths else multiple)
    selected.state = {}
    refit = load_refit(values["refit"], tensors, removed.network)
    metric = NUMBER.validate_python(values["metric"], strict=True)
    return StageResult(state.job, spec, points, selected, cut, removed, refit, metric, widths)


def _make_path(state: SearchState, spec: StageSpec, listener: Listener) -> RegularisationPath:
    job, original = state.job, state.original
    recipe, number = original.recipe, state.stages + 1
    network = copy.deepcopy(job.network)
    groups = remaining_groups(recipe.penalty, _feature_names(original), _feature_names(job))
    objective = Objective(
        network,
        job.task,
        job.data.train,
        _penalised(job, spec),
        recipe.train.constrain_unpenalised,
        recipe.penalty.model_copy(update={"groups": groups}),
        job.make_penalty,
        job.process_group,
    )

    def report(point: Point) -> None:
        record = path_record(point, number, job, original)
        listener(PointDone(len(path.points), recipe.train.n_lambdas, record))

    def measure() -> float:
        return validate(network, job.task, job.metric, job.data.valid, identity)

    solver = PointSolver(objective, recipe.train, recipe.seed)
    path = RegularisationPath(solver, job.groups, measure, report, original.checkpoints)
    return path  # a name, since report() reads its points


def _penalised(job: Job, spec: StageSpec) -> list[tuple[GroupSet, Tensor]]:
    """Return the group sets with a group under a stage's penalty, with the penalty weights."""
    weighted = [(g, _limited(w * _factors(spec, g), g, spec)) for g, w in job.penalised(spec.kinds)]
    return [(g, w) for g, w in weighted if bool(w.any())]


def _feature_names(job: Job) -> list[str]:
    return [feature.name for feature in job.data.features]


def _factors(spec: StageSpec, groups: GroupSet) -> Tensor:
    """Return a stage's factor on the penalty weight of each group of a set, shape (n_groups,), float64."""
    factor = spec.costs.get(groups.name, 1.0) * (spec.input_strength if groups.kind == "input" else 1.0)
    on = [(groups.name, label) not in spec.unpenalised for label in groups.labels]
    return factor * torch.tensor(on, dtype=torch.float64)


def _limited(weights: Tensor, groups: GroupSet, spec: StageSpec) -> Tensor:
    """Set the penalty of a layer's strongest units to zero, so that it loses at most a share, and not all.

    A layer that lost many units has less to lose by the next: without a limit one layer starves while others
    stay whole.
    """
    if spec.max_layer_loss >= 1:
        return weights
    number = min(math.ceil(spec.max_layer_loss * len(weights)), len(weights) - 1)
    weakest = weights.argsort(descending=True, stable=True)[:number]
    return torch.zeros_like(weights).index_copy(0, weakest, weights[weakest])


def _cut_at(
    state: SearchState, spec: StageSpec, point: Point, points: list[Point], listener: Listener
) -> StageResult:
    number = state.stages + 1
    listener(Stage(f"cut {number}", "cutting zero groups, comparing outputs at every cut"))
    cut, removed, widths = _largest_fitting(state, point, listener)
    listener(Stage(f"refit {number}", "training the slim network without penalty"))
    refit, metric = refit_or_resume(state.original, removed, spec.refit)
    point.refit_metric = metric
    return StageResult(state.job, spec, points, point, cut, removed, refit, metric, widths)


def _largest_fitting(
    state: SearchState, point: Point, listener: Listener
) -> tuple[RemovalResult, RemovalResult, WidthTiming | None]:
    """Return the removals of a point, with the hidden widths that the recipe asks for or that are faster."""
    original = state.original
    target = original.recipe.target
    if target.round_to != "auto":
        return *_removals(state, point, target.round_to), None
    exact, rounded = (_removals(state, point, m) for m in (1, AUTO_MULTIPLE))
    if parameters(exact[0].network) == parameters(rounded[0].network):
        return *exact, None
    listener(Stage(f"widths {state.stages + 1}", f"timing widths that are multiples of {AUTO_MULTIPLE}"))
    widths = _time_widths(state, exact[1], rounded[1])
    return *(exact if widths.round_to == 1 else rounded), widths


def _time_widths(state: SearchState, exact: RemovalResult, rounded: RemovalResult) -> WidthTiming:
    """Measure the latency of two removals, or return what a stopped run measured."""
    original = state.original

    def measure() -> WidthTiming:
        with tempfile.TemporaryDirectory(prefix="glprune-") as folder:
            meter = latency_meter(original, original.recipe.target.batch, Path(folder))
            return _width_timing(meter.against(exact, rounded))

    journal, key = original.checkpoints, {"number": state.stages + 1}
    record = journal.load_step("widths", key)
    if record is None:
        record = journal.save_step(
            "widths", key, original.process_group.measure_on_rank0(measure).model_dump(mode="json")
        )
    with reading(record):
        return WidthTiming.model_validate(record.values)


def _removals(state: SearchState, point: Point, multiple: int) -> tuple[RemovalResult, RemovalResult]:
    """Remove the zero groups of a point; return this removal, and it together with all earlier ones."""
    job = state.job
    zeroed = copy.deepcopy(job.network)
    zeroed.load_state_dict(point.state)
    cut = remove(zeroed, job.groups, job.probe, job.axes, multiple=multiple)
    return cut, then(state.removed, cut) if state.removed is not None else cut


def _width_timing(times: Latency) -> WidthTiming:
    """Choose the faster widths; rounded ones have more weights and must be faster by more than noise."""
    return WidthTiming(
        round_to=AUTO_MULTIPLE if times.speedup > 1 + FASTER else 1,
        tried=AUTO_MULTIPLE,
        batch=times.batch,
        runs=times.runs,
        exact_ms=times.original_ms,
        rounded_ms=times.slim_ms,
        speedup=times.speedup,
    )
