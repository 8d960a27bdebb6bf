"""Turn what a run measured into the report's records."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from glprune import bundle as bundles
from glprune._version import __version__
from glprune.data import Split
from glprune.export import OUTPUT
from glprune.groups import GroupSet, group_norms, group_sizes
from glprune.job import Job
from glprune.path import Point, exits
from glprune.removal import TOLERANCE, Removed
from glprune.report import (
    DataFacts,
    Digests,
    Export,
    Feature,
    HiddenLayer,
    Latency,
    Metric,
    PathPoint,
    PathStage,
    Refit,
    Removal,
    Report,
    Run,
    Selection,
    Size,
    SplitFacts,
    Timing,
)
from glprune.task import HIGHER_IS_BETTER, gain
from glprune.train import RefitResult

# above this share of the penalty an optimality condition is reported as not met
_KKT_TOLERANCE = 0.05

_DENSEST = "of the points that keep no more, the one that keeps most"

_PACKAGES = ("torch", "torch-pruning", "onnx", "onnxruntime", "onnxscript", "numpy", "pyarrow", "safetensors")

NOT_MEASURED = (
    "Whether the systems upstream still collect or pass on the removed fields.",
    "Whether kept fields carry the information of removed ones (proxies).",
    "Performance by segment, calibration, and confidence intervals of the metrics.",
    "How stable the selection is over resamples, seeds and splits.",
    "Latency on other hardware, batch sizes or thread counts than those listed.",
)


@dataclass(frozen=True)
class Measured:
    """What was taken from the ONNX files through ONNX Runtime.

    Attributes:
        metrics: Every metric on the test split.
        latency: One record for each batch size.
        size: Counts before and after.
        difference: ONNX Runtime against PyTorch for the shipped file.
        rows: Rows of the test split.
        exporter: The exporter that wrote the shipped file.
    """

    metrics: list[Metric]
    latency: list[Latency]
    size: Size
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
        folder: The bundle's files so far.
        seconds: Wall seconds of each stage.
    """

    job: Job
    chosen: Chosen
    measured: Measured
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
        size=outcome.measured.size,
        latency=outcome.measured.latency,
        export=_export(outcome),
        warnings=_warnings(outcome),
        not_measured=list(NOT_MEASURED),
    )


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
        splits={name: _split(split, data.classes) for name, split in splits.items()},
        classes=list(data.classes) if data.classes else None,
        standardize=job.recipe.data.standardize,
        notes=list(data.notes),
    )


def _split(split: Split, classes: Sequence[str] | None) -> SplitFacts:
    target = torch.cat([y for _, y in split.batches(8192, None)])
    if classes is None:
        facts = {"mean": float(target.double().mean()), "std": float(target.double().std(unbiased=False))}
    else:
        counts = torch.bincount(target, minlength=len(classes)).double() / len(target)
        facts = dict(zip(classes, counts.tolist(), strict=True))
    return SplitFacts(rows=split.rows, target=facts)


def _features(outcome: Outcome) -> list[Feature]:
    job, groups = outcome.job, outcome.job.inputs
    before = dict(job.network.state_dict())
    original, sizes = group_norms(before, groups), group_sizes(before, groups)
    final = group_norms(
        dict(outcome.chosen.fitted.network.state_dict()), left_of(groups, outcome.chosen.removed)
    )
    strength = job.recipe.penalty.inputs
    place = {column: position for position, column in enumerate(shipped_columns(outcome))}
    kept = set(outcome.chosen.removed.columns[0].tolist())
    records = []
    for number, (field, left) in enumerate(zip(job.data.fields, exits(outcome.chosen.points), strict=True)):
        stays = not kept.isdisjoint(field.columns)
        size = int(sizes[number])
        records.append(
            Feature(
                name=field.name,
                columns=[job.data.features[c] for c in field.columns],
                status="kept" if stays else "removed",
                group_size=size,
                penalty_weight=strength.strength * size**0.5 if strength else 0.0,
                norm_original=float(original[number]),
                norm_selected=outcome.chosen.selected.norms[number],
                norm_final=float(final[number]) if stays else None,
                lambda_exit=left,
                input_columns=[place[c] for c in field.columns] if stays else None,
            )
        )
    return records


def left_of(groups: GroupSet, removed: Removed) -> GroupSet:
    """The same groups where they lie in the slim network."""
    slots = []
    for slot in groups.units.slots:
        positions = removed.kept.get((slot.tensor, slot.dim))
        slots.append(slot if positions is None else replace(slot, unit=slot.unit[positions]))
    return replace(groups, units=replace(groups.units, slots=tuple(slots)))


def shipped_columns(outcome: Outcome) -> list[int]:
    """Columns of the shipped file's input, in order, in the numbering of the data."""
    if outcome.job.recipe.export.signature == "original":
        return list(range(len(outcome.job.data.features)))
    return outcome.chosen.removed.columns[0].tolist()


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
        return f"{drop.metric} after the refit at most {drop.amount:g} {verb} than the original network's"
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
        input_name=job.input_names[0],
        output_name=OUTPUT,
        input_columns=[job.data.features[c] for c in shipped_columns(outcome)],
        output_meaning=output_meaning(job),
        checker="passed",
        rows=outcome.measured.rows,
        difference=outcome.measured.difference,
    )


def output_meaning(job: Job) -> str:
    """What the exported output says, in words."""
    if job.task.kind == "regression":
        return "predicted value"
    kind = "logits" if job.task.output == "logits" else "probabilities"
    classes = job.data.classes or ()
    if job.task.kind == "binary" and job.task.width == 1:
        return f"{kind[:-1] if kind == 'logits' else 'probability'} of class {classes[1]!r}"
    return f"{kind} of the classes in order: {', '.join(classes)}"


def _warnings(outcome: Outcome) -> list[str]:
    point, removed = outcome.chosen.selected, outcome.chosen.removed
    warnings = list(outcome.job.data.notes)
    warnings += [f"{r.name}: {r.units} units were not removed: {r.reason}." for r in removed.refused]
    if point.kkt_zero > _KKT_TOLERANCE:
        warnings.append(
            f"The optimality conditions of the removed groups are off by {point.kkt_zero:.2g} of the penalty "
            "at the selected lambda; more train.epochs or train.polish would tighten them."
        )
    for metric in outcome.measured.metrics:
        if metric.name == outcome.job.metric and gain(metric.name, metric.original, metric.final) < 0:
            warnings.append(
                f"{metric.name} on the test split is worse than the original network's: "
                f"{metric.final:.4f} against {metric.original:.4f}."
            )
    return warnings
