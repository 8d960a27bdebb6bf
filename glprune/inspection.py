"""Inspect a recipe and a model without pruning: groups, what cannot be removed, and the cost of a run."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from glprune._user_code import network_errors
from glprune.data.splits import first_rows
from glprune.evaluation.cost import NOT_COUNTED, run_cost
from glprune.export.plugin_hooks import load_exporters
from glprune.model.counting import macs, parameters
from glprune.pruning.groups import group_norms, group_sizes
from glprune.runtime.determinism import reproducible
from glprune.runtime.events import Listener, Stage, silent
from glprune.schema.recipe import Recipe
from glprune.schema.recipe_loading import load_recipe
from glprune.search.prepare import prepare
from glprune.training.epochs import passes_per_epoch
from glprune.training.objective import Objective, lambda_max
from glprune.training.solver import PointSolver

if TYPE_CHECKING:
    from glprune.model.original import SplitMetrics
    from glprune.search.job import Job


@dataclass(frozen=True)
class SetFacts:
    """One group set, as a run would use it.

    Attributes:
        name: Input or layer.
        kind: ``input`` or ``hidden``.
        groups: Number of groups.
        units: Number of columns or hidden units.
        readers: Tensors that hold the groups' weights.
        strength: Strength of its penalty; None where it is not penalised.
        refused: Why it cannot be removed, or None.
        removal: ``cut`` slices weights; ``constant`` replaces removed input columns by a constant inside
            the network, whose code needs the full width.
        inexact: The operation that mixes the units, where the recipe allows an inexact removal.
        attributes: Module attributes that change with the number of units.
        planner: ``trace``, or ``both`` where torch-pruning finds the same plan.
    """

    name: str
    kind: str
    groups: int
    units: int
    readers: tuple[str, ...]
    strength: float | None
    refused: str | None
    removal: str
    inexact: str | None
    attributes: tuple[str, ...]
    planner: str


@dataclass(frozen=True)
class Inspection:
    """What a run would do and cost.

    Attributes:
        original: The metrics of the network, as it is loaded, on every split; empty without labels.
        sets: Every group set.
        features: Name, columns, number of weights and norm of every input feature.
        parameters: Parameters of the network.
        macs: Multiply-accumulates of one row.
        rows: Rows of each split.
        lambda_max: Lambda at which zero becomes a solution for the inputs.
        points: Expected number of lambdas of all paths together.
        passes: Expected number of passes over the training rows, forward and backward, of paths, refits and
            all that the report measures; a pass without gradients counts as a third.
        seconds_per_pass: Measured on one epoch.
        seconds: Expected seconds of processor time of all passes; see ``not_counted``.
        not_counted: What takes time beside them, in words.
        notes: Notes on the data, the policy and the inputs.
    """

    original: tuple[SplitMetrics, ...]
    sets: tuple[SetFacts, ...]
    features: tuple[tuple[str, int, int, float], ...]
    parameters: int
    macs: int
    rows: dict[str, int]
    lambda_max: float
    points: int
    passes: int
    seconds_per_pass: float
    seconds: float
    not_counted: str
    notes: tuple[str, ...]


def inspect(  # noqa: PLR0913 - a public entry point: each option is a keyword of its own
    recipe: str | Path | Recipe,
    model: str | Path,
    *,
    trust_pickle: bool = False,
    accept_original: bool = False,
    allow_factory: Sequence[str] | None = None,
    on_event: Listener | None = None,
) -> Inspection:
    """Find and check the groups of a network and estimate the cost of a run; nothing is written.

    Args:
        recipe: A recipe file, or a recipe built in Python.
        model: The trained weights.
        trust_pickle: Load a fully pickled module, which runs the code it contains.
        accept_original: As in ``glprune.run``.
        allow_factory: As in ``glprune.run``.
        on_event: Called with an event for every step.

    Raises:
        GlpruneError: As in ``glprune.run``.
    """
    recipe = (recipe if isinstance(recipe, Recipe) else load_recipe(recipe)).allowing(allow_factory)
    listener = on_event or silent
    with reproducible(recipe.seed, recipe.threads), network_errors():
        load_exporters(recipe)
        job = prepare(recipe, Path(model), trust_pickle, listener, accept_original=accept_original)
        listener(Stage("cost", "timing one epoch"))
        return _inspect(job)


def _inspect(job: Job) -> Inspection:
    largest, seconds = _measure_pass(job)
    cost = run_cost(job)
    return Inspection(
        original=job.original.splits,
        sets=_sets(job),
        features=_features(job),
        parameters=parameters(job.network),
        macs=macs(job.network, first_rows(job.data.test, 1)),
        rows={"train": job.data.train.rows, "valid": job.data.valid.rows, "test": job.data.test.rows},
        lambda_max=largest,
        points=round(cost.points),
        passes=round(cost.passes),
        seconds_per_pass=seconds,
        seconds=seconds * cost.passes,
        not_counted=NOT_COUNTED,
        notes=(
            *job.data.notes,
            *job.loaded.notes,
            *job.rules.sentences(),
            *job.fixed_inputs,
            *job.original.doubts,
            *job.original.hints,
        ),
    )


def _features(job: Job) -> tuple[tuple[str, int, int, float], ...]:
    """Return name, number of columns, number of weights and norm of every feature."""
    state = dict(job.network.state_dict())
    sizes = [int(n) for g in job.input_groups for n in group_sizes(state, g)]
    norms = [float(n) for g in job.input_groups for n in group_norms(state, g)]
    return tuple(
        (f.name, len(f.columns), size, norm)
        for f, size, norm in zip(job.data.features, sizes, norms, strict=True)
    )


def _sets(job: Job) -> tuple[SetFacts, ...]:
    strengths = {groups.name: job.strength(groups) for groups, _ in job.penalised()}
    return tuple(
        SetFacts(
            name=g.name,
            kind=g.kind,
            groups=len(g.labels),
            units=g.units.count,
            readers=tuple(slot.tensor for slot in g.units.readers),
            strength=strengths.get(g.name),
            refused=g.units.refused,
            removal=g.units.removal,
            inexact=g.units.inexact,
            attributes=tuple(f"{a.module}.{a.name}".lstrip(".") for a in g.units.attributes),
            planner=g.units.planner,
        )
        for g in job.groups
    )


def _measure_pass(job: Job) -> tuple[float, float]:
    """Return lambda_max and the seconds of a pass over the training rows, measured on one epoch."""
    network = copy.deepcopy(job.network)
    spec, penalty = job.recipe.train, job.recipe.penalty
    split, penalised = job.data.train, job.penalised()
    objective = Objective(
        network, job.task, split, penalised, spec.constrain_unpenalised, penalty, job.make_penalty
    )
    largest = lambda_max(objective)
    one_epoch = spec.model_copy(update={"epochs": 1, "full_batch_steps": 0})
    solver = PointSolver(objective, one_epoch, job.recipe.seed)
    solver.solve(0.0)  # the first epoch includes allocations
    start = time.process_time()
    solver.solve(0.0)
    return largest, (time.process_time() - start) / passes_per_epoch(spec.batch_size, split)
