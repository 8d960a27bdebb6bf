"""C5: compute again every figure of the report that follows from others."""

from __future__ import annotations

import itertools
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from glprune._version import __version__
from glprune.audit.checks.figures.comparison import check_comparison
from glprune.audit.checks.figures.frontier import check_frontier
from glprune.audit.checks.figures.int8 import check_quantized, check_speedup
from glprune.audit.checks.figures.intervals import check_intervals
from glprune.audit.checks.figures.policy_records import (
    check_policy_records,
    check_recipe_policy,
    removed_by_policy,
)
from glprune.audit.checks.figures.selection import check_selection
from glprune.audit.checks.figures.settings import check_settings
from glprune.audit.checks.figures.stability import check_stability
from glprune.audit.findings import Finding, Found, check_close, check_equal
from glprune.report import caveats
from glprune.report.caveats import chosen_point, last_input_stage
from glprune.schema import bundle as bundles
from glprune.schema.metrics import ADDED, RANGES
from glprune.schema.recipe import FASTER, HIGHER_IS_BETTER, METRICS, Recipe

if TYPE_CHECKING:
    from glprune.schema.report import (
        Baseline,
        Feature,
        Report,
        Spread,
    )

_CUT_TOLERANCE = 1e-5
_EXPORT_TOLERANCE = 1e-4
_DIGEST = re.compile(r"^sha256:[0-9a-f]{64}$")


def check_consistency(report: Report, recipe: Recipe | None, files: Mapping[str, bytes]) -> list[Finding]:
    """Check everything that follows within the report, from the recipe and from the sizes of files.

    Args:
        report: The report.
        recipe: The recipe in the bundle; None if it cannot be read.
        files: The files of the bundle.
    """
    is_older = _is_older(report)
    found = itertools.chain(
        _features(report),
        _feature_groups(report, recipe),
        _exits(report),
        _path(report),
        check_selection(report, recipe, is_older=is_older),
        check_comparison(report, recipe, is_older=is_older),
        _hidden(report),
        _removal(report),
        _performance(report),
        _splits(report),
        _size(report, files),
        _latency(report),
        _widths(report, recipe),
        check_quantized(report, recipe, files, is_older=is_older),
        _original(report, recipe, files),
        _warnings(report, recipe) if not is_older else (),
        _baselines(report),
        _drop_costs(report),
        check_frontier(report, recipe, files),
        check_stability(report),
        check_policy_records(report),
        _digests(report),
        _recipe(report, recipe) if recipe is not None else (),
        check_intervals(report),
    )
    return [Finding(bundles.REPORT, where, what) for where, what in found]


def _duplicates(where: str, names: Sequence[str]) -> Iterator[Found]:
    for name, count in Counter(names).items():
        if count > 1:
            yield where, f"names {name!r} {count} times"


def _features(report: Report) -> Iterator[Found]:
    yield from _duplicates("/features", [f.name for f in report.features])
    columns: dict[str, list[str]] = {}
    for feature in report.features:
        columns.setdefault(feature.input, []).extend(feature.columns)
    for names in columns.values():
        yield from _duplicates("/features", names)
    inputs = {i.name: i for i in report.export.inputs}
    for n, feature in enumerate(report.features):
        where, kept = f"/features/{n}", feature.status == "kept"
        if (feature.norm_final is not None) != kept:
            yield (
                f"{where}/status",
                f"{feature.name!r} is {feature.status} and norm_final {feature.norm_final}",
            )
        if (feature.input_columns is not None) != kept:
            yield (
                f"{where}/status",
                f"{feature.name!r} is {feature.status} with columns {feature.input_columns}",
            )
        if feature.input not in inputs:
            yield f"{where}/input", f"no input {feature.input!r} is exported"
        if not feature.columns:
            yield f"{where}/columns", "the feature has no columns"


