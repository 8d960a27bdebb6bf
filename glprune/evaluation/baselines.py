"""Baselines: simpler selections of the same size as the shipped model.

Each baseline starts from the same trained network, keeps as many features of every input and as many units
of every layer as the shipped model, and is made and measured in the same way: cut, refit, ONNX file, test
rows. Where the shipped model was made in two stages (``target.max_hidden`` beside another target), so are
baselines.

References:
    Magnitude: Han et al. (2015), "Learning both weights and connections for efficient neural networks";
    of whole groups, Li et al. (2017), "Pruning filters for efficient ConvNets". Permutation importance:
    ``glprune.evaluation.permutation_importance``.
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
from glprune.export.shipped_model import file_columns, on_test_rows, write_shipped
from glprune.metrics.confidence_intervals import confidence_intervals
from glprune.model.prediction import predict
from glprune.pruning.groups import GroupSet, group_norms, sliced, support, zero_units_
from glprune.pruning.removal import RemovalResult, remove, then
from glprune.pruning.units import GroupKind
from glprune.runtime.events import Listener, Progress, Stage
from glprune.schema import bundle as bundles
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
Sizes = Mapping[tuple[GroupKind, str], int]


@dataclass(frozen=True)
class _Shipped:
    """What a baseline copies from the shipped network.

    Attributes:
        removed: What was removed.
        kept: Names of the kept features.
        sizes: Kind and name of a group set -> the number of its features or units that are kept.
        staged: Whether hidden units were removed after the inputs, from the refitted network.
        outputs: A view of the shipped file's outputs on the test split.
    """

    removed: RemovalResult
    kept: frozenset[str]
    sizes: Sizes
    staged: bool
    outputs: Tensor


def measure_baselines(job: Job, chosen: SearchResult, folder: Path, listener: Listener) -> Baselines | None:
    """Cut, refit, export and measure each baseline.

    Args:
        job: The job of the trained network.
        chosen: The shipped network.
        folder: The bundle's files so far, the shipped file among them; also for temporary files.
        listener: Receives every measured selection.

    Returns:
        The record; None where the recipe does not ask for it. A selection that cannot be measured is
        left out, and a note gives the reason.
    """
    if not job.recipe.report.baselines:
        return None
    removed, kept = chosen.removed, frozenset(kept_names(chosen.outcomes))
    staged = any(stage.spec.kinds == ("hidden",) for stage in chosen.stages[1:])
    file = OnnxFile(folder / bundles.ONNX, job.recipe.threads)
    outputs, _ = predict(file, job.data.test, file_columns(job, removed))
    shipped = _Shipped(removed, kept, _sizes(job, removed, kept), staged, job.task.view(outputs))
    runs, failures = _runs(job, shipped, folder, listener)
    return Baselines(
        features=sum(count for (kind, _), count in shipped.sizes.items() if kind == "input"),
        hidden=sum(count for (kind, _), count in shipped.sizes.items() if kind == "hidden"),
        valid=chosen.refit_metric,
        rows=job.data.test.rows,
        repeats=PERMUTATIONS,
        results=[_baseline(job, name, measured) for name, measured in runs.items()],
        notes=[*_notes(job, shipped), *failures],
    )


def _runs(
    job: Job, shipped: _Shipped, folder: Path, listener: Listener
) -> tuple[dict[Name, list[BaselineRun]], list[str]]:
    """Measure every selection; also return notes on those that fail or have another size."""
    tasks = [(name, ranking) for name, rankings in _rankings(job, shipped).items() for ranking in rankings]
    if tasks:
        listener(Stage("baselines", f"cutting and refitting {len(tasks)} other selections"))
    runs: dict[Name, list[BaselineRun]] = {}
    notes: list[str] = []
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for done, (name, ranking) in enumerate(tasks, 1):
            try:
                run, differences = _measure(job, shipped, ranking, Path(scratch))
            except GlpruneError as error:  # a baseline that fails must not stop the run
                notes.append(f"{name}: a selection could not be measured: {str(error).rstrip('.')}.")
            else:
                runs.setdefault(name, []).append(run)
                notes += [f"{name}: {difference}." for difference in differences]
            listener(Progress("selections measured", done, len(tasks)))
    return runs, list(dict.fromkeys(notes))


def _kept_by(job: Job, removed: RemovalResult) -> list[str]:
    """Return the names of the features that a removal keeps."""
    pairs = zip(job.data.features, job.data.kept_positions(removed.selection), strict=True)
    return [feature.name for feature, positions in pairs if positions]


def _sizes(job: Job, removed: RemovalResult, kept: Collection[str]) -> Sizes:
    """Count the features of every input and the units of every layer that are kept."""
    sizes: dict[tuple[GroupKind, str], int] = {}
    for groups in job.groups:
        if groups.kind == "input":
            sizes["input", groups.name] = sum(label in kept for label in groups.labels)
        else:
            cut = sum(c.units for c in removed.cuts if (c.kind, c.name) == ("hidden", groups.name))
            sizes["hidden", groups.name] = groups.units.count - cut
    return sizes


def _is_cut(job: Job, sizes: Sizes, kind: GroupKind) -> bool:
    """Return whether anything of a kind was removed."""
    return any(sizes[g.kind, g.name] < len(g.labels) for g in job.groups if g.kind == kind)


def _rankings(job: Job, shipped: _Shipped) -> dict[Name, list[Ranking]]:
    """Return the rankings of each baseline; none where nothing was removed."""
    if not _is_cut(job, shipped.sizes, "input") and not _is_cut(job, shipped.sizes, "hidden"):
        return {}
    generator = torch.Generator().manual_seed(job.recipe.seed)
    rankings: dict[Name, list[Ranking]] = {
        "random": [_random(generator)] * RANDOM_DRAWS,
        "magnitude": [_magnitude],
    }
    if _is_cut(job, shipped.sizes, "input"):
        rankings["permutation"] = [_permutation]
    return rankings


def _notes(job: Job, shipped: _Shipped) -> list[str]:
    """State what was not compared, and where the comparison is not fair."""
    features_cut, units_cut = (_is_cut(job, shipped.sizes, kind) for kind in ("input", "hidden"))
    if not features_cut and not units_cut:
        return ["Nothing was removed, so there is no selection to compare."]
    notes = []
    if not features_cut:
        notes.append(
            "Permutation importance was not run: it ranks input features, and none of them was removed."
        )
    if job.recipe.refit.epochs == 0 or job.recipe.refit.start != "trained":
        notes.append(
            "The shipped network may start its refit from the weights of the path, the baselines start from "
            "the trained weights: the shipped network was trained for longer."
        )
    return notes


def _random(generator: torch.Generator) -> Ranking:
    return lambda job, groups: torch.rand(len(groups.labels), generator=generator, dtype=torch.float64)


def _magnitude(job: Job, groups: GroupSet) -> Tensor:
    return group_norms(job.network.state_dict(), groups)


def _permutation(job: Job, groups: GroupSet) -> Tensor:
    """Rank features by permutation importance and hidden units by their norms."""
    if groups.kind == "hidden":
        return _magnitude(job, groups)
    return permutation_importance(job, groups, PERMUTATIONS)


def _measure(job: Job, shipped: _Shipped, ranking: Ranking, folder: Path) -> tuple[BaselineRun, list[str]]:
    """Measure one selection, and state where its size differs from the shipped one.

    Raises:
        GlpruneError: It cannot be refitted or exported, or its file does not agree with PyTorch.
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
    view = job.task.view(outputs)
    test = job.task.metrics(view, target)
    if not all(map(math.isfinite, (valid, *test.values()))):
        raise ModelError("a metric is not finite")
    kept = _kept_by(job, removed)
    sizes = _sizes(job, removed, set(kept))
    networks = {"baseline": view, "shipped": shipped.outputs}
    intervals = confidence_intervals(job.task.scorer, networks, target, job.recipe.seed)
    run = BaselineRun(
        kept=kept,
        common=sum(name in shipped.kept for name in kept),
        hidden=sum(count for (kind, _), count in sizes.items() if kind == "hidden"),
        common_hidden=sum(len(_kept_units(g, removed) & _kept_units(g, shipped.removed)) for g in job.groups),
        valid=valid,
        test=test,
        differences={name: found.differences["shipped"] for name, found in intervals.items()},
    )
    return run, _differences(sizes, shipped.sizes)


