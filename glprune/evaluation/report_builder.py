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
from glprune._wording import counted
from glprune.data.splits import IndexableSplit, Split
from glprune.evaluation.policy_report import (
    NO_PROXIES,
    NO_SEGMENTS,
    make_policy,
    make_reason_codes,
    not_measured,
    policy_warnings,
    reason,
)
from glprune.export.signature import shipped_inputs, shipped_outputs
from glprune.metrics.influence import standard_error
from glprune.pruning.groups import GroupSet, TensorDict, group_norms, group_sizes, sliced
from glprune.pruning.verification import TOLERANCE
from glprune.report.sentences import kept_not_converged, removed_not_optimal
from glprune.report.uncertainty import (
    int8_loss_sentence,
    is_clear_int8_loss,
    is_clear_loss,
    loss_sentence,
)
from glprune.schema import bundle as bundles
from glprune.schema.metrics import KKT_TOLERANCE
from glprune.schema.recipe import HIGHER_IS_BETTER, PenaltySpec, Recipe
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
from glprune.search.budget import resolve_budget
from glprune.search.outcome import kept_names
from glprune.search.path_point import path_record
from glprune.search.portfolio.candidates import mean_gain
from glprune.search.portfolio.frontier import shipping_rule
from glprune.search.refit import distill_share
from glprune.search.search import penalises_both
from glprune.tables.features import InputPosition, KeptPosition
from glprune.training.feature_groups import members

if TYPE_CHECKING:
    from pathlib import Path

    from glprune.evaluation.measurements import TestMeasurements
    from glprune.pruning.removal import RemovalResult
    from glprune.schema.recipe import MaxDrop
    from glprune.search.job import Job
    from glprune.search.portfolio.candidates import Scores
    from glprune.search.search import SearchResult
    from glprune.search.stage import StageResult

_TRAIN_LONGER = "increase train.epochs or train.full_batch_steps."
_NOT_SETTLED = (
    f"(tolerance {KKT_TOLERANCE:g}): training ended before the weights settled, and "
    "longer training might have removed other groups. The comparison of outputs before and after removal "
    "does not depend on it. train.n_stages: 1 and more train.full_batch_steps come closer."
)
_MAX_NAMES = 12
_BUDGET_USED = 0.97  # share of a budget below which the report says why
_DENSEST = "of the points that keep no more, the one that keeps most"
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
_STABILITY = "How stable the selection is over resamples, seeds and splits."
_RETRAINING = (
    "How stable the selection is over networks trained again: all resamples start from the given network."
)
NOT_MEASURED = (
    "Whether upstream systems still collect or pass on the removed features.",
    NO_PROXIES,
    NO_SEGMENTS,
    _STABILITY,
    "Latency on other hardware, batch sizes or thread counts than those listed.",
)
_OTHER_SETS = (
    "Whether other sets of as many features are better: hidden units were removed along the same path, so "
    "that none was compared."
)
_WITHOUT_LABELS = ("Whether the original network or the shipped one is correct: there were no labels.",)


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
    return Report(
        schema="glprune.report/2",
        title=recipe.report.title or (recipe.source.stem if recipe.source else "glprune run"),
        purpose=recipe.report.purpose,
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
        warnings=_warnings(outcome),
        frontier=outcome.frontier,
        stability=outcome.stability,
        drop_costs=outcome.drop_costs,
        not_measured=_not_measured(outcome),
    )


def _selection(outcome: RunResults) -> Selection:
    return Selection(
        rule=_rule(outcome.job),
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


def _not_measured(outcome: RunResults) -> list[str]:
    """List what the run did not measure."""
    without_labels = _WITHOUT_LABELS if outcome.job.task.kind == "distillation" else ()
    stability = _STABILITY if outcome.stability is None else _RETRAINING
    other_sets = (_OTHER_SETS,) if _is_joint_path(outcome) else ()
    sentences = [stability if sentence == _STABILITY else sentence for sentence in NOT_MEASURED]
    return not_measured(outcome.job, outcome.proxies, [*without_labels, *other_sets, *sentences])


def _is_joint_path(outcome: RunResults) -> bool:
    """Whether a number of features was asked for and hidden units left along the same path."""
    target = outcome.job.recipe.target
    asked = target.max_features is not None or target.frontier is not None
    return asked and target.max_hidden is None and penalises_both(outcome.job, ("input", "hidden"))


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
    )


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