def _feature_groups(report: Report, recipe: Recipe | None) -> Iterator[Found]:
    """Require the groups of the recipe, of known features, and those of them that are kept."""
    kept = {f.name: f.status == "kept" for f in report.features}
    for n, group in enumerate(report.penalty.groups):
        where = f"/penalty/groups/{n}"
        unknown = next((name for name in group.features if name not in kept), None)
        if unknown is not None:
            yield f"{where}/features", f"no feature {unknown!r} in /features"
        left = [name for name in group.features if kept.get(name)]
        yield from check_equal(f"{where}/kept", group.kept, left, "/features says")
    if recipe is not None:
        names = [group.name for group in report.penalty.groups]
        yield from check_equal(
            "/penalty/groups", names, list(recipe.penalty.groups), f"{bundles.RECIPE} says"
        )


def _indexed(report: Report) -> Iterator[tuple[int, Feature]]:
    return enumerate(report.features)


def _exits(report: Report) -> Iterator[Found]:
    """Require that removed features were zero at a chosen point, and kept ones non-zero or not removable."""
    last = last_input_stage(report.stages)
    point = chosen_point(report, last.number) if last else None
    refused = {r.name for r in report.removal.refused}
    kept_of = Counter(f.input for f in report.features if f.status == "kept")
    for n, feature in _indexed(report):
        where = f"/features/{n}"
        norm = point.norms[n] if point is not None and n < len(point.norms) else None
        if feature.status == "removed":
            if feature.norm_selected != 0:
                yield (
                    f"{where}/status",
                    f"{feature.name!r} is removed with a norm of {feature.norm_selected:.3g}",
                )
            if norm:
                yield (
                    f"{where}/status",
                    f"{feature.name!r} is removed; its norm on the path ends at {norm:.3g}",
                )
            unexplained = feature.stage_exit is None and not removed_by_policy(feature)
            if unexplained and feature.norm_original != 0:
                yield f"{where}/stage_exit", f"{feature.name!r} is removed and no stage removed it"
        elif norm == 0 and kept_of[feature.input] > 1 and feature.input not in refused:
            yield f"{where}/status", f"{feature.name!r} is kept; its norm on the path ends at 0"
        if norm is not None and feature.status == "kept":
            yield from check_close(f"{where}/norm_selected", feature.norm_selected, norm, "the path ends at")
        yield from _exit(report, n, feature)


def _exit(report: Report, n: int, feature: Feature) -> Iterator[Found]:
    """Require the first lambda of its stage at which the feature was zero."""
    where = f"/features/{n}/lambda_exit"
    if (feature.stage_exit is None) != (feature.lambda_exit is None):
        yield where, "is given without stage_exit, or the reverse"
    if feature.stage_exit is None:
        return
    points = [p for p in report.path if p.stage == feature.stage_exit]
    if not points:
        yield f"/features/{n}/stage_exit", f"there is no stage {feature.stage_exit}"
    elif all(len(p.norms) == len(report.features) for p in points):
        first = next((p.lam for p in points if p.norms[n] == 0), None)
        yield from check_equal(where, feature.lambda_exit, first, "on the path it is first zero at")


def _path(report: Report) -> Iterator[Found]:
    fixed = sum(r.units for r in report.removal.refused) > 0
    widths = [len(f.columns) for f in report.features]
    for n, point in enumerate(report.path):
        where = f"/path/{n}"
        yield from check_close(
            f"{where}/objective", point.objective, point.loss + point.penalty, "loss + penalty is"
        )
        if point.norms and len(point.norms) != len(report.features):
            yield f"{where}/norms", f"{len(point.norms)} norms of {len(report.features)} features"
        elif point.norms:
            nonzero = [norm != 0 for norm in point.norms]
            columns = sum(w for w, read in zip(widths, nonzero, strict=True) if read)
            # one column stays of an input whose features all became zero, even if its feature had several
            for key, low, high in (
                ("features", sum(nonzero), sum(nonzero)),
                ("columns", sum(nonzero), columns),
            ):
                stated = getattr(point, key)
                if stated < low or (stated > high and not fixed):
                    yield f"{where}/{key}", f"says {stated}, but {high} have a norm above zero"
        if min(point.kkt_zero, point.kkt_active, point.penalty, point.lam, *(point.norms or [0.0])) < 0:
            yield where, "a norm, residual, penalty or lambda is below zero"


