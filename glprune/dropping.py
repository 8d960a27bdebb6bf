"""What each kept field is worth: cut it from the shipped network, refit, and measure without it."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from glprune.errors import ModelError
from glprune.events import Listener, PartDone, Stage
from glprune.export import export_onnx
from glprune.groups import GroupSet, left_of, zero_units_
from glprune.job import Job, caller, everything, first_rows, narrowing
from glprune.measure import EXPORT_TOLERANCE, OnnxFile, predict
from glprune.proof import TOLERANCE, difference, outputs
from glprune.rebuilt import Rebuilt
from glprune.removal import Removed
from glprune.report import DropCost, DropCosts
from glprune.surgery import Surgery, plan, slice_
from glprune.task import HIGHER_IS_BETTER
from glprune.train import refit
from glprune.units import UnitSet
from glprune.workers import Workers


def measure_drop_costs(
    job: Job,
    removed: Removed,
    file: Path,
    kept: Sequence[bool],
    workers: Workers[Rebuilt],
    listener: Listener,
) -> DropCosts:
    """Drop every kept field in turn, in parallel, each from the shipped network.

    Args:
        job: The job.
        removed: What the shipped network lost.
        file: Its ONNX file.
        kept: Whether the shipped model keeps each field.
        workers: Processes that rebuild the job and the shipped network.
        listener: Told every measured field.

    Raises:
        GlpruneError: Whatever went wrong with a field.
    """
    names = [f.name for f, stays in zip(job.data.fields, kept, strict=True) if stays]
    listener(Stage("drop cost", f"each of {len(names)} fields cut, the network refitted without it"))
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        again, *costs = workers.map(
            functools.partial(_without, Path(scratch)),
            [None, *names],
            lambda done: listener(PartDone("refits", done, len(names) + 1)),
        )
    original = job.recipe.export.signature == "original"
    narrow = everything if original else narrowing(removed.columns, job.axes)
    shipped = OnnxFile(file, torch.get_num_threads())
    scores = [_score(job, predict(shipped, split, narrow)) for split in (job.data.valid, job.data.test)]
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
        fields=costs,
    )


@dataclass(frozen=True)
class _Narrower:
    """The shipped network with one field less.

    Attributes:
        network: The network; it takes the columns left.
        columns: Those columns, positions along each input's feature axis.
    """

    network: nn.Module
    columns: tuple[Tensor, ...]


def _without(scratch: Path, shipped: Rebuilt, name: str | None) -> DropCost:
    """Refit and measure the shipped network without a field, or with all of them where none is named."""
    if name is None:
        return _measured(scratch, shipped.job, "", _Narrower(shipped.network, shipped.columns))
    groups = next(g for g in shipped.job.input_groups if name in g.labels)
    marked = groups.group == groups.labels.index(name)
    reason = _obstacle(shipped, groups.units, marked)
    cut = reason or _cut(shipped, groups, marked)
    if isinstance(cut, str):
        return DropCost(field=name, valid=None, test=None, reason=cut)
    return _measured(scratch, shipped.job, name, cut)


def _obstacle(shipped: Rebuilt, units: UnitSet, marked: Tensor) -> str | None:
    """Why columns cannot be dropped; None where they can. ``marked`` is bool (n_units,)."""
    if units.refused or units.source is None:
        return units.refused
    if units.family:
        return f"the layers of {units.family!r} share one width"
    if bool(marked[shipped.columns[units.source]].all()):
        return f"it is the last field of input {units.name!r}, and an input needs one"
    return None


def _cut(shipped: Rebuilt, groups: GroupSet, marked: Tensor) -> _Narrower | str:
    """Zero the weights leaving the marked columns and cut them, or say by how much that changes outputs."""
    job, units = shipped.job, groups.units
    zeroed = copy.deepcopy(shipped.network)
    zero_units_(zeroed.state_dict(), left_of(groups, shipped.surgery.kept).units, marked)
    columns = tuple(own[~marked[own]] if n == units.source else own for n, own in enumerate(shipped.columns))
    keep = next(own for n, own in enumerate(columns) if n == units.source)
    surgery = shipped.surgery.joined(plan(job.network, [(units, keep)], job.probe, job.axes))
    network = copy.deepcopy(job.network)
    surgery.apply_(network)
    network.load_state_dict(_narrowed(zeroed, shipped.surgery, surgery))
    before = outputs(zeroed, narrowing(shipped.columns, job.axes)(job.probe))
    gap = difference(before, outputs(network, narrowing(columns, job.axes)(job.probe)))
    if gap > TOLERANCE and not units.inexact:
        return f"the cut changes outputs by {gap:.1e}"
    return _Narrower(network, columns)


def _narrowed(network: nn.Module, now: Surgery, wanted: Surgery) -> dict[str, Tensor]:
    """The tensors of a network cut by ``now``, cut further to what ``wanted`` keeps."""
    narrower = copy.deepcopy(network)
    places = {}
    for key, positions in wanted.kept.items():
        here = now.kept.get(key)
        places[key] = positions if here is None else torch.nonzero(torch.isin(here, positions)).flatten()
    slice_(narrower, places)
    return narrower.state_dict()


def _measured(scratch: Path, job: Job, name: str, narrower: _Narrower) -> DropCost:
    """Refit a network and take the metric from its ONNX file through ONNX Runtime."""
    narrow, data, recipe = narrowing(narrower.columns, job.axes), job.data, job.recipe
    fitted = refit(
        narrower.network,
        narrow,
        job.task,
        data.train,
        data.valid,
        recipe.refit,
        recipe.seed,
        teacher=job.network,
        metric=job.metric,
    ).network
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / "dropped.onnx"
        example = narrow(first_rows(data.test, 4))
        export_onnx(
            fitted,
            example,
            job.input_names,
            job.outputs.names,
            path,
            opset=recipe.export.opset,
            metadata={},
            dynamic=recipe.export.dynamic,
        )
        file = OnnxFile(path, torch.get_num_threads())
        valid, test = (predict(file, split, narrow) for split in (data.valid, data.test))
    gap = difference(predict(caller(fitted), data.test, narrow)[0], test[0])
    if not gap <= EXPORT_TOLERANCE:
        raise ModelError(
            f"drop cost of {name!r}: ONNX Runtime and PyTorch differ by {gap:.1e} on the test split (limit "
            f"{EXPORT_TOLERANCE:.0e}). Try another export.opset, or set stability.drop_cost: false."
        )
    return DropCost(field=name, valid=_score(job, valid), test=_score(job, test), reason=None)


def _score(job: Job, predicted: tuple[Sequence[Tensor], Tensor]) -> float:
    outputs, target = predicted
    return job.task.metric(job.metric, job.task.view(outputs), target)