def _rule(job: Job) -> str:
    """Describe the rule that selects the point of the path."""
    target = job.recipe.target
    if target.frontier is not None:
        return f"networks of several sizes; {shipping_rule(target.max_features)} ships"
    if target.max_features is not None:
        return f"at most {counted(target.max_features, 'input feature')}: {_DENSEST}"
    if target.max_drop is not None:
        return _max_drop_rule(job, target.max_drop)
    if target.lam is not None:
        return f"lambda {target.lam:g} as the recipe states"
    if target.latency is not None:
        is_share = isinstance(target.latency, str)
        limit = f"{target.latency} of the original's" if is_share else f"{target.latency:g} ms"
        return f"latency at batch {target.batch} at most {limit}"
    for name, budget in (("parameters", target.parameters), ("multiply-accumulates", target.macs)):
        if budget is not None:
            limit = budget if isinstance(budget, str) else format(budget, ",.0f")
            return f"at most {limit} {name}: {_DENSEST}"
    assert target.max_hidden is not None  # the recipe has a target
    return f"at most {counted(target.max_hidden, 'hidden unit')}: {_DENSEST}"


def _max_drop_rule(job: Job, drop: MaxDrop) -> str:
    higher_is_better = HIGHER_IS_BETTER[drop.metric]
    change = f"at most {drop.amount:g} {'lower' if higher_is_better else 'higher'} than"
    if job.task.kind == "distillation":
        return f"{drop.metric} of agreement after the refit {change} {1 if higher_is_better else 0}"
    return f"{drop.metric} after the refit {change} the original network's"


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


def _warnings(outcome: RunResults) -> list[str]:
    """List what a reader of the report should know before using the model."""
    job, chosen = outcome.job, outcome.chosen
    return [
        *_original_warnings(job),
        *job.data.notes,
        *job.loaded.notes,
        *job.fixed_inputs,
        *_removal_warnings(job, chosen.removed),
        *_zero_input_warnings(outcome),
        *_budget_warnings(job, outcome.measured),
        *_stability_warnings(outcome),
        *_halving_warnings(_halvings(chosen)),
        *policy_warnings(job, chosen.outcomes),
        *_optimality_warnings(chosen),
        *_performance_warnings(job, outcome.measured),
        *_int8_warnings(outcome.quantized),
    ]


def _original_warnings(job: Job) -> Iterator[str]:
    """Warn where the original network looked untrained and ``accept_original`` let the run continue."""
    if job.original.doubts:
        yield (
            "The original network does not look like the one that was trained, and the run went on with it: "
            f"{'; '.join(job.original.doubts)}. Gains over it say little."
        )
    yield from job.original.hints


def _budget_warnings(job: Job, measured: TestMeasurements) -> Iterator[str]:
    """Warn where a network is much smaller than its budget allows."""
    target, size = job.recipe.target, measured.size
    for name, budget, before, after in (
        ("parameters", target.parameters, size.parameters_before, size.parameters_after),
        ("macs", target.macs, size.macs_before, size.macs_after),
    ):
        used = after / resolve_budget(budget, before) if budget is not None else 1.0
        if used < _BUDGET_USED:
            yield (
                f"The network uses {used:.1%} of target.{name}. Removed units came back as long as they "
                "fitted; the next would exceed the budget."
            )


