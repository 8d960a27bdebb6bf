"""Run several stages from one network in parallel, in processes that prepared the same job.

The processes receive stage specifications and return checkpoints. The removal of each stage is made and
verified again here, as after a run that was stopped.
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

from glprune.data.splits import ColumnSelection
from glprune.errors import TargetError
from glprune.pruning.removal import RemovalResult
from glprune.runtime.checkpoint import pack_tensors, reading
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
    from glprune.search.outcome import Outcomes
    from glprune.search.path_point import Checkpoint

_Message = tuple[dict[str, Any], bytes]  # values, and tensors in safetensors format: no memory is shared


def run_stages(
    state: SearchState, specs: Sequence[StageSpec], workers: WorkerPool[Job], listener: Listener
) -> list[StageResult | TargetError | None]:
    """Run ``glprune.search.stage.run_stage`` for several stages at once.

    Args:
        state: The network all stages begin with.
        specs: What each stage does.
        workers: Processes that prepared the original job.
        listener: Receives the progress.

    Returns:
        For each stage what ``run_stage`` would have returned, or the error it would have raised.
    """
    number, journal = state.stages + 1, state.original.checkpoints
    results = list(_load_finished(state, specs))
    finished: dict[int, Checkpoint] = {}
    stored, left = len(results), list(range(len(results), len(specs)))
    if left:
        listener(Stage(f"path {number}", f"{len(left)} paths side by side, {specs[0].rule}"))

    def done(item: int, message: _Message) -> None:
        nonlocal stored
        finished[left[item]] = message[0], safetensors.torch.load(message[1])
        while stored in finished:  # a resumed run loads them in this order
            journal.save_step("stage", specs[stored].key(number), *finished[stored])
            stored += 1
        listener(Progress("paths", len(results) + len(finished), len(specs)))

    start = pickle.dumps(_StartState.of(state))
    workers.map(functools.partial(_run_in_worker, start), [specs[place] for place in left], done, listener)
    return results + [_to_result(state, specs[place], *finished[place]) for place in left]


def _load_finished(
    state: SearchState, specs: Sequence[StageSpec]
) -> Iterator[StageResult | TargetError | None]:
    """Yield the stages that a stopped run had finished: the first ones."""
    number, journal = state.stages + 1, state.original.checkpoints
    for spec in specs:
        record = journal.load_step("stage", spec.key(number))
        if record is None:
            return
        with reading(record):
            found = _to_result(state, spec, record.values, journal.weights(record))
        yield found


@dataclass(frozen=True)
class _StartState:
    """A search state in a form that pickles.

    Attributes:
        stages: Number of stages that led to it.
        outcomes: What became of each feature.
        cut: What turns the original network into its own, and the columns that one takes; None: nothing.
        tensors: The network's tensors.
    """

    stages: int
    outcomes: Outcomes
    cut: tuple[PruningPlan, ColumnSelection] | None
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, state: SearchState) -> _StartState:
        removed = state.removed
        cut = (removed.plan, removed.selection) if removed is not None else None
        return cls(state.stages, state.outcomes, cut, state.job.network.state_dict())

    def search_state(self, original: Job) -> SearchState:
        begin = SearchState(original, original, self.outcomes, None, self.stages)
        if self.cut is None:
            return begin
        plan, selection = self.cut
        network = slim_network(original, plan, self.tensors)
        removed = RemovalResult(network, plan, selection, (), (), 0.0, len(original.probe[0]))
        return begin.advanced(network, removed, self.outcomes, self.stages)


def _run_in_worker(start: bytes, job: Job, spec: StageSpec) -> _Message:
    torch.set_num_threads(job.recipe.threads)  # results depend on their number
    try:
        run, _ = run_stage_uncached(pickle.loads(start).search_state(job), spec, silent)
    except TargetError as error:
        return {"failed": str(error)}, pack_tensors({})
    values, tensors = to_record(run)
    return values, pack_tensors(tensors)


def _to_result(
    state: SearchState, spec: StageSpec, values: dict[str, Any], tensors: dict[str, Tensor]
) -> StageResult | TargetError | None:
    try:
        return from_record(state, spec, values, tensors)
    except TargetError as error:
        return error
