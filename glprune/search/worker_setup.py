"""Rebuild a run's job and shipped network in another process, from what they are made of, which pickles."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from glprune.data.splits import ColumnSelection, IndexableSplit, Split, TensorSplit
from glprune.errors import DataError
from glprune.runtime.events import silent
from glprune.search.prepare import prepare

if TYPE_CHECKING:
    from glprune.pruning.removal import RemovalResult
    from glprune.pruning.surgery import PruningPlan
    from glprune.schema.recipe import Recipe
    from glprune.search.budget import MakeLatencyMeter
    from glprune.search.job import Job


@dataclass(frozen=True)
class WorkerContext:
    """A job and its shipped network.

    Attributes:
        job: The job of the original network.
        network: The shipped network, with the original's dropout rates: a refit scales them itself.
        plan: Turns the original network into it.
        selection: The columns it takes.
    """

    job: Job
    network: nn.Module
    plan: PruningPlan
    selection: ColumnSelection

    @functools.cached_property
    def rows(self) -> IndexableSplit:
        """The training rows, of which a resample draws some."""
        return indexable_split(self.job.data.train, self.job.recipe.seed)


@dataclass(frozen=True)
class JobFactory:
    """Prepares the same job in another process.

    Attributes:
        recipe: The recipe.
        model: The trained weights.
        trust_pickle: Allow a fully pickled module.
        make_latency_meter: Makes the job's latency meter.
        accept_original: Go on where the network does not look trained. Workers do: the run has judged it.
    """

    recipe: Recipe
    model: Path
    trust_pickle: bool
    make_latency_meter: MakeLatencyMeter | None = None
    accept_original: bool = False

    def __call__(self) -> Job:
        """Prepare the job with the process seeded as ``glprune.run`` seeds its own."""
        torch.manual_seed(self.recipe.seed)
        torch.use_deterministic_algorithms(True)
        job = prepare(self.recipe, self.model, self.trust_pickle, silent, accept_original=True)
        return replace(job, make_latency_meter=self.make_latency_meter)


@dataclass(frozen=True)
class WorkerContextFactory:
    """Prepares the same job and shipped network in another process.

    Attributes:
        job: Prepares the job.
        plan: Turns the original network into the shipped one.
        selection: The columns the shipped network takes.
        state: The shipped network's tensors.
    """

    job: JobFactory
    plan: PruningPlan
    selection: ColumnSelection
    state: dict[str, Tensor]

    @classmethod
    def of(cls, job: JobFactory, removed: RemovalResult, network: nn.Module) -> WorkerContextFactory:
        """Make the factory of a run from its job, what it removed and the network it ships."""
        state = {name: tensor.detach() for name, tensor in network.state_dict().items()}
        return cls(job, removed.plan, removed.selection, state)

    def __call__(self) -> WorkerContext:
        """Prepare the job and its slim network."""
        job = self.job()
        network = slim_network(job, self.plan, self.state)
        return WorkerContext(job, network, self.plan, self.selection)


def slim_network(job: Job, plan: PruningPlan, state: Mapping[str, Tensor]) -> nn.Module:
    """Apply a plan to a copy of the job's network and load tensors into it; it is in evaluation mode."""
    network = copy.deepcopy(job.network)
    plan.apply_(network)
    network.load_state_dict(state)
    return network.eval()


def indexable_split(split: Split, seed: int) -> IndexableSplit:
    """Return a split whose rows can be indexed; rows of a loader are read into memory, ordered by the seed.

    Raises:
        DataError: Batches of a loader differ in shape.
    """
    if isinstance(split, IndexableSplit):
        return split
    made = split.batches(None, torch.Generator().manual_seed(seed))
    batches = [(tuple(x.clone() for x in xs), y.clone()) for xs, y in made]  # a loader may fill one buffer
    try:
        inputs = zip(*(x for x, _ in batches), strict=True)
        return TensorSplit(tuple(map(torch.cat, inputs)), torch.cat([y for _, y in batches]))
    except RuntimeError as error:
        raise DataError(
            "data.loader: the training batches differ in shape, and stability holds their rows in memory; "
            "let the loader pad to one length, or set stability: null."
        ) from error
