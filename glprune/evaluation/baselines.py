"""What simpler selections of the shipped size would have given.

Each begins at the same trained network, keeps as many features of every input and as many units of every
layer as the shipped model does, and then goes the shipped model's way: cut, refit, ONNX file, test rows.
Where the shipped model was made in two stages (``target.max_hidden`` beside another target), so are they.

References:
    Magnitude: Han et al. (2015), "Learning both weights and connections for efficient neural networks";
    of whole groups, Li et al. (2017), "Pruning filters for efficient ConvNets". Permutation importance:
    :mod:`glprune.evaluation.permutation_importance`.
"""

from __future__ import annotations

import copy
import math
import statistics
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from glprune.errors import GlpruneError, ModelError
from glprune.evaluation.permutation_importance import permutation_importance
from glprune.export.onnx_runtime import EXPORT_TOLERANCE, OnnxFile
from glprune.export.shipped_model import on_test_rows, write_shipped
from glprune.pruning.groups import GroupSet, group_norms, sliced, support, zero_units_
from glprune.pruning.removal import RemovalResult, remove, then
from glprune.pruning.units import Kind
from glprune.runtime.events import Listener, Progress, Stage
from glprune.schema.report import Baseline, BaselineRun, Baselines, Spread
from glprune.search.outcome import kept_names
from glprune.search.prepare import slim_job
from glprune.search.refit import refit_or_resume

if TYPE_CHECKING:
    from glprune.search.job import Job
    from glprune.search.search import SearchResult

RANDOM_DRAWS = 5
PERMUTATIONS = 5
Name = Literal["random", "magnitude", "permutation"]
Ranking = Callable[["Job", GroupSet], Tensor]
Sizes = Mapping[tuple[Kind, str], int]


@dataclass(frozen=True)
class _Shipped:
    """The shipped network, as far as a baseline is to be like it.

    Attributes:
        removed: What was cut.
        kept: Names of its features.
        sizes: Kind and name of a group set -> its features or units left.
        staged: Whether hidden units were cut after the inputs, from the refitted network.
    """

    removed: RemovalResult
    kept: frozenset[str]
    sizes: Sizes
    staged: bool


def measure_baselines(job: Job, chosen: SearchResult, folder: Path, listener: Listener) -> Baselines | None:
    """Select in simpler ways, and cut, refit, export and measure each selection.

    Args:
        job: The job of the trained network.
        chosen: The shipped network.
        folder: Where files are written for as long as they are needed.
        listener: Told every measured selection.

    Returns:
        The record; None where the recipe does not ask for it. A selection that cannot be measured is
        left out, and a note says why.
    """
    if not job.recipe.report.baselines:
        return None
    removed, kept = chosen.removed, frozenset(kept_names(chosen.outcomes))
    staged = any(run.spec.kinds == ("hidden",) for run in chosen.stages[1:])
    shipped = _Shipped(removed, kept, _sizes(job, removed, kept), staged)
    runs, failures = _runs(job, shipped, folder, listener)
    return Baselines(
        features=sum(count for (kind, _), count in shipped.sizes.items() if kind == "input"),
        hidden=sum(count for (kind, _), count in shipped.sizes.items() if kind == "hidden"),
        valid=chosen.refit_metric,
        rows=job.data.test.rows,
        repeats=PERMUTATIONS,
        results=[_baseline(job, name, found) for name, found in runs.items()],
        notes=[*_terms(job, shipped), *failures],
    )


def _runs(
    job: Job, shipped: _Shipped, folder: Path, listener: Listener
) -> tuple[dict[Name, list[BaselineRun]], list[str]]:
    """Every selection that could be measured, and what went otherwise than it should."""
    tasks = [(name, ranking) for name, rankings in _plans(job, shipped).items() for ranking in rankings]
    if tasks:
        listener(Stage("baselines", f"cutting and refitting {len(tasks)} other selections"))
    runs: dict[Name, list[BaselineRun]] = {}
    notes: list[str] = []
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for done, (name, ranking) in enumerate(tasks, 1):
            try:
                run, unlike = _measured(job, shipped, ranking, Path(scratch))
            except GlpruneError as error:  # the shipped network stands, whatever became of another
                notes.append(f"{name}: a selection could not be measured: {str(error).rstrip('.')}.")
            else:
                runs.setdefault(name, []).append(run)
                notes += [f"{name}: {difference}." for difference in unlike]
            listener(Progress("selections measured", done, len(tasks)))
    return runs, list(dict.fromkeys(notes))


