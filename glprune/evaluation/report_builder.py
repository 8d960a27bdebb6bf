"""Build the report's records from the results of a run."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glprune._plugins import packages
from glprune._version import __version__
from glprune.data.splits import IndexableSplit, Split
from glprune.evaluation.policy_report import make_policy, make_reason_codes, reason
from glprune.export.signature import shipped_inputs, shipped_outputs
from glprune.metrics.influence import standard_error
from glprune.pruning.groups import GroupSet, TensorDict, group_norms, group_sizes, sliced
from glprune.pruning.verification import TOLERANCE
from glprune.report import caveats
from glprune.report.rules import selection_rule
from glprune.schema import bundle as bundles
from glprune.schema.column_table import columns_digest
from glprune.schema.recipe import PenaltySpec, Recipe
from glprune.schema.report import (
    Baselines,
    CandidateFacts,
    Comparison,
    DataFacts,
    Digests,
    DropCosts,
    Export,
    Feature,
    FeatureGroup,
    Frontier,
    HiddenLayer,
    LrHalvings,
    PathPoint,
    PenaltyFacts,
    Proxies,
    Quantized,
    Refit,
    Removal,
    Report,
    Run,
    SearchStage,
    Selection,
    SplitFacts,
    Stability,
    Timing,
    ValidationFigures,
)
from glprune.search.outcome import kept_names
from glprune.search.path_point import path_record
from glprune.search.portfolio.candidates import mean_gain
from glprune.search.refit import distill_share
from glprune.tables.features import InputPosition, KeptPosition
from glprune.training.feature_groups import members

if TYPE_CHECKING:
    from pathlib import Path

    from glprune.evaluation.measurements import TestMeasurements
    from glprune.pruning.removal import RemovalResult
    from glprune.search.job import Job
    from glprune.search.portfolio.candidates import Scores
    from glprune.search.search import SearchResult
    from glprune.search.stage import StageResult

_PACKAGES = (
    "torch",
    "torch-pruning",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "numpy",
    "pyarrow",
    "safetensors",
    "matplotlib",
)


@dataclass(frozen=True)
class RunResults:
    """All results of a run.

    Attributes:
        job: Recipe, data, network, groups.
        chosen: The shipped network and how it was selected.
        measured: Measurements of the ONNX files.
        baselines: Results of simpler selections; None if not measured.
        frontier: Networks of other sizes; None without ``target.frontier``.
        stability: Stability of the selection over resamples; None if not measured.
        drop_costs: Cost of dropping each kept feature; None if not measured.
        proxies: Whether protected attributes were predicted; None without a policy.
        quantized: Measurements of the file in 8-bit integers; None without one.
        folder: The bundle's files so far.
        seconds: Wall seconds of each stage.
    """

    job: Job
    chosen: SearchResult
    measured: TestMeasurements
    baselines: Baselines | None
    frontier: Frontier | None
    stability: Stability | None
    drop_costs: DropCosts | None
    proxies: Proxies | None
    quantized: Quantized | None
    folder: Path
    seconds: dict[str, float]


def make_report(outcome: RunResults) -> Report:
    """Build the report of a run; every number is taken from the results, none is computed again."""
    job, chosen, measured, recipe = outcome.job, outcome.chosen, outcome.measured, outcome.job.recipe
    notes = _notes(job)
    report = Report(
        schema="glprune.report/2",
        title=recipe.report.title or (recipe.source.stem if recipe.source else "glprune run"),
        purpose=recipe.report.purpose,
        domain=recipe.report.domain,
        jurisdiction=recipe.report.jurisdiction,
        task=job.task.kind,
        digests=_digests(outcome),
        run=_run(recipe),
        timing=Timing(generated_at=datetime.now(UTC).isoformat(timespec="seconds"), seconds=outcome.seconds),
        data=_data(job),
        features=_features(outcome),
        hidden=_hidden(outcome),
        penalty=_penalty(recipe.penalty, outcome),
        path=_path(outcome),
        stages=[_stage(number, stage) for number, stage in enumerate(chosen.stages, 1)],
        selection=_selection(outcome),
        removal=_removal(chosen.removed),
        refit=_refit(outcome),
        lr_halvings=_halvings(chosen),
        performance=measured.metrics,
        agreement=measured.agreement,
        baselines=outcome.baselines,
        size=measured.size,
        latency=measured.latency,
        widths=chosen.stages[-1].widths,
        export=_export(outcome),
        quantized=outcome.quantized,
        policy=make_policy(job),
        segments=measured.segments,
        reason_codes=make_reason_codes(job, chosen.outcomes),
        proxies=outcome.proxies,
        warnings=notes,
        frontier=outcome.frontier,
        stability=outcome.stability,
        drop_costs=outcome.drop_costs,
        not_measured=[],
    )
    derived = {
        "warnings": [*notes, *caveats.warnings(report, recipe)],
        "not_measured": caveats.not_measured(report, recipe),
    }
    return report.model_copy(update=derived)


def _selection(outcome: RunResults) -> Selection:
    return Selection(
        rule=selection_rule(outcome.job.recipe),
        lam=_last_input_stage(outcome.chosen).selected.lam,
        metric=outcome.job.metric,
        reference=outcome.chosen.reference,
        comparison=_comparison(outcome),
    )


def _comparison(outcome: RunResults) -> Comparison | None:
    """Record the sets of features that were compared; None where the path alone was used."""
    found = outcome.chosen.competition
    if found is None:
        return None
    names = [feature.name for feature in outcome.job.data.features]
    lead, path = found.lead, found.candidates[0]
    return Comparison(
        folds=found.folds,
        repeats=found.repeats,
        rows=len(path.valid.influences),
        fold_rows=sum(len(score.influences) for score in path.folds) // found.repeats,
        rule=found.rule,
        lead=lead.mean if lead else None,
        lead_standard_error=lead.standard_error if lead else None,
        candidates=[
            CandidateFacts(
                found_by=candidate.name,
                features=[name for name in names if name in candidate.kept],
                valid=_figures((candidate.valid,), (path.valid,)),
                cross_validation=_figures(candidate.folds, path.folds, found.repeats)
                if candidate.folds
                else None,
                chosen=candidate is found.best,
            )
            for candidate in found.candidates
        ],
    )


def _figures(scores: Scores, path: Scores, repeats: int = 1) -> ValidationFigures:
    gain = mean_gain(scores, path, repeats)
    return ValidationFigures(
        metric=sum(score.value for score in scores) / len(scores),
        standard_error=standard_error(torch.cat([score.influences for score in scores])) * repeats**0.5,
        loss=sum(score.loss for score in scores) / len(scores),
        gain=gain.mean,
        gain_standard_error=gain.standard_error,
    )


def _removal(removed: RemovalResult) -> Removal:
    return Removal(
        tolerance=TOLERANCE,
        rows=removed.rows,
        difference=removed.difference,
        cuts=list(removed.cuts),
        refused=list(removed.refused),
    )


def _penalty(spec: PenaltySpec, outcome: RunResults) -> PenaltyFacts:
    kept = set(kept_names(outcome.chosen.outcomes))
    found = members(spec.groups, [feature.name for feature in outcome.job.data.features])
    return PenaltyFacts(
        kind=spec.kind,
        groups=[
            FeatureGroup(name=name, features=features, kept=[f for f in features if f in kept])
            for name, features in found.items()
        ],
        plugin=spec.plugin,
        weights=spec.weights,
        l1_ratio=spec.l1_share if spec.kind == "sparse_group_lasso" else None,
        gamma=spec.mcp_threshold if spec.kind == "group_mcp" else None,
    )


def _path(outcome: RunResults) -> list[PathPoint]:
    job = outcome.job
    return [
        path_record(point, number, stage.job, job, point is stage.selected)
        for number, stage in enumerate(outcome.chosen.stages, 1)
        for point in stage.points
    ]


def _stage(number: int, stage: StageResult) -> SearchStage:
    return SearchStage(
        number=number,
        penalised=stage.penalised,
        rule=stage.spec.rule,
        input_strength=stage.spec.input_strength,
        lam=stage.selected.lam,
        features=stage.selected.features,
        hidden=stage.selected.hidden,
        metric=stage.metric,
    )


def _last_input_stage(chosen: SearchResult) -> StageResult:
    """Return the last stage that penalised inputs, else the last stage."""
    with_inputs = (stage for stage in reversed(chosen.stages) if "input" in stage.penalised)
    return next(with_inputs, chosen.stages[-1])


def _digests(outcome: RunResults) -> Digests:
    recipe = outcome.job.recipe
    files = [*bundles.MADE_BEFORE_THE_REPORT, *([bundles.INT8] if outcome.quantized else [])]
    files += [bundles.ORIGINAL] if recipe.export.keep_original else []
    files += [bundles.FRONTIER, *bundles.point_files(outcome.folder)] if outcome.frontier else []
    digests = {name: bundles.digest(outcome.folder / name) for name in files}
    return Digests(
        recipe=recipe.sha256 or digests[bundles.RECIPE],
        recipe_resolved=digests[bundles.RECIPE],
        columns=columns_digest(_columns(outcome.job)),
        model=outcome.job.loaded.sha256,
        data=dict(outcome.job.data.digests),
        outputs=digests,
    )


def _run(recipe: Recipe) -> Run:
    versions = {"glprune": __version__, "python": platform.python_version()}
    versions |= {package: metadata.version(package) for package in _PACKAGES}
    return Run(
        seed=recipe.seed,
        threads=torch.get_num_threads(),
        platform=f"{platform.system()} {platform.machine()}",
        cpu=torch.backends.cpu.get_cpu_capability(),
        versions=versions,
        plugins=packages(recipe.plugins),
    )


def _data(job: Job) -> DataFacts:
    data = job.data
    splits = {"train": data.train, "valid": data.valid, "test": data.test}
    return DataFacts(
        source=data.source,
        splits={name: _describe_split(split, job) for name, split in splits.items()},
        classes=list(data.classes) if data.classes else None,
        standardize=job.recipe.data.standardize,
        notes=list(data.notes),
        columns=_columns(job),
        outside=list(data.outside),
    )


def _columns(job: Job) -> dict[str, list[str]]:
    """List the columns of every input in the order of the trained network."""
    return {part.name: list(part.columns) for part in job.data.inputs}


def _describe_split(split: Split, job: Job) -> SplitFacts:
    """Count the rows and summarise the target: mean and deviation, or the share of each class."""
    if job.task.kind == "distillation":
        return SplitFacts(rows=split.rows, target={})
    classes = job.data.classes
    target = split.target if isinstance(split, IndexableSplit) else _targets(split)
    if classes is None:
        values = {"mean": float(target.double().mean()), "std": float(target.double().std(unbiased=False))}
    else:
        counts = torch.bincount(target, minlength=len(classes)).double() / len(target)
        values = dict(zip(classes, counts.tolist(), strict=True))
    return SplitFacts(rows=split.rows, target=values)


def _targets(split: Split) -> Tensor:
    return torch.cat([y for _, y in split.batches(8192, None)])


def _norms(state: TensorDict, sets: Sequence[GroupSet]) -> dict[str, float]:
    """The group norm of every feature of some input sets."""
    return {
        label: norm
        for g in sets
        for label, norm in zip(g.labels, group_norms(state, g).tolist(), strict=True)
    }


def _features(outcome: RunResults) -> list[Feature]:
    job, chosen = outcome.job, outcome.chosen
    state = dict(job.network.state_dict())
    left = [sliced(g, chosen.removed.plan.kept) for g in job.input_groups]
    original = _norms(state, job.input_groups)
    final = _norms(dict(chosen.refit.network.state_dict()), left)
    sizes = {
        label: size
        for g in job.input_groups
        for label, size in zip(g.labels, group_sizes(state, g).tolist(), strict=True)
    }
    positions = _shipped_positions(outcome)
    counts, total = _kept_in(outcome)
    return [
        Feature(
            name=feature.name,
            columns=[job.data.columns[c] for c in feature.columns],
            status=fate.status,
            group_size=sizes[feature.name],
            penalty_weight=fate.penalty_weight,
            norm_original=original[feature.name],
            norm_selected=fate.norm,
            norm_final=final[feature.name] if fate.is_kept else None,
            lambda_exit=fate.lam,
            stage_exit=fate.stage,
            input=fate.input,
            input_columns=columns,
            kept_in=counts.get(feature.name),
            kept_share=counts[feature.name] / total if feature.name in counts else None,
            reason=reason(job, fate),
        )
        for feature, fate, columns in zip(job.data.features, chosen.outcomes, positions, strict=True)
    ]


def _kept_in(outcome: RunResults) -> tuple[dict[str, int], int]:
    """Count the resamples that keep each removable feature, and all resamples."""
    record = outcome.stability
    if record is None:
        return {}, 0
    digits = zip(*(resample.kept for resample in record.resamples), strict=True)
    features = zip(outcome.job.data.features, record.removable, digits, strict=True)
    counts = {feature.name: kept.count("1") for feature, removable, kept in features if removable == "1"}
    return counts, len(record.resamples)


def _shipped_positions(outcome: RunResults) -> list[list[int] | None]:
    """Return the positions of each kept feature's columns in the inputs of the shipped file."""
    job, chosen = outcome.job, outcome.chosen
    if job.recipe.export.signature == "original":
        return [
            list(job.data.positions(feature)) if fate.is_kept else None
            for feature, fate in zip(job.data.features, chosen.outcomes, strict=True)
        ]
    positions: dict[str, dict[InputPosition, KeptPosition]] = {
        part.name: {position: KeptPosition(n) for n, position in enumerate(kept)}
        for part, kept in zip(job.data.inputs, chosen.removed.selection.positions(), strict=True)
    }
    return [
        [positions[fate.input][position] for position in fate.columns] if fate.is_kept else None
        for fate in chosen.outcomes
    ]


