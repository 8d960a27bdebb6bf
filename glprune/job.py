"""A recipe made ready: data read, network loaded, groups found and proved."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from glprune.data import Data, Split, load_data
from glprune.errors import GlpruneError, ModelError, RecipeError
from glprune.events import Listener, Note, Stage
from glprune.graph import Inputs, Kind, find_unit_sets
from glprune.groups import GroupSet, hidden_groups, input_groups
from glprune.measure import random_like
from glprune.model import Network, load_network
from glprune.recipe import Recipe
from glprune.removal import prove
from glprune.scaling import Scaled, scaled
from glprune.task import Task

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
        groups: Proved group sets, inputs first.
        probe: Real and random rows every cut is compared on.
    """

    recipe: Recipe
    data: Data
    loaded: Network
    network: nn.Module
    task: Task
    groups: list[GroupSet]
    probe: Inputs

    @property
    def axes(self) -> tuple[int, ...]:
        """The feature axis of each input."""
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
    def inputs(self) -> GroupSet:
        """The group set of the input fields."""
        return next(g for g in self.groups if g.kind == "input")

    def penalised(self, kinds: Collection[Kind] = ("input", "hidden")) -> list[tuple[GroupSet, float]]:
        """Group sets of the given kinds under a penalty and the strength of each.

        Raises:
            RecipeError: The recipe names a layer the network does not have.
            ModelError: The input columns cannot be cut, or nothing is left to penalise.
        """
        self._check_layers()
        refused = self.inputs.units.refused
        if refused and "input" in kinds and self.recipe.penalty.inputs is not None:
            raise ModelError(
                f"The input columns cannot be removed: {refused}. To prune hidden units only, set "
                "penalty.inputs: null."
            )
        chosen = [
            (groups, strength)
            for groups in self.groups
            if groups.kind in kinds and not groups.units.refused and (strength := self._strength(groups)) > 0
        ]
        if not chosen:
            reasons = "; ".join(f"{g.name}: {g.units.refused}" for g in self.groups if g.units.refused)
            raise ModelError(f"No group of the network can be removed ({reasons or 'no hidden layer'}).")
        return chosen

    def _strength(self, groups: GroupSet) -> float:
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


@dataclass(frozen=True)
class _Narrowed:
    """A split seen through the kept columns."""

    split: Split
    narrow: Callable[[Inputs], Inputs]

    @property
    def rows(self) -> int:
        return self.split.rows

    def batches(self, size: int | None, generator: torch.Generator | None) -> Iterator[tuple[Inputs, Tensor]]:
        for inputs, target in self.split.batches(size, generator):
            yield self.narrow(inputs), target


def continued(job: Job, network: nn.Module, columns: tuple[Tensor, ...]) -> Job:
    """The job of a slim network: the same rows through the kept columns, groups found anew.

    Args:
        job: The job of the network it was cut from.
        network: The slim network, in evaluation mode.
        columns: Kept positions along each input's feature axis.
    """
    narrow = narrowing(columns, job.axes)
    place = {old: new for new, old in enumerate(columns[0].tolist())}
    fields = [(f, [place[c] for c in f.columns if c in place]) for f in job.data.fields]
    data = replace(
        job.data,
        features=tuple(job.data.features[c] for c in place),
        fields=tuple(replace(f, columns=tuple(left)) for f, left in fields if left),
        train=_Narrowed(job.data.train, narrow),
        valid=_Narrowed(job.data.valid, narrow),
        test=_Narrowed(job.data.test, narrow),
    )
    probe = narrow(job.probe)
    groups = find_groups(network, job.recipe, data, probe)
    return replace(job, data=data, network=network, groups=groups, probe=probe)


def prepare(recipe: Recipe, model: Path, trust_pickle: bool, listener: Listener) -> Job:
    """Read data and network, run the network once, find its groups and prove them.

    Args:
        recipe: The recipe.
        model: The trained weights.
        trust_pickle: Allow a fully pickled module.
        listener: Told the stages and what the user should know of the data.

    Raises:
        GlpruneError: Whatever is wrong with recipe, data or model, in one line.
    """
    if len(recipe.model.inputs) > 1:
        raise RecipeError(f"{recipe.where('model', 'inputs')} lists several inputs; one is supported.")
    listener(Stage("data", "reading and checking"))
    data = load_data(recipe)
    for note in data.notes:
        listener(Note(note))
    listener(Stage("model", "loading the network and proving its groups"))
    loaded = load_network(recipe, model, trust_pickle=trust_pickle)
    scale = data.standardization
    network = loaded.module if scale is None else scaled(loaded.module, scale.mean, scale.std)
    real = first_rows(data.test, PROBE_ROWS)
    task = Task(recipe.task, recipe.model.output, len(data.classes or ()))
    task = task.fitted(_try_forward(network, real, data.features))
    probe = tuple(
        torch.cat(pair) for pair in zip(real, random_like(real, PROBE_ROWS, recipe.seed), strict=True)
    )
    groups = find_groups(network, recipe, data, probe)
    return Job(recipe, data, loaded, network, task, groups, probe)


def find_groups(network: nn.Module, recipe: Recipe, data: Data, probe: Inputs) -> list[GroupSet]:
    """Every group set of a network, planned by the dependency graph and proved on numbers."""
    axes = [spec.axis for spec in recipe.model.inputs]
    names = [spec.name for spec in recipe.model.inputs]
    example = tuple(torch.cat([x[:2], x[-2:]]) for x in probe)
    sets = prove(network, find_unit_sets(network, example, axes, names), example, axes)
    if isinstance(network, Scaled):  # layers keep the names the user gave them
        sets = [
            replace(
                s,
                name=s.name.removeprefix("network."),
                refused=s.refused and s.refused.replace("'network.", "'"),
            )
            for s in sets
        ]
    fields = [(f.name, f.columns) for f in data.fields]
    return [input_groups(s, fields) if s.kind == "input" else hidden_groups(s) for s in sets]


def first_rows(split: Split, rows: int) -> Inputs:
    """The first rows of a split."""
    inputs, _ = next(split.batches(rows, None))
    return inputs


def caller(network: nn.Module) -> Callable[[Inputs], Tensor]:
    """A network as a function of the tuple of its inputs."""
    return lambda inputs: network(*inputs)


def everything(inputs: Inputs) -> Inputs:
    """Take all columns of a batch."""
    return inputs


def narrowing(columns: tuple[Tensor, ...], axes: tuple[int, ...]) -> Callable[[Inputs], Inputs]:
    """Take the kept columns out of a full batch; ``columns`` are positions along each feature axis."""
    return lambda inputs: tuple(
        x.index_select(axis, kept) for x, axis, kept in zip(inputs, axes, columns, strict=True)
    )


def _try_forward(network: nn.Module, inputs: Inputs, features: tuple[str, ...]) -> object:
    try:
        with torch.no_grad():
            output = network(*inputs)
    except GlpruneError:
        raise
    except Exception as error:  # the user's forward may raise anything
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise ModelError(
            f"The network does not run on the data, {len(features)} columns, input shape {shapes} ({first}); "
            "compare data.features with what the network was trained on."
        ) from error
    if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
        raise ModelError(
            "The network returns NaN or Inf on the test data; check data.standardize and the columns."
        )
    return output