def _kept(job: Job, removed: RemovalResult) -> list[str]:
    """The names of the features that a removal leaves."""
    pairs = zip(job.data.features, job.data.kept_positions(removed.selection), strict=True)
    return [feature.name for feature, positions in pairs if positions]


def _sizes(job: Job, removed: RemovalResult, kept: Collection[str]) -> Sizes:
    """How many features of every input and units of every layer are left."""
    sizes: dict[tuple[Kind, str], int] = {}
    for groups in job.groups:
        if groups.kind == "input":
            sizes["input", groups.name] = sum(label in kept for label in groups.labels)
        else:
            cut = sum(c.units for c in removed.cuts if (c.kind, c.name) == ("hidden", groups.name))
            sizes["hidden", groups.name] = groups.units.count - cut
    return sizes


def _cut(job: Job, sizes: Sizes, kind: Kind) -> bool:
    """Whether the shipped network lost anything of a kind."""
    return any(sizes[g.kind, g.name] < len(g.labels) for g in job.groups if g.kind == kind)


def _plans(job: Job, shipped: _Shipped) -> dict[Name, list[Ranking]]:
    """The rankings of each way to select; none where nothing was cut."""
    if not _cut(job, shipped.sizes, "input") and not _cut(job, shipped.sizes, "hidden"):
        return {}
    generator = torch.Generator().manual_seed(job.recipe.seed)
    plans: dict[Name, list[Ranking]] = {
        "random": [_random(generator)] * RANDOM_DRAWS,
        "magnitude": [_magnitude],
    }
    if _cut(job, shipped.sizes, "input"):
        plans["permutation"] = [_permutation]
    return plans


def _terms(job: Job, shipped: _Shipped) -> list[str]:
    """What was not compared, or on unequal terms."""
    features, units = (_cut(job, shipped.sizes, kind) for kind in ("input", "hidden"))
    if not features and not units:
        return ["Nothing was cut, so there is no selection to compare."]
    notes = []
    if not features:
        notes.append(
            "Permutation importance chooses among input features, none of which was removed; it was not run."
        )
    if job.recipe.refit.epochs == 0 or job.recipe.refit.start != "trained":
        notes.append(
            "The shipped network may go on from the weights of its path, the others go on from the trained "
            "ones: it was trained for longer."
        )
    return notes


def _random(generator: torch.Generator) -> Ranking:
    return lambda job, groups: torch.rand(len(groups.labels), generator=generator, dtype=torch.float64)


def _magnitude(job: Job, groups: GroupSet) -> Tensor:
    return group_norms(job.network.state_dict(), groups)


def _permutation(job: Job, groups: GroupSet) -> Tensor:
    """Importance of features; it says nothing of hidden units, which go by their norms."""
    if groups.kind == "hidden":
        return _magnitude(job, groups)
    return permutation_importance(job, groups, PERMUTATIONS)


def _measured(job: Job, shipped: _Shipped, ranking: Ranking, folder: Path) -> tuple[BaselineRun, list[str]]:
    """Everything of one selection, and where its size is not the shipped one.

    Raises:
        GlpruneError: It cannot be refitted or exported, or its file computes something else.
    """
    removed, network, valid = _slim(job, shipped, ranking)
    path = folder / "baseline.onnx"
    write_shipped(job, removed, network, path)
    file = OnnxFile(path, job.recipe.threads)
    outputs, target, gap = on_test_rows(job, removed, network, file)
    if not gap <= EXPORT_TOLERANCE:
        raise ModelError(
            f"ONNX Runtime and PyTorch differ by {gap:.1e} on the test split (limit {EXPORT_TOLERANCE:.0e})"
        )
    test = job.task.metrics(job.task.view(outputs), target)
    if not all(map(math.isfinite, (valid, *test.values()))):
        raise ModelError("a metric is not finite")
    kept = _kept(job, removed)
    sizes = _sizes(job, removed, set(kept))
    run = BaselineRun(
        kept=kept,
        common=sum(name in shipped.kept for name in kept),
        hidden=sum(count for (kind, _), count in sizes.items() if kind == "hidden"),
        common_hidden=sum(len(_units(g, removed) & _units(g, shipped.removed)) for g in job.groups),
        valid=valid,
        test=test,
    )
    return run, _differences(sizes, shipped.sizes)


