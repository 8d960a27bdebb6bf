"""Drop cost: remove each kept feature from the shipped network, refit, and measure without it."""

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
from glprune.runtime.events import Listener, Stage
from glprune.runtime.process_pool import OutcomeLog, WorkerPool, map_with_checkpoint
from glprune.schema.recipe import HIGHER_IS_BETTER
from glprune.schema.report import DropCost, DropCosts
from glprune.search.outcome import kept_names
from glprune.search.refit import refit_or_resume

if TYPE_CHECKING:
    from glprune.export.shipped_model import ShippedModel
    from glprune.pruning.units import UnitSet
    from glprune.search.job import Job
    from glprune.search.worker_setup import WorkerContext


def measure_drop_costs(
    shipped: ShippedModel, workers: WorkerPool[WorkerContext], listener: Listener
) -> DropCosts:
    """Remove every kept feature in turn, in parallel, each from the shipped network.

    Args:
        shipped: The shipped model.
        workers: Processes that rebuild the job and the shipped network.
        listener: Receives every measured feature.

    Raises:
        GlpruneError: A feature cannot be measured.
    """
    job = shipped.job
    names = kept_names(shipped.outcomes)
    listener(Stage("drop cost", f"each of {len(names)} features cut, the network refitted without it"))
    with tempfile.TemporaryDirectory(dir=shipped.folder) as scratch:
        record = job.checkpoints.open_step("drop costs", {"features": names})
        refitted, *costs = map_with_checkpoint(
            workers,
            functools.partial(_without, Path(scratch)),
            [None, *names],
            OutcomeLog(
                record,
                job.checkpoints,
                TypeAdapter(DropCost),
                "refits",
                lambda index, cost: (
                    cost.feature == ["", *names][index] and (index > 0 or cost.valid is not None)
                ),
            ),
            listener,
        )
    file = OnnxFile(shipped.file, job.recipe.threads)
    valid, test = (
        _score(job, *predict(file, split, shipped.select_columns))
        for split in (job.data.valid, job.data.test)
    )
    assert refitted.valid is not None  # no feature is removed from it, so none is refused
    assert refitted.test is not None
    return DropCosts(
        metric=job.metric,
        higher_is_better=HIGHER_IS_BETTER[job.metric],
        valid_rows=job.data.valid.rows,
        test_rows=job.data.test.rows,
        valid=valid,
        test=test,
        refitted_valid=refitted.valid,
        refitted_test=refitted.test,
        features=costs,
    )


def _without(scratch: Path, context: WorkerContext, name: str | None) -> DropCost:
    """Refit and measure the shipped network without a feature; with all of them where ``name`` is None."""
    if name is None:
        unchanged = RemovalResult(
            context.network, context.plan, context.selection, (), (), 0.0, len(context.job.probe[0])
        )
        return _refit_and_measure(scratch, context.job, "", unchanged)
    groups = next(g for g in context.job.input_groups if name in g.labels)
    is_dropped = groups.group == groups.labels.index(name)
    required = "policy.must_keep lists it" if name in context.job.rules.required else None
    cut = required or _obstacle(context, groups.units, is_dropped) or _cut(context, groups, name)
    if isinstance(cut, str):
        return DropCost(feature=name, valid=None, test=None, reason=cut)
    return _refit_and_measure(scratch, context.job, name, cut)


def _obstacle(context: WorkerContext, units: UnitSet, is_dropped: Tensor) -> str | None:
    """Return why columns cannot be dropped; None where they can. ``is_dropped`` is bool (n_units,)."""
    if units.refused or units.source is None:
        return units.refused
    if units.family:
        return f"the layers of {units.family!r} share one width"
    if bool(is_dropped[context.selection.columns[units.source]].all()):
        return f"it is the last feature of input {units.name!r}, and an input needs one"
    return None


def _cut(context: WorkerContext, groups: GroupSet, name: str) -> RemovalResult | str:
    """Zero the weights of a feature and cut it, or return by how much the cut changes outputs."""
    job, units = context.job, groups.units
    zeroed = copy.deepcopy(context.network)
    remaining = sliced(groups, context.plan.kept)
    zero_units_(zeroed.state_dict(), remaining.units, remaining.group == remaining.labels.index(name))
    is_dropped = groups.group == groups.labels.index(name)
    columns = tuple(
        kept[~is_dropped[kept]] if n == units.source else kept
        for n, kept in enumerate(context.selection.columns)
    )
    selection = ColumnSelection(columns, job.axes)
    keep = next(kept for n, kept in enumerate(columns) if n == units.source)
    plan = context.plan.merge(plan_pruning(job.network, [(units, UnitIds(keep))], job.probe, job.axes))
    network = copy.deepcopy(job.network)
    plan.apply_(network)
    network.load_state_dict(_cut_further(zeroed, context.plan, plan))
    before = outputs(zeroed, context.selection(job.probe))
    gap = difference(before, outputs(network, selection(job.probe)))
    if gap > TOLERANCE and not units.inexact:
        return f"the cut changes outputs by {gap:.1e}"
    return RemovalResult(network, plan, selection, (), (), gap, len(job.probe[0]))


def _cut_further(network: nn.Module, done: PruningPlan, wanted: PruningPlan) -> dict[str, Tensor]:
    """Return the tensors of a network that was cut by ``done``, cut further to what ``wanted`` keeps."""
    smaller = copy.deepcopy(network)
    kept = {}
    for axis, positions in wanted.kept.items():
        current = done.kept.get(axis)
        if current is None:
            kept[axis] = positions
        else:
            kept[axis] = Positions(torch.nonzero(torch.isin(current, positions)).flatten())
    slice_(smaller, kept)
    return smaller.state_dict()


def _refit_and_measure(scratch: Path, job: Job, name: str, removed: RemovalResult) -> DropCost:
    """Refit as the recipe says and measure the ONNX file through ONNX Runtime."""
    try:
        refit, _ = refit_or_resume(job, removed)
    except NonFiniteError as error:
        raise NonFiniteError(f"drop cost of {name!r}: {error}") from None
    # on another machine the caller's folder may not exist
    with tempfile.TemporaryDirectory(dir=scratch if scratch.is_dir() else None) as folder:
        path = Path(folder) / "dropped.onnx"
        write_shipped(job, removed, refit.network, path)
        file = OnnxFile(path, torch.get_num_threads())
        outputs, target, gap = on_test_rows(job, removed, refit.network, file)
        valid = predict(file, job.data.valid, file_columns(job, removed))
    if not gap <= EXPORT_TOLERANCE:
        raise ModelError(
            f"drop cost of {name!r}: ONNX Runtime and PyTorch differ by {gap:.1e} on the test split (limit "
            f"{EXPORT_TOLERANCE:.0e}). Try another export.opset, or set stability.drop_cost: false."
        )
    return DropCost(feature=name, valid=_score(job, *valid), test=_score(job, outputs, target), reason=None)


def _score(job: Job, outputs: Sequence[Tensor], target: Tensor) -> float:
    return job.task.metric(job.metric, job.task.view(outputs), target)
