"""Turn what a run measured into the report's records."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from glprune import bundle as bundles
from glprune._version import __version__
from glprune.data import Data, Split
from glprune.groups import GroupSet, group_norms, group_sizes, left_of
from glprune.job import Job
from glprune.path import Point, exits
from glprune.proof import TOLERANCE
from glprune.removal import Removed
from glprune.report import (
    Agreement,
    DataFacts,
    Digests,
    DropCosts,
    DType,
    Export,
    Feature,
    HiddenLayer,
    Input,
    Latency,
    Metric,
    Output,
    PathPoint,
    PathStage,
    Refit,
    Removal,
    Report,
    Run,
    Selection,
    Size,
    SplitFacts,
    Stability,
    Timing,
)
from glprune.resampling import kept_counts
from glprune.task import HIGHER_IS_BETTER, gain
from glprune.train import RefitResult

# above this share of the penalty an optimality condition is reported as not met
_KKT_TOLERANCE = 0.05

_NAMED = 12

_DENSEST = "of the points that keep no more, the one that keeps most"

_PACKAGES = ("torch", "torch-pruning", "onnx", "onnxruntime", "onnxscript", "numpy", "pyarrow", "safetensors")

_STABILITY = "How stable the selection is over resamples, seeds and splits."
_RETRAINING = (
    "How stable the selection is over networks trained anew: all resamples began with the one given."
)

NOT_MEASURED = (
    "Whether the systems upstream still collect or pass on the removed fields.",
    "Whether kept fields carry the information of removed ones (proxies).",
    "Performance by segment, calibration, and confidence intervals of the metrics.",
    _STABILITY,
    "Latency on other hardware, batch sizes or thread counts than those listed.",
)

_WITHOUT_LABELS = ("Whether the original network or the shipped one is right: there were no labels.",)


@dataclass(frozen=True)
class Measured:
    """What was taken from the ONNX files through ONNX Runtime.

    Attributes:
        metrics: Every metric on the test split.
        latency: One record for each batch size.
        size: Counts before and after.
        agreement: Outputs the task is not about, against the original network's.
        difference: ONNX Runtime against PyTorch for the shipped file.
        rows: Rows of the test split.
        exporter: The exporter that wrote the shipped file.
    """

    metrics: list[Metric]
    latency: list[Latency]
    size: Size
    agreement: list[Agreement]
    difference: float
    rows: int
    exporter: str


@dataclass(frozen=True)
class Chosen:
    """The network a run ships and the points that chose it.

    Attributes:
        points: The path that chose the fields, by growing lambda.
        selected: Its chosen point.
        hidden_points: The second path, over hidden units; empty where there was none.
        hidden_selected: Its chosen point, or None.
        reference: The selection metric of the original network on the validation split.
        removed: Everything cut, and the evidence.
        fitted: The last refit.
        refit_metric: The selection metric on the validation split after it.
    """

    points: list[Point]
    selected: Point
    hidden_points: list[Point]
    hidden_selected: Point | None
    reference: float
    removed: Removed
    fitted: RefitResult
    refit_metric: float


@dataclass(frozen=True)
class Outcome:
    """Everything a run found out.

    Attributes:
        job: Recipe, data, network, groups.
        chosen: The shipped network and how it was chosen.
        measured: Measurements on the ONNX files.
        stability: How alike the choices over parts of the training rows are, if measured.
        drop_costs: What dropping each kept field costs, if measured.
        folder: The bundle's files so far.
        seconds: Wall seconds of each stage.
    """

    job: Job
    chosen: Chosen
    measured: Measured
    stability: Stability | None
    drop_costs: DropCosts | None
    folder: Path
    seconds: dict[str, float]


def make_report(outcome: Outcome) -> Report:
    """Make the report of a run; every figure is taken from the records, none is computed anew."""
    job, chosen, recipe = outcome.job, outcome.chosen, outcome.job.recipe
    return Report(
        schema="glprune.report/1",
        title=recipe.report.title or (recipe.source.stem if recipe.source else "glprune run"),
        purpose=recipe.report.purpose,
        task=job.task.kind,
        digests=_digests(outcome),
        run=_run(recipe.seed),
        timing=Timing(generated_at=datetime.now(UTC).isoformat(timespec="seconds"), seconds=outcome.seconds),
        data=_data(job),
        features=_features(outcome),
        hidden=_hidden(outcome),
        path=_path(chosen),
        selection=Selection(
            rule=_rule(job), lam=chosen.selected.lam, metric=job.metric, reference=chosen.reference
        ),
        hidden_selection=_hidden_selection(outcome),
        removal=Removal(
            tolerance=TOLERANCE,
            rows=outcome.chosen.removed.rows,
            difference=outcome.chosen.removed.difference,
            cuts=list(outcome.chosen.removed.cuts),
            refused=list(outcome.chosen.removed.refused),
        ),
        refit=_refit(outcome),
        performance=outcome.measured.metrics,
        agreement=outcome.measured.agreement,
        size=outcome.measured.size,
        latency=outcome.measured.latency,
        export=_export(outcome),
        warnings=_warnings(outcome),
        stability=outcome.stability,
        drop_costs=outcome.drop_costs,
        not_measured=_not_measured(outcome),
    )


def _not_measured(outcome: Outcome) -> list[str]:
    labels = _WITHOUT_LABELS if outcome.job.task.kind == "distillation" else ()
    left = _STABILITY if outcome.stability is None else _RETRAINING
    return [*labels, *(left if sentence == _STABILITY else sentence for sentence in NOT_MEASURED)]


def _path(chosen: Chosen) -> list[PathPoint]:
    first = [path_record(p, "inputs", p is chosen.selected) for p in chosen.points]
    return first + [path_record(p, "hidden", p is chosen.hidden_selected) for p in chosen.hidden_points]


def _hidden_selection(outcome: Outcome) -> Selection | None:
    point, limit = outcome.chosen.hidden_selected, outcome.job.recipe.target.max_hidden
    if point is None:
        return None
    rule = f"at most {limit} hidden units: {_DENSEST}"
    return Selection(rule=rule, lam=point.lam, metric=outcome.job.metric, reference=outcome.chosen.reference)


def path_record(point: Point, stage: PathStage, selected: bool = False) -> PathPoint:
    """A point of the path as the report states it."""
    return PathPoint(
        stage=stage,
        lam=point.lam,
        objective=point.loss + point.penalty,
        loss=point.loss,
        penalty=point.penalty,
        kkt_zero=point.kkt_zero,
        kkt_active=point.kkt_active,
        fields=point.fields,
        columns=point.columns,
        hidden=point.hidden,
        metric=point.metric,
        refit_metric=point.refit_metric,
        norms=list(point.norms),
        selected=selected,
    )


def _digests(outcome: Outcome) -> Digests:
    recipe = outcome.job.recipe
    files = [bundles.ONNX, bundles.WEIGHTS, bundles.PLAN, bundles.RECIPE]
    digests = {name: bundles.digest(outcome.folder / name) for name in files}
    return Digests(
        recipe=recipe.sha256 or digests[bundles.RECIPE],
        recipe_resolved=digests[bundles.RECIPE],
        model=outcome.job.loaded.sha256,
        data=dict(outcome.job.data.digests),
        outputs=digests,
    )


def _run(seed: int) -> Run:
    versions = {"glprune": __version__, "python": platform.python_version()}
    versions |= {package: metadata.version(package) for package in _PACKAGES}
    return Run(
        seed=seed,
        threads=torch.get_num_threads(),
        platform=f"{platform.system()} {platform.machine()}",
        versions=versions,
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
    target = torch.cat([y for _, y in split.batches(8192, None)])
    if classes is None:
        facts = {"mean": float(target.double().mean()), "std": float(target.double().std(unbiased=False))}
    else:
        counts = torch.bincount(target, minlength=len(classes)).double() / len(target)
        facts = dict(zip(classes, counts.tolist(), strict=True))
    return SplitFacts(rows=split.rows, target=facts)


@dataclass(frozen=True)
class _Weights:
    """The weights leaving one field: their penalty weight, number and norms."""

    groups: GroupSet
    penalty: float
    size: int
    original: float
    final: float


def _weights(outcome: Outcome) -> list[_Weights]:
    """One record for each field, in their order."""
    before = dict(outcome.job.network.state_dict())
    after = dict(outcome.chosen.fitted.network.state_dict())
    records = []
    for groups in outcome.job.input_groups:
        original, sizes = group_norms(before, groups), group_sizes(before, groups)
        final = group_norms(after, left_of(groups, outcome.chosen.removed.surgery.kept))
        weights = outcome.job.weights(groups)
        figures = zip(*(t.tolist() for t in (weights, sizes, original, final)), strict=True)
        records += [_Weights(groups, *figure) for figure in figures]
    return records


def _features(outcome: Outcome) -> list[Feature]:
    job, points = outcome.job, outcome.chosen.points
    penalised = job.recipe.penalty.inputs is not None
    place = _shipped_places(outcome)
    kept = kept_fields(job.data, outcome.chosen.removed)
    selected = outcome.chosen.selected.norms
    records = []
    counts, total = _kept_in(outcome)
    fields = zip(job.data.fields, kept, _weights(outcome), exits(points), selected, counts, strict=True)
    for field, stays, weights, left, norm, count in fields:
        records.append(
            Feature(
                name=field.name,
                columns=[job.data.features[c] for c in field.columns],
                status="kept" if stays else "removed",
                group_size=weights.size,
                penalty_weight=weights.penalty if penalised else 0.0,
                norm_original=weights.original,
                norm_selected=norm,
                norm_final=weights.final if stays else None,
                lambda_exit=None if weights.groups.units.refused else left,
                input=weights.groups.name,
                input_columns=[place[c] for c in field.columns if c in place] if stays else None,
                kept_in=count,
                kept_share=None if count is None else count / total,
            )
        )
    return records


def kept_fields(data: Data, removed: Removed) -> list[bool]:
    """Whether each field has a column that stayed, in their order."""
    columns = {span[c] for span, own in zip(data.spans, removed.columns, strict=True) for c in own.tolist()}
    return [not columns.isdisjoint(field.columns) for field in data.fields]


def _kept_in(outcome: Outcome) -> tuple[list[int | None], int]:
    """In how many resamples each field was kept, None where that was not measured, and their number."""
    record = outcome.stability
    if record is None:
        return [None] * len(outcome.job.data.fields), 0
    return kept_counts(record), len(record.resamples)


def _shipped_places(outcome: Outcome) -> dict[int, int]:
    """Where each column of the shipped file stands in its input."""
    job, removed = outcome.job, outcome.chosen.removed
    if job.recipe.export.signature == "original":
        return {c: n for span in job.data.spans for n, c in enumerate(span)}
    return {
        span[c]: n
        for span, own in zip(job.data.spans, removed.columns, strict=True)
        for n, c in enumerate(own.tolist())
    }


def shipped_inputs(job: Job, removed: Removed) -> list[Input]:
    """The inputs of the shipped file."""
    whole = job.recipe.export.signature == "original"
    return [
        Input(
            name=part.name,
            dtype=dtype_name(x),
            axis=part.axis,
            columns=[
                name
                for n, name in enumerate(part.columns)
                if whole or part.axis is None or n in set(kept.tolist())
            ],
        )
        for part, kept, x in zip(job.data.inputs, removed.columns, job.probe, strict=True)
    ]


def dtype_name(x: Tensor) -> DType:
    """The type of an input's values, as NumPy names it."""
    names: dict[torch.dtype, DType] = {torch.float32: "float32", torch.int64: "int64", torch.bool: "bool"}
    return names[x.dtype]