def _hidden(report: Report) -> Iterator[Found]:
    cut = Counter[str]()
    for c in report.removal.cuts:
        if c.kind == "hidden":
            cut[c.name] += c.units
    reasons = {r.name: r.reason for r in report.removal.refused}
    yield from _duplicates("/hidden", [h.name for h in report.hidden])
    for n, layer in enumerate(report.hidden):
        found = layer.before - cut.pop(layer.name, 0)
        yield from check_equal(f"/hidden/{n}/after", layer.after, found, "the cuts leave")
        yield from check_equal(
            f"/hidden/{n}/refused", layer.refused, reasons.get(layer.name), "the removal says"
        )
        if layer.after < 1:
            yield f"/hidden/{n}/after", "a layer needs at least one unit"
    for name in cut:
        yield "/removal/cuts", f"{name!r} is not a hidden layer of the report"


def _removal(report: Report) -> Iterator[Found]:
    removal = report.removal
    if removal.tolerance > _CUT_TOLERANCE:
        yield "/removal/tolerance", f"{removal.tolerance} is above {_CUT_TOLERANCE}"
    for n, cut in enumerate(removal.cuts):
        if cut.inexact is None and not 0 <= cut.difference <= removal.tolerance:
            yield f"/removal/cuts/{n}/difference", f"{cut.difference} is above the tolerance"
    exact = all(cut.inexact is None for cut in removal.cuts)
    if exact and not 0 <= removal.difference <= removal.tolerance:
        yield "/removal/difference", f"{removal.difference} is above the tolerance"
    cut_columns = Counter[str]()
    for cut in removal.cuts:
        if cut.kind == "input":
            cut_columns[cut.name] += cut.units
    removed_columns = Counter[str]()
    for feature in report.features:
        removed_columns[feature.input] += len(feature.columns) if feature.status == "removed" else 0
    single = {
        i for i, kept in Counter(f.input for f in report.features if f.status == "kept").items() if kept == 1
    }
    for name in {*cut_columns, *removed_columns}:
        # one column stays of an input whose features all became zero, even if its feature had several
        cut_count, stated = cut_columns[name], removed_columns[name]
        if cut_count != stated and not (name in single and cut_count > stated):
            yield "/removal/cuts", f"cuts {cut_count} columns of {name!r}; {stated} are removed"


def _performance(report: Report) -> Iterator[Found]:
    names = [m.name for m in report.performance]
    optional = ADDED if _is_older(report) else ()
    wanted = [name for name in METRICS[report.task] if name in names or name not in optional]
    yield from check_equal("/performance", names, wanted, "the task has")
    test = report.data.splits.get("test")
    for n, metric in enumerate(report.performance):
        where = f"/performance/{n}"
        if test is not None:
            yield from check_equal(f"{where}/rows", metric.rows, test.rows, "the test split has")
        yield from check_equal(
            f"{where}/higher_is_better",
            metric.higher_is_better,
            HIGHER_IS_BETTER.get(metric.name, True),
            "it should be",
        )
        low, high = RANGES.get(metric.name, (None, None))
        for side in ("original", "zeroed", "final"):
            value = getattr(metric, side)
            if (low is not None and value < low - 1e-6) or (high is not None and value > high + 1e-6):
                yield f"{where}/{side}", f"{metric.name} cannot be {value}"
    if test is not None:
        yield from check_equal("/export/rows", report.export.rows, test.rows, "the test split has")
    if not 0 <= report.export.difference <= _EXPORT_TOLERANCE:
        yield "/export/difference", f"{report.export.difference} is above {_EXPORT_TOLERANCE}"


def _is_older(report: Report) -> bool:
    """Whether another glprune wrote a report, or one before intervals; C12 or C7 is incomplete then."""
    return report.data.columns is None or report.run.versions.get("glprune") != __version__


def _splits(report: Report) -> Iterator[Found]:
    if set(report.data.splits) != {"train", "valid", "test"}:
        yield "/data/splits", f"are {sorted(report.data.splits)}"
    for name, split in report.data.splits.items():
        classes = report.data.classes
        if classes is not None and report.task != "distillation":
            yield from check_equal(
                f"/data/splits/{name}/target", sorted(split.target), sorted(classes), "classes are"
            )
            if abs(sum(split.target.values()) - 1) > 1e-6:
                yield f"/data/splits/{name}/target", f"shares add up to {sum(split.target.values())}"