def _removal_warnings(job: Job, removed: RemovalResult) -> Iterator[str]:
    """Warn of units that could not be removed and of inexact cuts."""
    reported = {g.name for g in job.input_groups if g.units.refused and job.fixed_inputs}
    for skipped in removed.refused:
        if skipped.name not in reported:
            yield f"{skipped.name}: {counted(skipped.units, 'unit')} not removed: {skipped.reason}."
    for cut in removed.cuts:
        if cut.inexact:
            yield (
                f"{cut.name}: {counted(cut.units, 'unit')} removed that {cut.inexact} mixes with others, "
                f"which changes outputs by {cut.difference:.1e}."
            )


def _optimality_warnings(chosen: SearchResult) -> Iterator[str]:
    """Warn where a removed or a kept group violates its optimality condition."""
    zero, where = max((stage.selected.kkt_zero, -n) for n, stage in enumerate(chosen.stages, 1))
    if zero > KKT_TOLERANCE:
        yield f"{removed_not_optimal(zero)} at the chosen point of stage {-where}; {_TRAIN_LONGER}"
    active, where = max((stage.selected.kkt_active, -n) for n, stage in enumerate(chosen.stages, 1))
    if active > KKT_TOLERANCE:
        yield f"{kept_not_converged(active)} at the chosen point of stage {-where} {_NOT_SETTLED}"


def _performance_warnings(job: Job, measured: TestMeasurements) -> Iterator[str]:
    """Warn of untrained outputs that changed and of metrics that became worse by more than chance."""
    for output in measured.agreement:
        if not output.trained_for and output.max_change > TOLERANCE:
            yield (
                f"Output {output.name!r} was not trained for and changed by up to {output.max_change:.2g}; "
                "see its agreement."
            )
    if job.task.kind != "distillation":
        yield from (loss_sentence(m) for m in measured.metrics if is_clear_loss(m, job.metric))


def _int8_warnings(found: Quantized | None) -> Iterator[str]:
    """Warn of metrics of the 8-bit file that are worse than the shipped file's by more than chance."""
    if found is not None:
        yield from (int8_loss_sentence(found.file, m) for m in found.metrics if is_clear_int8_loss(m))


def _halving_warnings(count: LrHalvings | None) -> Iterator[str]:
    if count is not None:
        yield (
            "Values became non-finite, so the step size was halved "
            f"{counted(count.path, 'time')} on the path and {counted(count.refit, 'time')} in refits; "
            "lower train.lr or refit.lr."
        )


def _stability_warnings(outcome: RunResults) -> Iterator[str]:
    """Warn of features on which most resamples disagree with the run, and of resamples that failed."""
    if outcome.stability is None:
        return
    counts, total = _kept_in(outcome)
    kept_rarely, removed_rarely = [], []
    for fate in outcome.chosen.outcomes:
        count = counts.get(fate.feature)
        if count is not None and fate.is_kept and 2 * count < total:
            kept_rarely.append(f"{fate.feature} ({count})")
        elif count is not None and not fate.is_kept and 2 * count > total:
            removed_rarely.append(f"{fate.feature} ({count})")
    if kept_rarely:
        yield f"Kept, but in fewer than half of {total} resamples: {_name_list(kept_rarely)}."
    if removed_rarely:
        yield f"Removed, but kept in more than half of {total} resamples: {_name_list(removed_rarely)}."
    for failure in dict.fromkeys(outcome.stability.failures):
        yield f"A resample was left out: {failure}"


def _name_list(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def _zero_input_warnings(outcome: RunResults) -> Iterator[str]:
    """Warn of inputs all of whose groups became zero: one column is kept, since an input cannot be empty."""
    stage = _last_input_stage(outcome.chosen)
    norms = iter(stage.selected.norms)
    for groups in stage.job.input_groups:
        input_norms = [next(norms) for _ in groups.labels]
        if not groups.units.refused and not any(input_norms):
            yield (
                f"All features of input {groups.name!r} became zero; its first column is kept, since an "
                "input needs at least one."
            )
