"""Make the job of a run: read data and network, check them against the recipe and find the groups."""

from __future__ import annotations

import collections
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from glprune._user_code import describe
from glprune._wording import counted
from glprune.data.loading import load_data
from glprune.data.splits import Inputs, first_rows
from glprune.data.synthetic import random_like
from glprune.errors import DataError, GlpruneError, ModelError, RecipeError, first_line
from glprune.model.consistency import (
    check_batch,
    check_consistency,
    check_rows,
    keep_inputs_,
    repeat_rows,
)
from glprune.model.counting import macs
from glprune.model.diagnostics import all_finite, check_layers, check_trainable, finite_rows, first_fault
from glprune.model.loading import LoadedNetwork, dense_gradients_, load_network
from glprune.model.original_check import OriginalCheck
from glprune.model.outputs import (
    check_dense,
    check_predicts,
    flatten_outputs_,
    leaves,
    name_outputs,
    named_leaves,
)
from glprune.model.standardize import Standardize, StandardizedNetwork
from glprune.model.task import Task, concat_batches
from glprune.pruning.groups import sliced
from glprune.pruning.planner import find_groups
from glprune.pruning.removal import cut_uncertified
from glprune.runtime.events import Listener, Notice, Stage
from glprune.runtime.process_pool import available_cores
from glprune.schema.recipe import BATCH_LABEL
from glprune.search.job import Job
from glprune.search.policy import NO_RULES, Rules, resolve
from glprune.training.distillation import with_teacher_targets
from glprune.training.epochs import batch_size
from glprune.training.feature_groups import check_groups
from glprune.training.penalty_plugin import load_penalty

if TYPE_CHECKING:
    from glprune.data.records import Data
    from glprune.data.splits import ColumnSelection
    from glprune.model.original import Predictions
    from glprune.pruning.groups import GroupSet
    from glprune.schema.recipe import Recipe

Support = frozenset[str]
"""Names of the features that a network reads."""
PROBE_ROWS = 256
_CHECKED_ROWS = 1024
_FEW = 8  # rows of a small batch
_TRIED_ROWS = 4  # whose gradient is tried before groups are looked for
_LARGE = 2e7  # multiply-accumulates of a step; above this, a second thread makes it 1.4 times as fast


def prepare(
    recipe: Recipe,
    model: Path,
    trust_pickle: bool,
    listener: Listener,
    *,
    accept_original: bool = False,
) -> Job:
    """Read data and network, run the network once, find its groups and verify them.

    Args:
        recipe: The recipe.
        model: The trained weights.
        trust_pickle: Allow a fully pickled module.
        listener: Receives the stages, the metrics of the network, and notices about data and groups.
        accept_original: Go on where the network does not look trained.

    Raises:
        GlpruneError: Recipe, data or model have an error; the message has one line.
    """
    make_penalty = load_penalty(recipe)
    listener(Stage("model", "loading the network"))
    loaded = load_network(recipe, model, trust_pickle=trust_pickle)
    listener(Stage("data", "reading and checking"))
    data = load_data(recipe)
    check_groups(recipe, [feature.name for feature in data.features])
    rules = resolve(recipe, data)
    listener(Stage("groups", "running the network on every row and proving its groups"))

    def judge(check: OriginalCheck) -> None:
        check.report(listener, accept_original)
        for note in (*loaded.notes, *data.notes, *rules.sentences()):
            listener(Notice(note))

    job = build_job(recipe, data, loaded, rules, judge)
    if len(job.fixed_inputs) < len(job.input_groups):
        for sentence in job.fixed_inputs:
            listener(Notice(sentence))
    for sentence in _idle_cores(job):
        listener(Notice(sentence))
    return replace(job, make_penalty=make_penalty)


def build_job(
    recipe: Recipe,
    data: Data,
    loaded: LoadedNetwork,
    rules: Rules = NO_RULES,
    judge: Callable[[OriginalCheck], object] | None = None,
) -> Job:
    """Make the job of data and a network in memory: run it on every row, find its groups and verify them.

    Args:
        recipe: The recipe.
        data: The data.
        loaded: The network.
        rules: The recipe's policy, resolved against the features.
        judge: Receives the metrics of the network before its groups are found; may raise.

    Raises:
        GlpruneError: Data or model have an error; the message has one line.
    """
    check_layers(loaded.module)
    dense_gradients_(loaded.module)
    network = _with_standardization(loaded.module, data)
    real = first_rows(data.test, PROBE_ROWS)
    _check_dynamic_axes(recipe, real)
    output = _try_forward(network, tuple(x.clone() for x in real), data)
    keep_inputs_(network, real)
    found = named_leaves(output)
    if not isinstance(output, Tensor):
        flatten_outputs_(loaded.module)
    outputs = name_outputs(recipe, found, len(real[0]))
    check_consistency(network, real)
    task = Task(recipe.task, recipe.model.output, len(data.classes or ()), prediction=outputs.predicted or 0)
    task = task.fitted(found[task.prediction][1])
    if outputs.predicted is not None:
        check_predicts(found[outputs.predicted][1])
    check_trainable(network, tuple(x[:_TRIED_ROWS] for x in real), task.view)
    check = OriginalCheck(recipe, loaded.module, data, task, _run_on_every_row(network, data, recipe, task))
    if judge is not None:
        judge(check)
    original = check.original
    del check  # its predictions are of every row
    if recipe.task == "distillation":
        data, task = with_teacher_targets(data, network, task)
    probe = _probe(network, real, [spec.axis for spec in recipe.model.inputs], recipe.seed)
    groups = find_groups(network, recipe, data, probe)
    return Job(recipe, data, loaded, network, task, groups, probe, outputs, rules, original)