def _slim(job: Job, shipped: _Shipped, ranking: Ranking) -> tuple[RemovalResult, nn.Module, float]:
    """Return the refitted network of a selection and its metric on the validation split."""
    if not shipped.staged:
        return _cut_weakest(job, shipped.sizes, ranking, ("input", "hidden"))
    first, network, _ = _cut_weakest(job, shipped.sizes, ranking, ("input",))
    next_job = slim_job(job, network, first.selection, [sliced(g, first.plan.kept) for g in job.groups])
    second, network, valid = _cut_weakest(next_job, shipped.sizes, ranking, ("hidden",))
    return then(first, second), network, valid


def _cut_weakest(
    job: Job, sizes: Sizes, ranking: Ranking, kinds: Sequence[GroupKind]
) -> tuple[RemovalResult, nn.Module, float]:
    """Cut the groups of lowest rank down to the given sizes and refit."""
    zeroed = copy.deepcopy(job.network)
    for groups in job.groups:
        keep = sizes.get((groups.kind, groups.name), len(groups.labels))
        if groups.kind in kinds and not groups.units.refused and keep < len(groups.labels):
            is_dropped = _weakest(job, groups, ranking(job, groups), keep)
            zero_units_(zeroed.state_dict(), groups.units, is_dropped[groups.group])
    removed = remove(zeroed, job.groups, job.probe, job.axes)
    refit, valid = refit_or_resume(job, removed)
    return removed, refit.network, valid


