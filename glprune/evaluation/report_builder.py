"""Turn what a run measured into the report's records."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from glprune._plugins import packages
from glprune._version import __version__
from glprune.data.splits import IndexableSplit, InputPosition, KeptPosition, Split
from glprune.evaluation.policy_report import (
    NO_PROXIES,
    NO_SEGMENTS,
    make_policy,
    make_reason_codes,
    not_measured,
    policy_warnings,
    reason,
)
from glprune.export.signature import _output, shipped_inputs
from glprune.model.task import improvement
from glprune.pruning.groups import GroupSet, State, group_norms, group_sizes, sliced
from glprune.pruning.verification import TOLERANCE
from glprune.schema import bundle as bundles
from glprune.schema.recipe import HIGHER_IS_BETTER, PenaltySpec, Recipe
from glprune.schema.report import (
    Agreement,
    Baselines,
    DataFacts,
    Digests,
    DropCosts,
    Export,
    Feature,
    HiddenLayer,
    Latency,
    LrHalvings,
    Metric,
    PathPoint,
    PenaltyFacts,
    Proxies,
    Quantized,
    Refit,
    Removal,
    Report,
    Run,
    SearchStage,
    Segments,
    Selection,
    Size,
    SplitFacts,
    Stability,
    Timing,
)
from glprune.search.path_point import path_record
from glprune.search.refit import distill_share

if TYPE_CHECKING:
    from glprune.search.job import Job
    from glprune.search.search import SearchResult
    from glprune.search.stage import StageResult

# above this share of the penalty an optimality condition is reported as not met
_KKT_TOLERANCE = 0.05
_NAMED = 12
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
    "How stable the selection is over networks trained anew: all resamples began with the one given."
)
NOT_MEASURED = (
    "Whether the systems upstream still collect or pass on the removed features.",
    NO_PROXIES,
    NO_SEGMENTS,
    _STABILITY,
    "Latency on other hardware, batch sizes or thread counts than those listed.",
)
_WITHOUT_LABELS = ("Whether the original network or the shipped one is right: there were no labels.",)


@dataclass(frozen=True)
class TestMeasurements:
    """What was taken from the ONNX files through ONNX Runtime.

    Attributes:
        metrics: Every metric on the test split.
        latency: One record for each batch size.
        size: Counts before and after.
        agreement: Outputs the task is not about, against the original network's.
        difference: ONNX Runtime against PyTorch for the shipped file.
        rows: Rows of the test split.
        exporter: The exporter that wrote the shipped file.
        names: How that file gives the names of its columns.
        segments: Metrics and decisions by protected attribute, if there is a policy.
    """

    metrics: list[Metric]
    latency: list[Latency]
    size: Size
    agreement: list[Agreement]
    difference: float
    rows: int
    exporter: str
    names: Literal["all", "digest"]
    segments: Segments | None


@dataclass(frozen=True)
class RunResults:
    """Everything a run found out.

    Attributes:
        job: Recipe, data, network, groups.
        chosen: The shipped network and how it was chosen.
        measured: Measurements on the ONNX files.
        baselines: What simpler selections gave, if measured.
        stability: How alike the choices over parts of the training rows are, if measured.
        drop_costs: What dropping each kept feature costs, if measured.
        proxies: Whether protected attributes were predicted, if there is a policy.
        quantized: What was measured of the file in 8-bit integers, if there is one.
        folder: The bundle's files so far.
        seconds: Wall seconds of each stage.
    """

    job: Job
    chosen: SearchResult
    measured: TestMeasurements
    baselines: Baselines | None
    stability: Stability | None
    drop_costs: DropCosts | None
    proxies: Proxies | None
    quantized: Quantized | None
    folder: Path
    seconds: dict[str, float]


def make_report(outcome: RunResults) -> Report:
    """Make the report of a run; every figure is taken from the records, none is computed anew."""
    job, chosen, recipe = outcome.job, outcome.chosen, outcome.job.recipe
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
        penalty=_penalty(recipe.penalty),
        path=_path(outcome),
        stages=[_stage(number, run) for number, run in enumerate(chosen.stages, 1)],
        selection=Selection(
            rule=_rule(job),
            lam=_last_of_inputs(chosen).selected.lam,
            metric=job.metric,
            reference=chosen.reference,
        ),
        removal=Removal(
            tolerance=TOLERANCE,
            rows=outcome.chosen.removed.rows,
            difference=outcome.chosen.removed.difference,
            cuts=list(outcome.chosen.removed.cuts),
            refused=list(outcome.chosen.removed.refused),
        ),
        refit=_refit(outcome),
        lr_halvings=_halvings(chosen),
        performance=outcome.measured.metrics,
        agreement=outcome.measured.agreement,
        baselines=outcome.baselines,
        size=outcome.measured.size,
        latency=outcome.measured.latency,
        widths=chosen.stages[-1].widths,
        export=_export(outcome),
        quantized=outcome.quantized,
        policy=make_policy(job),
        segments=outcome.measured.segments,
        reason_codes=make_reason_codes(job, chosen.outcomes),
        proxies=outcome.proxies,
        warnings=_warnings(outcome),
        stability=outcome.stability,
        drop_costs=outcome.drop_costs,
        not_measured=_not_measured(outcome),
    )


def _not_measured(outcome: RunResults) -> list[str]:
    labels = _WITHOUT_LABELS if outcome.job.task.kind == "distillation" else ()
    left = _STABILITY if outcome.stability is None else _RETRAINING
    sentences = [*labels, *(left if sentence == _STABILITY else sentence for sentence in NOT_MEASURED)]
    return not_measured(outcome.job, outcome.proxies, sentences)


def _penalty(spec: PenaltySpec) -> PenaltyFacts:
    return PenaltyFacts(
        kind=spec.kind,
        plugin=spec.plugin,
        weights=spec.weights,
        l1_ratio=spec.l1_share if spec.kind == "sparse_group_lasso" else None,
        gamma=spec.knot if spec.kind == "group_mcp" else None,
    )


def _path(outcome: RunResults) -> list[PathPoint]:
    job = outcome.job
    return [
        path_record(point, number, run.job, job, point is run.selected)
        for number, run in enumerate(outcome.chosen.stages, 1)
        for point in run.points
    ]


def _stage(number: int, run: StageResult) -> SearchStage:
    return SearchStage(
        number=number,
        penalised=list(run.spec.kinds),
        rule=run.spec.rule,
        input_strength=run.spec.input_strength,
        lam=run.selected.lam,
        features=run.selected.features,
        hidden=run.selected.hidden,
        metric=run.metric,
    )


def _last_of_inputs(chosen: SearchResult) -> StageResult:
    """The last stage whose path had inputs under the penalty, else the last of all."""
    return next((run for run in reversed(chosen.stages) if "input" in run.spec.kinds), chosen.stages[-1])


def _digests(outcome: RunResults) -> Digests:
    recipe = outcome.job.recipe
    files = [*bundles.MADE_BEFORE_THE_REPORT, *([bundles.INT8] if outcome.quantized else [])]
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
        splits={name: _split(split, job) for name, split in splits.items()},
        classes=list(data.classes) if data.classes else None,
        standardize=job.recipe.data.standardize,
        notes=list(data.notes),
    )


def _split(split: Split, job: Job) -> SplitFacts:
    if job.task.kind == "distillation":
        return SplitFacts(rows=split.rows, target={})
    classes = job.data.classes
    target = split.target if isinstance(split, IndexableSplit) else _targets(split)
    if classes is None:
        facts = {"mean": float(target.double().mean()), "std": float(target.double().std(unbiased=False))}
    else:
        counts = torch.bincount(target, minlength=len(classes)).double() / len(target)
        facts = dict(zip(classes, counts.tolist(), strict=True))
    return SplitFacts(rows=split.rows, target=facts)


def _targets(split: Split) -> Tensor:
    return torch.cat([y for _, y in split.batches(8192, None)])


def _norms(state: State, sets: Sequence[GroupSet]) -> dict[str, float]:
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
    places = _shipped_places(outcome)
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
            input_columns=place,
            kept_in=counts.get(feature.name),
            kept_share=counts[feature.name] / total if feature.name in counts else None,
            reason=reason(job, fate),
        )
        for feature, fate, place in zip(job.data.features, chosen.outcomes, places, strict=True)
    ]


def _kept_in(outcome: RunResults) -> tuple[dict[str, int], int]:
    """In how many resamples each feature that can be removed was kept, and their number."""
    record = outcome.stability
    if record is None:
        return {}, 0
    digits = zip(*(resample.kept for resample in record.resamples), strict=True)
    features = zip(outcome.job.data.features, record.removable, digits, strict=True)
    counts = {feature.name: own.count("1") for feature, free, own in features if free == "1"}
    return counts, len(record.resamples)


def _shipped_places(outcome: RunResults) -> list[list[int] | None]:
    """Where the columns of each kept feature are in the inputs of the shipped file."""
    job, chosen = outcome.job, outcome.chosen
    if job.recipe.export.signature == "original":
        return [
            list(job.data.positions(feature)) if fate.is_kept else None
            for feature, fate in zip(job.data.features, chosen.outcomes, strict=True)
        ]
    places: dict[str, dict[InputPosition, KeptPosition]] = {
        part.name: {position: KeptPosition(n) for n, position in enumerate(kept)}
        for part, kept in zip(job.data.inputs, chosen.removed.selection.positions(), strict=True)
    }
    return [
        [places[fate.input][position] for position in fate.columns] if fate.is_kept else None
        for fate in chosen.outcomes
    ]


def _hidden(outcome: RunResults) -> list[HiddenLayer]:
    cut: dict[str, int] = {}
    for c in (c for c in outcome.chosen.removed.cuts if c.kind == "hidden"):
        cut[c.name] = cut.get(c.name, 0) + c.units
    refused = {r.name: r.reason for r in outcome.chosen.removed.refused}
    return [
        HiddenLayer(
            name=g.name,
            before=g.units.count,
            after=g.units.count - cut.get(g.name, 0),
            refused=refused.get(g.name),
        )
        for g in outcome.job.groups
        if g.kind == "hidden"
    ]


def _rule(job: Job) -> str:
    target = job.recipe.target
    if target.max_features is not None:
        return f"at most {target.max_features} input features: {_DENSEST}"
    if target.max_drop is not None:
        drop = target.max_drop
        verb = "lower" if HIGHER_IS_BETTER[drop.metric] else "higher"
        if job.task.kind == "distillation":
            perfect = 1 if HIGHER_IS_BETTER[drop.metric] else 0
            return f"{drop.metric} of agreement after the refit at most {drop.amount:g} {verb} than {perfect}"
        return f"{drop.metric} after the refit at most {drop.amount:g} {verb} than the original network's"
    if target.lam is not None:
        return f"lambda {target.lam:g} as the recipe states"
    if target.latency is not None:
        share = (
            f"{target.latency} of the original's"
            if isinstance(target.latency, str)
            else f"{target.latency:g} ms"
        )
        return f"latency at batch {target.batch} at most {share}"
    for name, budget in (("parameters", target.parameters), ("multiply-accumulates", target.macs)):
        if budget is not None:
            return (
                f"at most {budget if isinstance(budget, str) else format(budget, ',.0f')} {name}: {_DENSEST}"
            )
    return f"at most {target.max_hidden} hidden units: {_DENSEST}"


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
    path = sum(point.halvings for run in chosen.stages for point in run.points)
    refit = sum(run.refit.halvings for run in chosen.stages)
    return LrHalvings(path=path, refit=refit) if path + refit else None


def _export(outcome: RunResults) -> Export:
    job, spec = outcome.job, outcome.job.recipe.export
    return Export(
        file=bundles.ONNX,
        signature=spec.signature,
        exporter=outcome.measured.exporter,
        names=outcome.measured.names,
        opset=spec.opset,
        inputs=shipped_inputs(job, outcome.chosen.removed),
        outputs=[_output(job, number) for number in range(len(job.outputs.names))],
        checker="passed",
        rows=outcome.measured.rows,
        difference=outcome.measured.difference,
    )


def _warnings(outcome: RunResults) -> list[str]:
    removed = outcome.chosen.removed
    kkt_zero = max(run.selected.kkt_zero for run in outcome.chosen.stages)
    job = outcome.job
    warnings = [*job.data.notes, *job.fixed_inputs]
    told = {g.name for g in job.input_groups if g.units.refused and job.fixed_inputs}
    warnings += [
        f"{r.name}: {r.units} units were not removed: {r.reason}."
        for r in removed.refused
        if r.name not in told
    ]
    warnings += [
        f"{c.name}: {c.units} units that {c.inexact} mixes were cut, changing outputs by {c.difference:.1e}."
        for c in removed.cuts
        if c.inexact
    ]
    warnings += _idle_inputs(outcome)
    warnings += _unstable_features(outcome)
    warnings += _halving_warnings(_halvings(outcome.chosen))
    warnings += policy_warnings(job, outcome.chosen.outcomes)
    if kkt_zero > _KKT_TOLERANCE:
        warnings.append(
            f"The optimality conditions of the removed groups are off by {kkt_zero:.2g} of the penalty "
            "at a selected lambda; more train.epochs or train.full_batch_steps would tighten them."
        )
    warnings += [
        f"Output {a.name!r} was not trained for and changed by up to {a.max_change:.2g}; see its agreement."
        for a in outcome.measured.agreement
        if not a.trained_for and a.max_change > TOLERANCE
    ]
    for metric in outcome.measured.metrics if job.task.kind != "distillation" else ():
        if metric.name == outcome.job.metric and improvement(metric.name, metric.original, metric.final) < 0:
            warnings.append(
                f"{metric.name} on the test split is worse than the original network's: "
                f"{metric.final:.4f} against {metric.original:.4f}."
            )
    return warnings


def _halving_warnings(count: LrHalvings | None) -> list[str]:
    if count is None:
        return []
    return [
        f"Numbers were not finite, and the step size was halved {count.path} times on the path and "
        f"{count.refit} times in refits; a lower train.lr or refit.lr would be steadier."
    ]


def _unstable_features(outcome: RunResults) -> list[str]:
    """Features that most resamples decided otherwise than the run."""
    counts, total = _kept_in(outcome)
    rows = [
        (f"{fate.feature} ({counts[fate.feature]})", fate.is_kept, 2 * counts[fate.feature])
        for fate in outcome.chosen.outcomes
        if fate.feature in counts
    ]
    found = {
        f"Kept, but in fewer than half of {total} resamples": [n for n, s, c in rows if s and c < total],
        f"Removed, but kept in more than half of {total} resamples": [
            n for n, s, c in rows if not s and c > total
        ],
    }
    said = [f"{what}: {_listed(names)}." for what, names in found.items() if names]
    failures = outcome.stability.failures if outcome.stability is not None else []
    return [*said, *(f"A resample was left out: {failure}" for failure in dict.fromkeys(failures))]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _idle_inputs(outcome: RunResults) -> list[str]:
    """Inputs all of whose groups became zero: one column is kept, since an input cannot be empty."""
    run = _last_of_inputs(outcome.chosen)
    norms = iter(run.selected.norms)
    warnings = []
    for groups in run.job.input_groups:
        own = [next(norms) for _ in groups.labels]
        if not groups.units.refused and not any(own):
            warnings.append(
                f"All features of input {groups.name!r} became zero; its first column stays, since an input "
                "needs one."
            )
    return warnings