def _hidden(outcome: Outcome) -> list[HiddenLayer]:
    cut: dict[str, int] = {}
    for c in outcome.chosen.removed.cuts:
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
        return f"at most {target.max_features} input fields: {_DENSEST}"
    if target.max_drop is not None:
        drop = target.max_drop
        verb = "lower" if HIGHER_IS_BETTER[drop.metric] else "higher"
        if job.task.kind == "distillation":
            perfect = 1 if HIGHER_IS_BETTER[drop.metric] else 0
            return f"{drop.metric} of agreement after the refit at most {drop.amount:g} {verb} than {perfect}"
        return f"{drop.metric} after the refit at most {drop.amount:g} {verb} than the original network's"
    if target.lam is None:
        return f"at most {target.max_hidden} hidden units: {_DENSEST}"
    return f"lambda {target.lam:g} as the recipe states"


def _refit(outcome: Outcome) -> Refit | None:
    spec = outcome.job.recipe.refit
    if spec.epochs == 0:
        return None
    return Refit(
        epochs=outcome.chosen.fitted.epochs,
        best_epoch=outcome.chosen.fitted.best_epoch,
        distill=spec.distill,
        metric=outcome.chosen.refit_metric,
    )


def _export(outcome: Outcome) -> Export:
    job, spec = outcome.job, outcome.job.recipe.export
    return Export(
        file=bundles.ONNX,
        signature=spec.signature,
        exporter=outcome.measured.exporter,
        opset=spec.opset,
        inputs=shipped_inputs(job, outcome.chosen.removed),
        outputs=[_output(job, number) for number in range(len(job.outputs.names))],
        checker="passed",
        rows=outcome.measured.rows,
        difference=outcome.measured.difference,
    )