def _size(report: Report, files: Mapping[str, bytes]) -> Iterator[Found]:
    size = report.size
    if bundles.ONNX in files:
        found = len(files[bundles.ONNX])
        yield from check_equal("/size/onnx_bytes_after", size.onnx_bytes_after, found, "the file has")
    for key in ("parameters", "macs"):
        before, after = getattr(size, f"{key}_before"), getattr(size, f"{key}_after")
        if not 0 <= after <= before:
            yield f"/size/{key}_after", f"{after} of {before}: a removal cannot add any"
    sliced = any(c.removal == "cut" for c in report.removal.cuts)
    if sliced and size.parameters_after >= size.parameters_before:
        yield "/size/parameters_after", "is not below the count before, although weights were removed"


def _latency(report: Report) -> Iterator[Found]:
    for n, time in enumerate(report.latency):
        where = f"/latency/{n}"
        yield from check_speedup(where, time.original_ms, time.slim_ms, time.speedup)
        for side in ("original", "slim"):
            if getattr(time, f"{side}_p95_ms") < getattr(time, f"{side}_ms"):
                yield f"{where}/{side}_p95_ms", "is below the median"


def _widths(report: Report, recipe: Recipe | None) -> Iterator[Found]:
    """Check the timing of rounded widths, where the recipe chooses them by time."""
    widths = report.widths
    if widths is None:
        return
    yield from check_speedup("/widths", widths.exact_ms, widths.rounded_ms, widths.speedup)
    if widths.round_to != (widths.tried if widths.speedup > 1 + FASTER else 1):
        yield "/widths/round_to", f"{widths.round_to} does not follow from a speed-up of {widths.speedup:.3g}"
    if recipe is not None and recipe.target.round_to != "auto":
        yield "/widths", f"was timed; {bundles.RECIPE} says {recipe.target.round_to}"


def _original(report: Report, recipe: Recipe | None, files: Mapping[str, bytes]) -> Iterator[Found]:
    """Require the file of the original network where the recipe keeps it, of the stated size."""
    raw, is_stated = files.get(bundles.ORIGINAL), bundles.ORIGINAL in report.digests.outputs
    if recipe is not None and recipe.export.keep_original != is_stated:
        what = "is not stated, but is to be kept" if recipe.export.keep_original else "is not to be kept"
        yield f"/digests/outputs/{bundles.ORIGINAL}", f"{what}, as {bundles.RECIPE} says"
    if raw is not None and not is_stated:
        yield f"/digests/outputs/{bundles.ORIGINAL}", "is not stated, but the file is in the folder"
    if raw is not None:
        stated = report.size.onnx_bytes_before
        yield from check_equal("/size/onnx_bytes_before", stated, len(raw), "the file has")


def _warnings(report: Report, recipe: Recipe | None) -> Iterator[Found]:
    """Require what a reader must know: the auditor derives it, a producer may add to the warnings."""
    if recipe is None:
        return
    for sentence in caveats.warnings(report, recipe):
        if sentence not in report.warnings:
            yield "/warnings", f"lack what follows from the figures: {sentence}"
    wanted = caveats.not_measured(report, recipe)
    for sentence in wanted:
        if sentence not in report.not_measured:
            yield "/not_measured", f"lacks: {sentence}"
    for n, sentence in enumerate(report.not_measured):
        if sentence not in wanted:
            yield f"/not_measured/{n}", f"does not follow from the report: {sentence[:80]}"


def _baselines(report: Report) -> Iterator[Found]:
    record = report.baselines
    if record is None:
        return
    kept = [f.name for f in report.features if f.status == "kept"]
    yield from check_equal("/baselines/features", record.features, len(kept), "the features kept are")
    hidden = sum(h.after for h in report.hidden)
    yield from check_equal("/baselines/hidden", record.hidden, hidden, "the layers keep")
    yield from check_equal("/baselines/rows", record.rows, report.export.rows, "the test split has")
    if report.stages:
        yield from check_equal(
            "/baselines/valid", record.valid, report.stages[-1].metric, "the last stage says"
        )
    for n, result in enumerate(record.results):
        yield from _baseline(result, f"/baselines/results/{n}", kept, [f.name for f in report.features])