def _slim(job: Job, shipped: _Shipped, ranking: Ranking) -> tuple[RemovalResult, nn.Module, float]:
    """The network of a selection, refitted, and its metric on the validation split."""
    if not shipped.staged:
        return _cut_weakest(job, shipped.sizes, ranking, ("input", "hidden"))
    first, network, _ = _cut_weakest(job, shipped.sizes, ranking, ("input",))
    after = slim_job(job, network, first.selection, [sliced(g, first.plan.kept) for g in job.groups])
    second, network, valid = _cut_weakest(after, shipped.sizes, ranking, ("hidden",))
    return then(first, second), network, valid


def _cut_weakest(
    job: Job, sizes: Sizes, ranking: Ranking, kinds: Sequence[Kind]
) -> tuple[RemovalResult, nn.Module, float]:
    zeroed = copy.deepcopy(job.network)
    for groups in job.groups:
        keep = sizes.get((groups.kind, groups.name), len(groups.labels))
        if groups.kind in kinds and not groups.units.refused and keep < len(groups.labels):
            gone = _weakest(job, groups, ranking(job, groups), keep)
            zero_units_(zeroed.state_dict(), groups.units, gone[groups.group])
    removed = remove(zeroed, job.groups, job.probe, job.axes)
    fitted, valid = refit_or_resume(job, removed)
    return removed, fitted.network, valid


def _weakest(job: Job, groups: GroupSet, score: Tensor, keep: int) -> Tensor:
    """Mark all groups but the ``keep`` of highest score, bool, shape (n_groups,).

    Groups that are zero in the trained network go first, since a removal cuts them in any case; between
    equal scores, as a metric of whole rows has many, the larger norm stays. Before all of that come the
    rules on features.
    """
    state = job.network.state_dict()
    ranks = [job.rules.rank(label) if groups.kind == "input" else 1 for label in groups.labels]
    alive, norms = support(state, groups).tolist(), group_norms(state, groups).tolist()
    keys = list(zip(ranks, alive, score.tolist(), norms, strict=True))
    order = sorted(range(len(keys)), key=lambda group: keys[group], reverse=True)
    gone = torch.ones(len(keys), dtype=torch.bool)
    gone[order[:keep]] = False
    return gone


def _units(groups: GroupSet, removed: RemovalResult) -> set[int]:
    """The hidden units that are left of a layer, in the trained network's numbering."""
    if groups.kind == "input":
        return set()
    gone: set[int] = set()
    for slot in groups.units.slots:
        positions = removed.plan.kept.get((slot.tensor, slot.dim))
        if positions is not None:
            gone |= set(slot.unit.tolist()) - set(slot.unit[positions].tolist())
    return set(range(groups.units.count)) - gone


def _differences(found: Sizes, wanted: Sizes) -> list[str]:
    """The inputs and layers a selection keeps more or less of than the shipped model."""
    words: dict[Kind, str] = {"input": "features of input", "hidden": "units of layer"}
    return [
        f"it keeps {found[kind, name]} {words[kind]} {name!r}, the shipped model {count}"
        for (kind, name), count in wanted.items()
        if found[kind, name] != count
    ]


def _baseline(job: Job, name: Name, runs: Sequence[BaselineRun]) -> Baseline:
    return Baseline(
        name=name,
        valid=_spread(job.metric, [run.valid for run in runs]),
        test=[_spread(metric, [run.test[metric] for run in runs]) for metric in runs[0].test],
        runs=list(runs),
    )


def _spread(name: str, values: Sequence[float]) -> Spread:
    several = len(values) > 1
    return Spread(name=name, mean=statistics.fmean(values), std=statistics.stdev(values) if several else None)
