"""A dry run: what would be grouped, cut and refused, and what it would cost."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from glprune.data.splits import first_rows
from glprune.export.plugin_hooks import load_exporters
from glprune.model.counting import macs, parameters
from glprune.pruning.groups import group_norms, group_sizes
from glprune.runtime.determinism import reproducible
from glprune.runtime.events import Listener, Stage, silent
from glprune.schema.recipe import Recipe
from glprune.schema.recipe_loading import load_recipe
from glprune.search.prepare import prepare
from glprune.training.objective import Objective, lambda_max
from glprune.training.solver import PointSolver

if TYPE_CHECKING:
    from glprune.search.job import Job


@dataclass(frozen=True)
class SetFacts:
    """One group set as the run would see it.

    Attributes:
        name: Input or layer.
        kind: ``input`` or ``hidden``.
        groups: Number of groups.
        units: Number of columns or neurons.
        readers: Tensors that hold the groups' weights.
        strength: Strength of its penalty; None where it is not penalised.
        refused: Why it cannot be cut, or None.
        removal: ``cut`` slices weights; ``constant`` feeds removed input columns a constant inside,
            since the network's code is written for its full width.
        inexact: The operation that mixes the units, where the recipe allows an inexact cut.
        attributes: Module attributes that follow the number of units.
        planner: ``trace``, or ``both`` where torch-pruning's own plan is the same.
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
    """What a run would do.

    Attributes:
        sets: Every group set.
        features: Name, columns, number of weights and norm of every input feature.
        parameters: Parameters of the network.
        macs: Multiply-accumulates of one row.
        rows: Rows of each split.
        lambda_max: Lambda at which zero becomes a solution for the inputs.
        points: Points of all paths, by the grid.
        seconds_per_point: Measured on one epoch.
        seconds: Expected seconds of the whole path.
        notes: What the data reading noted.
    """

    sets: tuple[SetFacts, ...]
    features: tuple[tuple[str, int, int, float], ...]
    parameters: int
    macs: int
    rows: dict[str, int]
    lambda_max: float
    points: int
    seconds_per_point: float
    seconds: float
    notes: tuple[str, ...]


def inspect(
    recipe: str | Path | Recipe,
    model: str | Path,
    *,
    trust_pickle: bool = False,
    allow_factory: Sequence[str] | None = None,
    on_event: Listener | None = None,
) -> Inspection:
    """Find and prove the groups of a network and estimate the cost of a run; nothing is written.

    Args:
        recipe: A recipe file, or a recipe built in Python.
        model: The trained weights.
        trust_pickle: Allow a fully pickled module.
        allow_factory: As of :func:`glprune.run`.
        on_event: Told what happens while it works.

    Raises:
        GlpruneError: As :func:`glprune.run`.
    """
    rules = (recipe if isinstance(recipe, Recipe) else load_recipe(recipe)).allowing(allow_factory)
    with reproducible(rules.seed, rules.threads):
        return _inspected(rules, Path(model), trust_pickle, on_event or silent)


def _inspected(rules: Recipe, model: Path, trust_pickle: bool, listener: Listener) -> Inspection:
    load_exporters(rules)
    job = prepare(rules, model, trust_pickle, listener)
    listener(Stage("cost", "timing one epoch"))
    largest, seconds = _cost(job)
    state = dict(job.network.state_dict())
    norms = [float(n) for g in job.input_groups for n in group_norms(state, g)]
    sizes = [int(n) for g in job.input_groups for n in group_sizes(state, g)]
    points = (
        rules.train.n_lambdas * rules.train.n_stages if rules.target.lam is None else rules.train.n_lambdas
    )
    return Inspection(
        sets=_sets(job),
        features=tuple(
            (f.name, len(f.columns), size, norm)
            for f, size, norm in zip(job.data.features, sizes, norms, strict=True)
        ),
        parameters=parameters(job.network),
        macs=macs(job.network, first_rows(job.data.test, 1)),
        rows={"train": job.data.train.rows, "valid": job.data.valid.rows, "test": job.data.test.rows},
        lambda_max=largest,
        points=points,
        seconds_per_point=seconds,
        seconds=seconds * points,
        notes=(*job.data.notes, *job.rules.sentences(), *job.fixed_inputs),
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


def _cost(job: Job) -> tuple[float, float]:
    """Lambda_max, and the seconds of one point extrapolated from one epoch and one full-batch step."""
    network = copy.deepcopy(job.network)
    bound, penalty = job.recipe.train.constrain_unpenalised, job.recipe.penalty
    split, penalised = job.data.train, job.penalised()
    objective = Objective(network, job.task, split, penalised, bound, penalty, job.make_penalty)
    largest = lambda_max(objective)
    spec = job.recipe.train
    one = spec.model_copy(update={"epochs": 1, "full_batch_steps": 0})
    solver = PointSolver(objective, one, job.recipe.seed)
    solver.solve(0.0)  # the first epoch pays for allocations
    start = time.perf_counter()
    solver.solve(0.0)
    epoch = time.perf_counter() - start
    start = time.perf_counter()
    objective.gradient()
    objective.loss()
    full = time.perf_counter() - start
    return largest, epoch * spec.epochs + full * spec.full_batch_steps
