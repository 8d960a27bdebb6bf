"""A recipe made ready: data read, network loaded, groups found and proved."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from glprune.data.splits import ColumnSelection, Inputs, view_columns
from glprune.errors import ModelError, NonFiniteError, RecipeError
from glprune.model.outputs import OutputNames, leaves
from glprune.model.prediction import predict
from glprune.model.standardize import StandardizedNetwork
from glprune.pruning.groups import GroupSet, hidden_groups, input_groups, penalty_weights
from glprune.pruning.planner import plan_units
from glprune.pruning.units import Kind, UnitSet
from glprune.runtime.checkpoint import CheckpointLog
from glprune.runtime.process_group import ALONE, ProcessGroup
from glprune.search.policy import NO_RULES, Rules

if TYPE_CHECKING:
    from glprune.data.records import Data, InputColumns
    from glprune.model.loading import LoadedNetwork
    from glprune.model.task import Task
    from glprune.pruning.removal import RemovalResult
    from glprune.schema.recipe import Recipe
    from glprune.training.penalties import MakePenalty

PROBE_ROWS = 256


@dataclass(frozen=True)
class Job:
    """A recipe with its data and network, ready to be pruned.

    Attributes:
        recipe: The recipe.
        data: The data, columns in the network's order.
        loaded: The network as loaded.
        network: The network in evaluation mode, behind its standardisation layer if the recipe
            states one.
        task: Loss and metrics.
        groups: Proved group sets, inputs first: one for each input with an axis, in their order.
        probe: Real and random rows every cut is compared on.
        outputs: What the network returns.
        rules: What the recipe's policy says of the features.
        journal: Keeps what was done, for a run that is stopped.
        make_penalty: Makes a plugin's penalty; None for those of glprune.
        process_group: The processes that train together.
    """

    recipe: Recipe
    data: Data
    loaded: LoadedNetwork
    network: nn.Module
    task: Task
    groups: list[GroupSet]
    probe: Inputs
    outputs: OutputNames
    rules: Rules = NO_RULES
    journal: CheckpointLog = field(default_factory=CheckpointLog)
    make_penalty: MakePenalty | None = None
    process_group: ProcessGroup = ALONE

    @property
    def axes(self) -> tuple[int | None, ...]:
        """The feature axis of each input; None for inputs that pass whole."""
        return tuple(spec.axis for spec in self.recipe.model.inputs)

    @property
    def input_names(self) -> tuple[str, ...]:
        """The name of each input."""
        return tuple(spec.name for spec in self.recipe.model.inputs)

    @property
    def metric(self) -> str:
        """The metric that selects the point of the path."""
        drop = self.recipe.target.max_drop
        return drop.metric if drop is not None else self.task.default_metric

    @property
    def input_groups(self) -> list[GroupSet]:
        """The group sets of the input features; their labels one after the other are ``data.features``."""
        return [g for g in self.groups if g.kind == "input"]

    @property
    def fixed_inputs(self) -> list[str]:
        """What the user should know of inputs whose columns stay though their penalty was asked for."""
        if self.recipe.penalty.inputs is None:
            return []
        return [
            f"The columns of input {g.name!r} cannot be removed and all stay: {g.units.refused}."
            for g in self.input_groups
            if g.units.refused
        ]

    def penalised(self, kinds: Collection[Kind] = ("input", "hidden")) -> list[tuple[GroupSet, Tensor]]:
        """Group sets of the given kinds under a penalty and the penalty weights of their groups.

        Raises:
            RecipeError: The recipe names a layer the network does not have.
            ModelError: The input columns cannot be cut, or nothing is left to penalise.
        """
        self._check_layers()
        refused = [g for g in self.input_groups if g.units.refused]
        if "input" in kinds and self.fixed_inputs and len(refused) == len(self.input_groups):
            named = len(self.axes) > 1
            reasons = "; ".join(
                f"{g.name}: {g.units.refused}" if named else f"{g.units.refused}" for g in refused
            )
            raise ModelError(
                f"The input columns cannot be removed: {reasons}. To prune hidden units only, set "
                "penalty.inputs: null."
            )
        found = [
            (groups, self.weights(groups))
            for groups in self.groups
            if groups.kind in kinds and not groups.units.refused and self.strength(groups) > 0
        ]
        chosen = [(groups, weights) for groups, weights in found if bool(weights.any())]
        if not chosen:
            reasons = "; ".join(f"{g.name}: {g.units.refused}" for g in self.groups if g.units.refused)
            raise ModelError(f"No group of the network can be removed ({reasons or 'no hidden layer'}).")
        return chosen

    def weights(self, groups: GroupSet) -> Tensor:
        """Penalty weights of a set's groups at the trained network, (n_groups,); 0 of what must stay."""
        adaptive = self.recipe.penalty.weights == "adaptive"
        weights = penalty_weights(self.network.state_dict(), groups, self.strength(groups), adaptive)
        if groups.kind == "input":
            weights[[label in self.rules.required for label in groups.labels]] = 0.0
        return weights

    def strength(self, groups: GroupSet) -> float:
        """The strength of a group set; 0 where it is not penalised."""
        if groups.kind == "input":
            return self.recipe.penalty.inputs.strength if self.recipe.penalty.inputs else 0.0
        spec = self.recipe.penalty.hidden
        if spec is None:
            return 0.0
        factors = [f for pattern, f in spec.layers.items() if fnmatch.fnmatchcase(groups.name, pattern)]
        return spec.strength * (factors[-1] if factors else 1.0)

    def _check_layers(self) -> None:
        spec = self.recipe.penalty.hidden
        names = [g.name for g in self.groups if g.kind == "hidden"]
        for pattern in spec.layers if spec else ():
            if not fnmatch.filter(names, pattern):
                raise RecipeError(
                    f"{self.recipe.where('penalty', 'hidden', 'layers', pattern)}: no hidden layer of this "
                    f"name; the network has {', '.join(names) or 'none'}."
                )


