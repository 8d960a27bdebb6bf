"""Stages from one network side by side, in processes that prepared the same job.

What a stage is asked for goes there, and what the journal would keep of it comes back: its cut is made and
certified again here, as that of a run that was stopped is.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from glprune.errors import TargetError
from glprune.pruning.removal import Removed
from glprune.pruning.surgery import Surgery
from glprune.runtime.checkpoint import Journal, packed
from glprune.runtime.events import Listener, PartDone, Stage, silent
from glprune.runtime.process_pool import Fan
from glprune.search.job import Job
from glprune.search.serialization import Kept
from glprune.search.stage import Asked, StageRun, Standing, carry_out, kept, recalled
from glprune.search.worker_setup import slim_network

_Sent = tuple[dict[str, Any], bytes]  # facts, and tensors as safetensors has them: no memory is shared


def attempts(
    standing: Standing, asks: Sequence[Asked], workers: Fan[Job], listener: Listener
) -> list[StageRun | TargetError | None]:
    """:func:`glprune.search.stage.attempt` of several paths at once.

    Args:
        standing: The network all begin with.
        asks: What each is to do.
        workers: Processes that prepared the original job.
        listener: Told every finished one.

    Returns:
        For each what an attempt here would have returned, or raised.
    """
    number, journal = standing.stages + 1, standing.original.journal
    come = {place: kept for place, kept in enumerate(_kept_before(asks, number, journal))}
    stored, left = len(come), list(range(len(come), len(asks)))
    if left:
        listener(Stage(f"path {number}", f"{len(left)} paths side by side, {asks[0].rule}"))

    def done(item: int, sent: _Sent) -> None:
        nonlocal stored
        come[left[item]] = sent[0], safetensors.torch.load(sent[1])
        while stored in come:  # a run that goes on is handed them in this order
            journal.keep("stage", asks[stored].key(number), *come[stored])
            stored += 1
        listener(PartDone("paths", len(come), len(asks)))

    start = pickle.dumps(_Start.of(standing))
    workers.map(functools.partial(_elsewhere, start), [asks[place] for place in left], done)
    return [_outcome(standing, asked, *come[place]) for place, asked in enumerate(asks)]


def _kept_before(asks: Sequence[Asked], number: int, journal: Journal) -> Iterator[Kept]:
    """What a run that was stopped had done of them: the first ones."""
    for asked in asks:
        record = journal.recall("stage", asked.key(number))
        if record is None:
            return
        yield record.facts, journal.weights(record)


@dataclass(frozen=True)
class _Start:
    """A network to stand on, as it pickles.

    Attributes:
        stages: Stages that led to it.
        surgery: What turned the original network into it; None: nothing.
        columns: The columns it takes.
        state: Its tensors.
    """

    stages: int
    surgery: Surgery | None
    columns: tuple[Tensor, ...]
    state: dict[str, Tensor]

    @classmethod
    def of(cls, standing: Standing) -> _Start:
        removed = standing.removed
        surgery, columns = (removed.surgery, removed.columns) if removed is not None else (None, ())
        return cls(standing.stages, surgery, columns, standing.job.network.state_dict())

    def standing(self, original: Job) -> Standing:
        if self.surgery is None:
            return Standing(original, original, None, self.stages)
        network = slim_network(original, self.surgery, self.state)
        removed = Removed(network, self.surgery, self.columns, (), (), 0.0, len(original.probe[0]))
        return Standing.on(original, network, removed, self.stages)


def _elsewhere(start: bytes, job: Job, asked: Asked) -> _Sent:
    torch.set_num_threads(job.recipe.threads)  # results depend on their number
    try:
        run, _ = carry_out(pickle.loads(start).standing(job), asked, silent)
    except TargetError as error:
        return {"failed": str(error)}, packed({})
    facts, tensors = kept(run)
    return facts, packed(tensors)


def _outcome(
    standing: Standing, asked: Asked, facts: dict[str, Any], tensors: dict[str, Tensor]
) -> StageRun | TargetError | None:
    try:
        return recalled(standing, asked, facts, tensors)
    except TargetError as error:
        return error
