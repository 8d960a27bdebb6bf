"""Stages from one network side by side, in processes that prepared the same job.

What a stage is asked for goes there, and what the journal would keep of it comes back: its cut is made and
certified again here, as that of a run that was stopped is.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor

from glprune.errors import TargetError
from glprune.pruning.removal import RemovalResult
from glprune.runtime.checkpoint import CheckpointLog, pack_tensors
from glprune.runtime.events import Listener, Progress, Stage, silent
from glprune.search.stage import (
    SearchState,
    StageResult,
    StageSpec,
    from_record,
    run_stage_uncached,
    to_record,
)
from glprune.search.worker_setup import slim_network

if TYPE_CHECKING:
    from glprune.pruning.surgery import PruningPlan
    from glprune.runtime.process_pool import WorkerPool
    from glprune.search.job import Job
    from glprune.search.serialization import Kept

_Sent = tuple[dict[str, Any], bytes]  # facts, and tensors as safetensors has them: no memory is shared


def run_stages(
    standing: SearchState, asks: Sequence[StageSpec], workers: WorkerPool[Job], listener: Listener
) -> list[StageResult | TargetError | None]:
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
    come = {place: kept for place, kept in enumerate(_load_finished(asks, number, journal))}
    stored, left = len(come), list(range(len(come), len(asks)))
    if left:
        listener(Stage(f"path {number}", f"{len(left)} paths side by side, {asks[0].rule}"))

    def done(item: int, sent: _Sent) -> None:
        nonlocal stored
        come[left[item]] = sent[0], safetensors.torch.load(sent[1])
        while stored in come:  # a run that goes on is handed them in this order
            journal.save_step("stage", asks[stored].key(number), *come[stored])
            stored += 1
        listener(Progress("paths", len(come), len(asks)))

    start = pickle.dumps(_StartState.of(standing))
    workers.map(functools.partial(_run_in_worker, start), [asks[place] for place in left], done)
    return [_to_result(standing, asked, *come[place]) for place, asked in enumerate(asks)]


def _load_finished(asks: Sequence[StageSpec], number: int, journal: CheckpointLog) -> Iterator[Kept]:
    """What a run that was stopped had done of them: the first ones."""
    for asked in asks:
        record = journal.load_step("stage", asked.key(number))
        if record is None:
            return
        yield record.values, journal.weights(record)


@dataclass(frozen=True)
class _StartState:
    """A network to stand on, as it pickles.

    Attributes:
        stages: Stages that led to it.
        surgery: What turned the original network into it; None: nothing.
        columns: The columns it takes.
        state: Its tensors.
    """

    stages: int
    surgery: PruningPlan | None
    columns: tuple[Tensor, ...]
    state: dict[str, Tensor]

    @classmethod
    def of(cls, standing: SearchState) -> _StartState:
        removed = standing.removed
        surgery, columns = (removed.plan, removed.columns) if removed is not None else (None, ())
        return cls(standing.stages, surgery, columns, standing.job.network.state_dict())

    def search_state(self, original: Job) -> SearchState:
        if self.surgery is None:
            return SearchState(original, original, None, self.stages)
        network = slim_network(original, self.surgery, self.state)
        removed = RemovalResult(network, self.surgery, self.columns, (), (), 0.0, len(original.probe[0]))
        return SearchState.advanced(original, network, removed, self.stages)


def _run_in_worker(start: bytes, job: Job, asked: StageSpec) -> _Sent:
    torch.set_num_threads(job.recipe.threads)  # results depend on their number
    try:
        run, _ = run_stage_uncached(pickle.loads(start).search_state(job), asked, silent)
    except TargetError as error:
        return {"failed": str(error)}, pack_tensors({})
    facts, tensors = to_record(run)
    return facts, pack_tensors(tensors)


def _to_result(
    standing: SearchState, asked: StageSpec, facts: dict[str, Any], tensors: dict[str, Tensor]
) -> StageResult | TargetError | None:
    try:
        return from_record(standing, asked, facts, tensors)
    except TargetError as error:
        return error