def _weakest(job: Job, groups: GroupSet, score: Tensor, keep: int) -> Tensor:
    """Mark all groups but the ``keep`` of highest score, bool, shape (n_groups,).

    The policy's rules on features come first. Groups that are zero in the trained network are dropped next,
    since a removal cuts them in any case. Of equal scores, which a metric that counts rows often gives, the
    larger norm is kept.
    """
    state = job.network.state_dict()
    ranks = [job.rules.rank(label) if groups.kind == "input" else 1 for label in groups.labels]
    nonzero, norms = support(state, groups).tolist(), group_norms(state, groups).tolist()
    keys = list(zip(ranks, nonzero, score.tolist(), norms, strict=True))
    order = sorted(range(len(keys)), key=lambda group: keys[group], reverse=True)
    is_dropped = torch.ones(len(keys), dtype=torch.bool)
    is_dropped[order[:keep]] = False
    return is_dropped


def _kept_units(groups: GroupSet, removed: RemovalResult) -> set[int]:
    """Return the kept hidden units of a layer, in the trained network's numbering."""
    if groups.kind == "input":
        return set()
    dropped: set[int] = set()
    for slot in groups.units.slots:
        positions = removed.plan.kept.get((slot.tensor, slot.dim))
        if positions is not None:
            dropped |= set(slot.unit.tolist()) - set(slot.unit[positions].tolist())
    return set(range(groups.units.count)) - dropped


def _differences(found: Sizes, wanted: Sizes) -> list[str]:
    """List the inputs and layers of which a selection keeps more or less than the shipped model."""
    counted: dict[GroupKind, str] = {"input": "features of input", "hidden": "units of layer"}
    return [
        f"it keeps {found[kind, name]} {counted[kind]} {name!r}, the shipped model {count}"
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
    std = statistics.stdev(values) if len(values) > 1 else None
    return Spread(name=name, mean=statistics.fmean(values), std=std)