def slim_job(job: Job, network: nn.Module, selection: ColumnSelection, groups: list[GroupSet]) -> Job:
    """Make the job of a slim network: the same rows with the kept columns.

    Args:
        job: The job of the network that the slim one was cut from.
        network: The slim network, in evaluation mode.
        selection: The kept columns of every input.
        groups: What is left of the groups. A network that feeds itself constants keeps unsliced tensors, so
            that its groups are found again.
    """
    data, probe = job.data.select_columns(selection), selection(job.probe)
    if any(g.units.removal == "constant" for g in groups):
        groups = find_groups(network, job.recipe, data, probe)
    return replace(job, data=data, network=network, groups=groups, probe=probe)


def restrict_features(job: Job, kept: Support) -> Job:
    """Return the job of the network that reads only some features, its other weights unchanged."""
    alive = [
        torch.tensor([g.kind != "input" or label in kept for label in g.labels], dtype=torch.bool)
        for g in job.groups
    ]
    slim = cut_uncertified(job.network, job.groups, alive, job.probe, job.axes)
    return slim_job(job, slim.network, slim.selection, [sliced(g, slim.plan.kept) for g in job.groups])


def _check_dynamic_axes(recipe: Recipe, rows: Inputs) -> None:
    """Check that dynamic axes exist, have no fixed length, and that axes of one label have one length."""
    lengths: dict[str, tuple[str, int]] = {}
    for spec, x in zip(recipe.model.inputs, rows, strict=True):
        taken = {0: "counts the rows and is of any length anyway"}
        if spec.axis is not None:
            taken[spec.axis % x.ndim] = "holds the features, whose number is fixed"
        for axis, label in recipe.export.dynamic.get(spec.name, {}).items():
            where = recipe.where("export", "dynamic_axes", spec.name, str(axis))
            if not -x.ndim <= axis < x.ndim:
                has = ", ".join(map(str, range(1, x.ndim)))
                raise RecipeError(
                    f"{where}: input {spec.name!r} has no axis {axis}; "
                    + (f"besides the rows it has {has}." if has else "it has rows alone; remove the key.")
                )
            place = axis % x.ndim
            if place in taken:
                raise RecipeError(f"{where}: axis {axis} of {spec.name!r} {taken[place]}; remove it.")
            if label == BATCH_LABEL:
                raise RecipeError(
                    f"{where}: {BATCH_LABEL!r} is the number of rows; give the axis another label."
                )
            taken[place] = "is named twice"
            known = lengths.setdefault(label, (f"axis {axis} of {spec.name!r}", x.shape[place]))
            if known[1] != x.shape[place]:
                raise RecipeError(
                    f"{where}: axis {axis} of {spec.name!r} is {x.shape[place]} long and {known[0]}, also "
                    f"{label!r}, {known[1]}; equal labels are equal lengths, give it another."
                )


def _idle_cores(job: Job) -> list[str]:
    """Suggest more threads where steps are large and the machine has idle cores."""
    size = batch_size(job.recipe.train.batch_size, job.data.train)
    products = macs(job.network, first_rows(job.data.train, 1)) * (size or 1)
    if job.recipe.threads > 1 or products < _LARGE or available_cores() < 2:
        return []
    return [
        f"A step computes {products:.1e} multiply-accumulates with one thread; threads: {available_cores()} "
        "in the recipe would be faster here. Results go with that number, not with the machine's cores."
    ]


def _with_standardization(network: nn.Module, data: Data) -> nn.Module:
    """Put the standardisation that the recipe asks for in front of the network."""
    if not any(data.standardization):
        return network
    layers = [Standardize(s.mean, s.std) if s is not None else None for s in data.standardization]
    for layer, part in zip(layers, data.inputs, strict=True):
        if layer is not None:
            _check_scales(layer, part.columns)
    return StandardizedNetwork(layers, network).train(network.training)


def _check_scales(layer: Standardize, columns: Sequence[str]) -> None:
    """Check that float32 can divide by the standard deviation of every column."""
    tiny = torch.finfo(torch.float32).tiny
    lost = torch.nonzero(~((layer.std >= tiny) & torch.isfinite(layer.std))).flatten().tolist()
    if lost:
        raise DataError(
            f"column {columns[lost[0]]!r} has a standard deviation of {float(layer.std[lost[0]]):.1g} on the "
            "training rows, which float32 cannot divide by; multiply the column by a constant."
        )


