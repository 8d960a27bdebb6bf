"""What each kept feature is worth: cut it from the shipped network, refit, and measure without it."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from glprune.data.splits import ColumnSelection
from glprune.errors import ModelError, NonFiniteError
from glprune.export.onnx_runtime import EXPORT_TOLERANCE, OnnxFile
from glprune.export.shipped_model import file_columns, on_test_rows, write_shipped
from glprune.model.prediction import predict
from glprune.pruning.groups import GroupSet, sliced, zero_units_
from glprune.pruning.ids import Positions, UnitIds
from glprune.pruning.removal import RemovalResult
from glprune.pruning.surgery import PruningPlan, plan_pruning, slice_
from glprune.pruning.verification import TOLERANCE, difference, outputs
from glprune.runtime.events import Listener, Progress, Stage
from glprune.runtime.process_pool import OutcomeLog, WorkerPool, map_with_checkpoint
from glprune.schema.recipe import HIGHER_IS_BETTER
from glprune.schema.report import DropCost, DropCosts
from glprune.search.outcome import kept_names
from glprune.search.refit import refit_or_resume

if TYPE_CHECKING:
    from glprune.pruning.units import UnitSet
    from glprune.search.job import Job
    from glprune.search.search import SearchResult
    from glprune.search.worker_setup import WorkerContext


def measure_drop_costs(
    job: Job,
    chosen: SearchResult,
    file: Path,
    workers: WorkerPool[WorkerContext],
    listener: Listener,
) -> DropCosts:
    """Drop every kept feature in turn, in parallel, each from the shipped network.

    Args:
        job: The job.
        chosen: The shipped network.
        file: Its ONNX file.
        workers: Processes that rebuild the job and the shipped network.
        listener: Told every measured feature.

    Raises:
        GlpruneError: Whatever went wrong with a feature.
    """
    names = kept_names(chosen.outcomes)
    listener(Stage("drop cost", f"each of {len(names)} features cut, the network refitted without it"))
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        record = job.journal.open_step("drop costs", {"features": names})
        again, *costs = map_with_checkpoint(
            workers,
            functools.partial(_without, Path(scratch)),
            [None, *names],
            OutcomeLog(record, job.journal, TypeAdapter(DropCost)),
            lambda done: listener(Progress("refits", done, len(names) + 1)),
        )
    shipped = OnnxFile(file, job.recipe.threads)
    narrow = file_columns(job, chosen.removed)
    scores = [_score(job, *predict(shipped, split, narrow)) for split in (job.data.valid, job.data.test)]
    assert again.valid is not None  # nothing was cut, so nothing was refused
    assert again.test is not None
    return DropCosts(
        metric=job.metric,
        higher_is_better=HIGHER_IS_BETTER[job.metric],
        valid_rows=job.data.valid.rows,
        test_rows=job.data.test.rows,
        valid=scores[0],
        test=scores[1],
        refitted_valid=again.valid,
        refitted_test=again.test,
        features=costs,
    )


def _without(scratch: Path, shipped: WorkerContext, name: str | None) -> DropCost:
    """Refit and measure the shipped network without a feature, or with all of them where none is named."""
    if name is None:
        whole = RemovalResult(
            shipped.network, shipped.plan, shipped.selection, (), (), 0.0, len(shipped.job.probe[0])
        )
        return _measured(scratch, shipped.job, "", whole)
    groups = next(g for g in shipped.job.input_groups if name in g.labels)
    marked = groups.group == groups.labels.index(name)
    kept = "policy.must_keep lists it" if name in shipped.job.rules.required else None
    cut = kept or _obstacle(shipped, groups.units, marked) or _cut(shipped, groups, name)
    if isinstance(cut, str):
        return DropCost(feature=name, valid=None, test=None, reason=cut)
    return _measured(scratch, shipped.job, name, cut)


def _obstacle(shipped: WorkerContext, units: UnitSet, marked: Tensor) -> str | None:
    """Why columns cannot be dropped; None where they can. ``marked`` is bool (n_units,)."""
    if units.refused or units.source is None:
        return units.refused
    if units.family:
        return f"the layers of {units.family!r} share one width"
    if bool(marked[shipped.selection.columns[units.source]].all()):
        return f"it is the last feature of input {units.name!r}, and an input needs one"
    return None


def _cut(shipped: WorkerContext, groups: GroupSet, name: str) -> RemovalResult | str:
    """Zero the weights leaving a feature and cut it, or say by how much that changes outputs."""
    job, units = shipped.job, groups.units
    zeroed = copy.deepcopy(shipped.network)
    left = sliced(groups, shipped.plan.kept)
    zero_units_(zeroed.state_dict(), left.units, left.group == left.labels.index(name))
    gone = groups.group == groups.labels.index(name)
    kept = shipped.selection.columns
    columns = tuple(own[~gone[own]] if n == units.source else own for n, own in enumerate(kept))
    keep = next(own for n, own in enumerate(columns) if n == units.source)
    selection = ColumnSelection(columns, job.axes)
    surgery = shipped.plan.merge(plan_pruning(job.network, [(units, UnitIds(keep))], job.probe, job.axes))
    network = copy.deepcopy(job.network)
    surgery.apply_(network)
    network.load_state_dict(_narrowed(zeroed, shipped.plan, surgery))
    before = outputs(zeroed, shipped.selection(job.probe))
    gap = difference(before, outputs(network, selection(job.probe)))
    if gap > TOLERANCE and not units.inexact:
        return f"the cut changes outputs by {gap:.1e}"
    return RemovalResult(network, surgery, selection, (), (), gap, len(job.probe[0]))


def _narrowed(network: nn.Module, now: PruningPlan, wanted: PruningPlan) -> dict[str, Tensor]:
    """The tensors of a network cut by ``now``, cut further to what ``wanted`` keeps."""
    narrower = copy.deepcopy(network)
    places = {}
    for key, positions in wanted.kept.items():
        here = now.kept.get(key)
        places[key] = (
            positions if here is None else Positions(torch.nonzero(torch.isin(here, positions)).flatten())
        )
    slice_(narrower, places)
    return narrower.state_dict()


def _measured(scratch: Path, job: Job, name: str, removed: RemovalResult) -> DropCost:
    """Refit as the recipe says and take the metric from the ONNX file through ONNX Runtime."""
    try:
        fitted, _ = refit_or_resume(job, removed)
    except NonFiniteError as error:
        raise NonFiniteError(f"drop cost of {name!r}: {error}") from None
    # on another machine the caller's folder need not be
    with tempfile.TemporaryDirectory(dir=scratch if scratch.is_dir() else None) as folder:
        path = Path(folder) / "dropped.onnx"
        write_shipped(job, removed, fitted.network, path)
        file = OnnxFile(path, torch.get_num_threads())
        outputs, target, gap = on_test_rows(job, removed, fitted.network, file)
        valid = predict(file, job.data.valid, file_columns(job, removed))
    if not gap <= EXPORT_TOLERANCE:
        raise ModelError(
            f"drop cost of {name!r}: ONNX Runtime and PyTorch differ by {gap:.1e} on the test split (limit "
            f"{EXPORT_TOLERANCE:.0e}). Try another export.opset, or set stability.drop_cost: false."
        )
    return DropCost(feature=name, valid=_score(job, *valid), test=_score(job, outputs, target), reason=None)


def _score(job: Job, outputs: Sequence[Tensor], target: Tensor) -> float:
    return job.task.metric(job.metric, job.task.view(outputs), target)