def _baseline(result: Baseline, where: str, kept: Sequence[str], names: Sequence[str]) -> Iterator[Found]:
    for n, run in enumerate(result.runs):
        chosen = set(run.kept)
        ordered = [name for name in names if name in chosen]
        yield from check_equal(
            f"{where}/runs/{n}/kept", run.kept, ordered, "in the order of the features it is"
        )
        common = len(chosen & set(kept))
        yield from check_equal(f"{where}/runs/{n}/common", run.common, common, "the lists share")
    yield from _spread(result.valid, [run.valid for run in result.runs], f"{where}/valid")
    for n, spread in enumerate(result.test):
        values = [run.test[spread.name] for run in result.runs if spread.name in run.test]
        yield from _spread(spread, values, f"{where}/test/{n}")


def _spread(spread: Spread, values: Sequence[float], where: str) -> Iterator[Found]:
    if not values:
        yield where, "no run has this metric"
        return
    yield from check_close(f"{where}/mean", spread.mean, statistics.fmean(values), "its runs give")
    deviation = statistics.stdev(values) if len(values) > 1 else None
    yield from check_close(f"{where}/std", spread.std, deviation, "its runs give")


def _drop_costs(report: Report) -> Iterator[Found]:
    costs = report.drop_costs
    if costs is None:
        return
    kept = [f.name for f in report.features if f.status == "kept"]
    yield from check_equal(
        "/drop_costs/features", [c.feature for c in costs.features], kept, "the features kept are"
    )
    test = next((m for m in report.performance if m.name == costs.metric), None)
    if test is None:
        yield "/drop_costs/metric", f"{costs.metric!r} is not among the metrics"
    else:
        yield from check_close("/drop_costs/test", costs.test, test.final, "the performance says")
    for n, cost in enumerate(costs.features):
        if (cost.valid is None) != (cost.reason is not None) or (cost.test is None) != (cost.valid is None):
            yield f"/drop_costs/features/{n}", "must have either both values or a reason"


def _digests(report: Report) -> Iterator[Found]:
    digests = report.digests
    stated = {"recipe": digests.recipe, "recipe_resolved": digests.recipe_resolved, "model": digests.model}
    stated |= {f"data/{name}": value for name, value in digests.data.items()}
    for name, value in stated.items():
        if not _DIGEST.match(value):
            yield f"/digests/{name}", f"{value[:60]!r} is not a SHA-256 digest"
    yield from check_equal(
        "/digests/recipe_resolved",
        digests.recipe_resolved,
        digests.outputs.get(bundles.RECIPE),
        "the file has",
    )


def _recipe(report: Report, recipe: Recipe) -> Iterator[Found]:
    """Require that the report repeats the settings of the recipe and meets its target."""
    pairs: list[tuple[str, Any, Any]] = [
        ("/task", report.task, recipe.task),
        ("/purpose", report.purpose, recipe.report.purpose),
        ("/domain", report.domain, recipe.report.domain),
        ("/jurisdiction", report.jurisdiction, recipe.report.jurisdiction),
        ("/run/seed", report.run.seed, recipe.seed),
        ("/penalty/kind", report.penalty.kind, recipe.penalty.kind),
        ("/penalty/weights", report.penalty.weights, recipe.penalty.weights),
        ("/data/standardize", report.data.standardize, recipe.data.standardize),
        ("/export/signature", report.export.signature, recipe.export.signature),
        ("/export/opset", report.export.opset, recipe.export.opset),
        ("/export/inputs", [i.name for i in report.export.inputs], [s.name for s in recipe.model.inputs]),
    ]
    for where, stated, wanted in pairs:
        yield from check_equal(where, stated, wanted, f"{bundles.RECIPE} says")
    if not _is_older(report):
        yield from check_recipe_policy(report, recipe)
        yield from check_settings(report, recipe)
    if not recipe.allow_inexact and any(c.inexact for c in report.removal.cuts):
        yield "/removal/cuts", "a cut is inexact, which the recipe does not allow"