def _output(job: Job, number: int) -> Output:
    """An output and its meaning; of those the task is not about nothing is known but where they come from."""
    about = job.outputs.predicted in (None, number)
    meaning = output_meaning(job) if about else f"output {number} of the network"
    return Output(name=job.outputs.names[number], meaning=meaning)


def output_meaning(job: Job) -> str:
    """What the predicted output says, in words."""
    if job.task.kind == "distillation":
        return "what the original network returns, approximately"
    if job.task.kind == "regression":
        return "predicted value"
    kind = "logits" if job.task.output == "logits" else "probabilities"
    classes = job.data.classes or ()
    if job.task.kind == "binary" and job.task.width == 1:
        return f"{kind[:-1] if kind == 'logits' else 'probability'} of class {classes[1]!r}"
    return f"{kind} of the classes in order: {', '.join(classes)}"


def _warnings(outcome: Outcome) -> list[str]:
    point, removed = outcome.chosen.selected, outcome.chosen.removed
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
    warnings += _doubtful_fields(outcome)
    if point.kkt_zero > _KKT_TOLERANCE:
        warnings.append(
            f"The optimality conditions of the removed groups are off by {point.kkt_zero:.2g} of the penalty "
            "at the selected lambda; more train.epochs or train.polish would tighten them."
        )
    warnings += [
        f"Output {a.name!r} was not trained for and changed by up to {a.max_change:.2g}; see its agreement."
        for a in outcome.measured.agreement
        if not a.trained_for and a.max_change > TOLERANCE
    ]
    for metric in outcome.measured.metrics if job.task.kind != "distillation" else ():
        if metric.name == outcome.job.metric and gain(metric.name, metric.original, metric.final) < 0:
            warnings.append(
                f"{metric.name} on the test split is worse than the original network's: "
                f"{metric.final:.4f} against {metric.original:.4f}."
            )
    return warnings


def _doubtful_fields(outcome: Outcome) -> list[str]:
    """Fields that most resamples decided otherwise than the run."""
    kept = kept_fields(outcome.job.data, outcome.chosen.removed)
    counts, total = _kept_in(outcome)
    rows = [
        (f"{field.name} ({count})", stays, count)
        for field, stays, count in zip(outcome.job.data.fields, kept, counts, strict=True)
        if count is not None
    ]
    found = {
        f"Kept, but in fewer than half of {total} resamples": [n for n, s, c in rows if s and 2 * c < total],
        f"Removed, but kept in more than half of {total} resamples": [
            n for n, s, c in rows if not s and 2 * c > total
        ],
    }
    return [f"{what}: {_listed(names)}." for what, names in found.items() if names]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _idle_inputs(outcome: Outcome) -> list[str]:
    """Inputs all of whose groups became zero: one column is kept, since an input cannot be empty."""
    norms = iter(outcome.chosen.selected.norms)
    warnings = []
    for groups in outcome.job.input_groups:
        own = [next(norms) for _ in groups.labels]
        if not groups.units.refused and not any(own):
            warnings.append(
                f"All fields of input {groups.name!r} became zero; its first column stays, since an input "
                "needs one."
            )
    return warnings