def narrowed_job(job: Job, network: nn.Module, columns: tuple[Tensor, ...], groups: list[GroupSet]) -> Job:
    """The job of a slim network: the same rows through the kept columns.

    Args:
        job: The job of the network it was cut from.
        network: The slim network, in evaluation mode.
        columns: Kept positions along each input's feature axis.
        groups: What is left of the groups; found anew where the network feeds itself constants, whose
            tensors were not sliced.
    """
    narrow = ColumnSelection(columns, job.axes)
    kept = [span[c] for span, own in zip(job.data.spans, columns, strict=True) for c in own.tolist()]
    place = {old: new for new, old in enumerate(kept)}
    features = [(f, [place[c] for c in f.columns if c in place]) for f in job.data.features]
    data = replace(
        job.data,
        inputs=tuple(
            part if part.axis is None else replace(part, columns=tuple(part.columns[c] for c in own.tolist()))
            for part, own in zip(job.data.inputs, columns, strict=True)
        ),
        features=tuple(replace(f, columns=tuple(left)) for f, left in features if left),
        train=view_columns(job.data.train, narrow),
        valid=view_columns(job.data.valid, narrow),
        test=view_columns(job.data.test, narrow),
    )
    probe = narrow(job.probe)
    if any(g.units.removal == "constant" for g in groups):
        groups = find_groups(network, job.recipe, data, probe)
    return replace(job, data=data, network=network, groups=groups, probe=probe)


def find_groups(network: nn.Module, recipe: Recipe, data: Data, probe: Inputs) -> list[GroupSet]:
    """Every group set of a network, planned from a trace and proved on numbers."""
    axes = [spec.axis for spec in recipe.model.inputs]
    names = [spec.name for spec in recipe.model.inputs]
    example = tuple(torch.cat([x[:4], x[-4:]]) for x in probe)
    planned = plan_units(network, example, axes, names, recipe.allow_inexact)
    sets = _with_every_input(planned, data)
    if isinstance(network, StandardizedNetwork):  # layers keep the names the user gave them
        sets = [
            replace(
                s,
                name=s.name.removeprefix("network."),
                refused=s.refused and s.refused.replace("'network.", "'"),
            )
            for s in sets
        ]
    spans = {part.name: span for part, span in zip(data.inputs, data.spans, strict=True)}
    return [
        input_groups(s, _own_features(data, spans[s.name])) if s.kind == "input" else hidden_groups(s)
        for s in sets
    ]


def _with_every_input(sets: list[UnitSet], data: Data) -> list[UnitSet]:
    """Put a refused set where the plan has none for an input with an axis; inputs come first, in order."""
    found = {s.name: s for s in sets if s.kind == "input"}
    inputs = [
        found.get(part.name)
        or UnitSet(part.name, "input", len(part.prunable_columns), (), _why_unplanned(part))
        for part in data.inputs
        if part.axis is not None
    ]
    return [*inputs, *(s for s in sets if s.kind == "hidden")]


def _why_unplanned(part: InputColumns) -> str:
    """Why the plan has no set for an input."""
    if len(part.prunable_columns) == 1:
        return "there is one only, and an input needs one"
    return "the plan has no layer that reads them"


def _own_features(data: Data, span: range) -> list[tuple[str, tuple[int, ...]]]:
    """The features of one input, columns counted within it."""
    return [(f.name, tuple(c - span.start for c in f.columns)) for f in data.features if f.columns[0] in span]


def validate(job: Job, network: nn.Module, narrow: Callable[[Inputs], Inputs]) -> float:
    """The selection metric of a network on the validation split.

    Raises:
        NonFiniteError: It is not a number.
    """
    network.eval()
    (output,), target = predict(lambda x: (job.task.view(network(*x)),), job.data.valid, narrow)
    value = job.task.metric(job.metric, output, target)
    if not math.isfinite(value):
        raise NonFiniteError(
            f"{job.metric} on the validation split is {value}; lower train.lr and refit.lr, or check the "
            "scale of columns and target."
        )
    return value


def as_function(network: nn.Module) -> Callable[[Inputs], tuple[Tensor, ...]]:
    """A network as a function from the tuple of its inputs to the tuple of its outputs."""
    return lambda inputs: leaves(network(*inputs))


def kept_features(data: Data, removed: RemovalResult) -> list[bool]:
    """Whether each feature has a column that stayed, in their order."""
    columns = {span[c] for span, own in zip(data.spans, removed.columns, strict=True) for c in own.tolist()}
    return [not columns.isdisjoint(feature.columns) for feature in data.features]
