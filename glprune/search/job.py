"""The record that a run works on: recipe, data, network and verified groups."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from glprune.errors import ModelError, RecipeError
from glprune.model.original import Original
from glprune.pruning.groups import GroupSet, penalty_weights
from glprune.runtime.checkpoint import CheckpointLog
from glprune.runtime.process_group import ALONE, ProcessGroup
from glprune.search.policy import NO_RULES, Rules
from glprune.training.importance import TrainedNetwork, group_importances

if TYPE_CHECKING:
    from torch import Tensor, nn

    from glprune.data.records import Data
    from glprune.data.splits import Inputs
    from glprune.model.loading import LoadedNetwork
    from glprune.model.outputs import OutputNames
    from glprune.model.task import Task
    from glprune.pruning.units import GroupKind
    from glprune.schema.recipe import Recipe
    from glprune.search.budget import MakeLatencyMeter
    from glprune.training.penalties import MakePenalty


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
        groups: Verified group sets, inputs first: one for each input with an axis, in their order.
        probe: Real and random rows on which outputs are compared before and after every cut.
        outputs: Names and shapes of the network's outputs.
        rules: The recipe's policy, resolved against the features.
        original: Metrics of the network as loaded, and what speaks against its being the trained one.
        checkpoints: Checkpoints of finished steps, from which a stopped run resumes.
        make_penalty: Makes a plugin's penalty; None for the built-in penalties.
        make_latency_meter: Makes the latency meter; None where no target needs one.
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
    original: Original = Original()  # noqa: RUF009 - frozen
    checkpoints: CheckpointLog = field(default_factory=CheckpointLog)
    make_penalty: MakePenalty | None = None
    process_group: ProcessGroup = ALONE
    make_latency_meter: MakeLatencyMeter | None = None

    @property
    def axes(self) -> tuple[int | None, ...]:
        """The feature axis of each input; None for inputs that cannot be pruned."""
        return tuple(spec.axis for spec in self.recipe.model.inputs)

    @property
    def input_names(self) -> tuple[str, ...]:
        """The name of each input."""
        return tuple(spec.name for spec in self.recipe.model.inputs)

    @property
    def metric(self) -> str:
        """The metric that networks are selected by."""
        drop = self.recipe.target.max_drop
        return drop.metric if drop is not None else self.task.default_metric

    @property
    def input_groups(self) -> list[GroupSet]:
        """The group sets of the input features; their labels in order are ``data.features``."""
        return [g for g in self.groups if g.kind == "input"]

    @property
    def fixed_inputs(self) -> list[str]:
        """A note for each input under a penalty whose columns cannot be removed."""
        if self.recipe.penalty.inputs is None:
            return []
        return [
            f"The columns of input {g.name!r} cannot be removed and all stay: {g.units.refused}."
            for g in self.input_groups
            if g.units.refused
        ]

    def penalised(self, kinds: Collection[GroupKind] = ("input", "hidden")) -> list[tuple[GroupSet, Tensor]]:
        """Return the group sets of some kinds that are under a penalty, with their penalty weights.

        Raises:
            RecipeError: The recipe names a layer the network does not have.
            ModelError: The input columns cannot be removed, or no group can be penalised.
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
        """Return the penalty weights of a set's groups, (n_groups,); 0 for features that must stay."""
        importance = self.importances.get((groups.kind, groups.name))
        weights = penalty_weights(self.network.state_dict(), groups, self.strength(groups), importance)
        if groups.kind == "input":
            weights[[label in self.rules.required for label in groups.labels]] = 0.0
        return weights

    @functools.cached_property
    def importances(self) -> dict[tuple[GroupKind, str], Tensor]:
        """The importance of every group by ``penalty.weights``, shape (n_groups,), by kind and name."""
        sets = [groups for groups in self.groups if not groups.units.refused and self.strength(groups) > 0]
        trained = TrainedNetwork(
            self.network, self.task, self.data.train, self.recipe.seed, self.process_group
        )
        found = group_importances(trained, sets, self.recipe.penalty.weights)
        return {(g.kind, g.name): values for g, values in zip(sets, found, strict=True)}

    def strength(self, groups: GroupSet) -> float:
        """Return the strength of the penalty on a group set; 0 for a set that is not penalised."""
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