def _run_on_every_row(network: nn.Module, data: Data, recipe: Recipe, task: Task) -> Predictions:
    """Run the network on every row: a code may exceed an embedding table, a value overflow in a layer.

    Returns:
        Its predictions and the targets of every split; nothing where there are no labels.
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, split in data.splits.items():
        batches = _checked_batches(network, data, task, name)
        if task.kind == "distillation":
            collections.deque(batches, maxlen=0)
            continue
        (output,), target = concat_batches(batches, split.rows)
        _check_range(
            float(target.min()), float(target.max()), data, f"{recipe.where('data')}: the {name} split"
        )
        found[name] = output, target
    return found


def _checked_batches(
    network: nn.Module, data: Data, task: Task, name: str
) -> Iterator[tuple[tuple[Tensor], Tensor]]:
    """Yield the network's predictions and the targets of a split, batch by batch."""
    rows = 0
    for inputs, target in data.splits[name].batches(_CHECKED_ROWS, None):
        output = _try_forward(network, inputs, data, f"{name} split", rows + 1)
        if not rows:
            check_batch(network, inputs, leaves(output))
        check_rows(network, inputs, leaves(output))
        rows += len(target)
        yield (leaves(output)[task.prediction],), target


def _check_range(low: float, high: float, data: Data, split: str) -> None:
    """Check that targets are finite and not all equal."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(f"{split} has targets that float32 does not hold; scale the target.")
    if low == high:
        only = f"class {data.classes[int(low)]!r}" if data.classes is not None else f"the target {low:g}"
        raise DataError(f"{split} holds {only} only; nothing can be measured.")


def _try_forward(
    network: nn.Module, inputs: Inputs, data: Data, split: str = "data", first_row: int = 1
) -> object:
    try:
        with torch.no_grad():
            output = network(*inputs)
    except (GlpruneError, KeyboardInterrupt):
        raise
    except BaseException as error:  # the user's forward may raise anything
        other = _other_precision(network, inputs) if isinstance(error, RuntimeError | TypeError) else None
        if other is not None:
            raise ModelError(
                f"The network's forward computes in {other} ({describe(error)}), and glprune trains and "
                f"ships float32; write x.to(weight.dtype), or nothing, instead of x.to(torch.{other})."
            ) from error
        first = first_line(error) if isinstance(error, RuntimeError) else describe(error)
        runs_on_few = len(inputs[0]) > _FEW and _runs(network, tuple(x[:_FEW] for x in inputs))
        row = _failing_row(network, inputs) if runs_on_few else None
        if runs_on_few and row is None:
            raise ModelError(
                f"The network does not run on {len(inputs[0])} rows ({first}), and does on {_FEW}: its "
                "forward depends on the number of rows; treat batches of every size alike."
            ) from error
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        where = f" from row {first_row + row} of the {split} on" if row is not None else ""
        raise ModelError(
            f"The network does not run on the data{where}, {counted(len(data.columns), 'column')}, input "
            f"shape {shapes} ({first}); compare data.features and model.inputs with what the network was "
            "trained on."
        ) from error
    check_dense(leaves(output))
    if not all_finite(y for y in leaves(output) if y.is_floating_point()):
        raise ModelError(
            f"The network returns NaN or Inf on the {split}: {first_fault(network, inputs, first_row)}; "
            "check the scale of the columns and data.standardize."
        )
    return output


def _runs(network: nn.Module, inputs: Inputs) -> bool:
    """Whether a network runs on some rows."""
    try:
        with torch.no_grad():
            network(*inputs)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - the user's forward may raise anything
        return False
    return True


def _failing_row(network: nn.Module, inputs: Inputs) -> int | None:
    """Return the first row whose values a network does not run on; None if it runs on all, few at once."""
    for start in range(0, len(inputs[0]), _FEW):
        rows = tuple(x[start : start + _FEW] for x in inputs)
        if not _runs(network, repeat_rows(rows, _FEW)):
            single = [repeat_rows(tuple(x[i : i + 1] for x in rows), _FEW) for i in range(len(rows[0]))]
            return start + next((i for i, row in enumerate(single) if not _runs(network, row)), 0)
    return None


def _other_precision(network: nn.Module, inputs: Inputs) -> str | None:
    """Return the precision in which a network runs that does not run in float32; None if it runs in none."""
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        cast = tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)
        if _runs(copy.deepcopy(network).to(dtype), cast):
            return str(dtype).removeprefix("torch.")
    return None


def _probe(network: nn.Module, real: Inputs, axes: Sequence[int | None], seed: int) -> Inputs:
    """Return real rows, and random rows around them on which the network's outputs are finite."""
    noise = random_like(real, axes, PROBE_ROWS, seed)
    with torch.no_grad():
        sound = finite_rows(leaves(network(*noise)))
        probe = tuple(torch.cat([x, z[sound]]) for x, z in zip(real, noise, strict=True))
        check_rows(network, probe, leaves(network(*probe)))
    return probe