def _hidden(outcome: RunResults) -> list[HiddenLayer]:
    removed = Counter[str]()
    for cut in outcome.chosen.removed.cuts:
        if cut.kind == "hidden":
            removed[cut.name] += cut.units
    refused = {r.name: r.reason for r in outcome.chosen.removed.refused}
    return [
        HiddenLayer(
            name=g.name,
            before=g.units.count,
            after=g.units.count - removed[g.name],
            refused=refused.get(g.name),
        )
        for g in outcome.job.groups
        if g.kind == "hidden"
    ]


def _refit(outcome: RunResults) -> Refit | None:
    spec = outcome.job.recipe.refit
    if spec.epochs == 0:
        return None
    return Refit(
        epochs=outcome.chosen.refit.epochs,
        best_epoch=outcome.chosen.refit.best_epoch,
        distill=distill_share(outcome.job, outcome.chosen.removed),
        metric=outcome.chosen.refit_metric,
    )


def _halvings(chosen: SearchResult) -> LrHalvings | None:
    path = sum(point.halvings for stage in chosen.stages for point in stage.points)
    refit = sum(stage.refit.halvings for stage in chosen.stages)
    return LrHalvings(path=path, refit=refit) if path + refit else None


def _export(outcome: RunResults) -> Export:
    job, spec = outcome.job, outcome.job.recipe.export
    return Export(
        file=bundles.ONNX,
        signature=spec.signature,
        exporter=outcome.measured.files.exporter,
        names=outcome.measured.files.names,
        opset=spec.opset,
        inputs=shipped_inputs(job, outcome.chosen.removed),
        outputs=shipped_outputs(job),
        checker="passed",
        rows=outcome.measured.rows,
        difference=outcome.measured.difference,
    )


def _notes(job: Job) -> list[str]:
    """List the warnings that do not follow from the figures: notes of readers, doubts about the original."""
    return [*_original_warnings(job), *job.data.notes, *job.loaded.notes, *job.fixed_inputs]


def _original_warnings(job: Job) -> Iterator[str]:
    """Warn where the original network looked untrained and ``accept_original`` let the run continue."""
    if job.original.doubts:
        yield (
            "The original network does not look like the one that was trained, and the run went on with it: "
            f"{'; '.join(job.original.doubts)}. Gains over it say little."
        )
    yield from job.original.hints
