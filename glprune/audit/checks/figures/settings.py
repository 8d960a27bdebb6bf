"""What a recipe asks for and a report must have: settings, optional measurements, names and their texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from glprune.audit.checks.policy import ancestors
from glprune.audit.findings import Found, check_equal
from glprune.schema import bundle as bundles
from glprune.schema.metrics import METRICS
from glprune.schema.report import Policy, prediction_meaning

if TYPE_CHECKING:
    from glprune.schema.recipe import Recipe, StabilitySpec
    from glprune.schema.report import Report, Stability

_EXPORTERS = ("dynamo", "torchscript")
_PACKAGE, _VERSION = re.compile(r"[a-z][a-z0-9_-]*"), re.compile(r"\d+(\.\d+)+[\w.+-]*")
_SPLITS = ("train", "valid", "test")


def check_settings(report: Report, recipe: Recipe) -> Iterator[Found]:
    """Check what follows from the recipe alone, and that nothing it asks for is left out."""
    yield from _pairs(report, recipe)
    yield from _asked(report, recipe)
    yield from _stability(report, recipe)
    yield from _outputs(report, recipe)
    yield from _refused(report)
    yield from _environment(report, recipe)


def _pairs(report: Report, recipe: Recipe) -> Iterator[Found]:
    """Compare settings that the report repeats."""
    drop, penalty, spec = recipe.target.max_drop, report.penalty, recipe.penalty
    metric = drop.metric if drop is not None else METRICS[report.task][0]
    pairs: list[tuple[str, object, object]] = [
        ("/selection/metric", report.selection.metric, metric),
        ("/penalty/plugin", penalty.plugin, spec.plugin),
        ("/penalty/l1_ratio", penalty.l1_ratio is not None, spec.kind == "sparse_group_lasso"),
        ("/penalty/gamma", penalty.gamma is not None, spec.kind == "group_mcp"),
    ]
    names = _data_files(recipe)
    if names:
        pairs.append(("/data/source", report.data.source, ", ".join(names.values())))
    pairs.append(("/digests/data", sorted(report.digests.data), sorted(names or _SPLITS)))
    for where, stated, wanted in pairs:
        yield from check_equal(where, stated, wanted, f"{bundles.RECIPE} says")


def _data_files(recipe: Recipe) -> dict[str, str]:
    """Map each part of the data to the name of its file; empty where a loader yields rows."""
    spec = recipe.data
    if spec.yields:
        return {}
    return {"file": spec.file} if spec.file else {name: str(getattr(spec, name)) for name in _SPLITS}


def _asked(report: Report, recipe: Recipe) -> Iterator[Found]:
    """Require the optional measurements that the recipe asks for, and no others."""
    spec = recipe.stability
    asked = [
        ("/baselines", report.baselines, recipe.report.baselines),
        ("/drop_costs", report.drop_costs, spec is not None and spec.drop_cost),
        ("/refit", report.refit, recipe.refit.epochs > 0),
    ]
    for where, record, is_asked in asked:
        if (record is not None) != is_asked:
            wish = "it" if is_asked else "none"
            yield where, f"is {'given' if record else 'null'}; {bundles.RECIPE} asks for {wish}"
    if report.refit is not None and report.refit.epochs > recipe.refit.epochs:
        yield "/refit/epochs", f"says {report.refit.epochs}, but {bundles.RECIPE} {recipe.refit.epochs}"


def _stability(report: Report, recipe: Recipe) -> Iterator[Found]:
    """Require resamples of the features on which the search decides, where it removed one of them."""
    spec, record, free = recipe.stability, report.stability, _free(report)
    removed = any(is_free and f.status == "removed" for is_free, f in zip(free, report.features, strict=True))
    is_asked = spec is not None and spec.n_resamples > 0
    if record is None:
        if is_asked and removed:
            yield "/stability", f"is null, but {bundles.RECIPE} asks for it"
        return
    if spec is None or not is_asked:
        yield "/stability", f"is given, but {bundles.RECIPE} asks for none"
        return
    yield from _resamples(record, spec)
    wanted = "".join("1" if is_free else "0" for is_free in free)
    yield from check_equal("/stability/removable", record.removable, wanted, "policy and removal give")


def _resamples(record: Stability, spec: StabilitySpec) -> Iterator[Found]:
    for key in ("subsample", "seeds", "threshold"):
        yield from check_equal(
            f"/stability/{key}", getattr(record, key), getattr(spec, key), f"{bundles.RECIPE} says"
        )
    found = len(record.resamples) + len(record.failures)
    yield from check_equal("/stability/resamples", found, spec.n_resamples, f"{bundles.RECIPE} says")


def _free(report: Report) -> list[bool]:
    """Return for each feature whether the search decides on it: it can be removed, and no rule is set."""
    policy, refused = report.policy or Policy(), {skipped.name for skipped in report.removal.refused}
    forbidden, required = set(policy.must_drop), set(policy.must_keep)
    return [
        feature.input not in refused
        and not ancestors(feature, policy).keys() & forbidden
        and not {feature.name, *feature.columns} & required
        for feature in report.features
    ]


def _outputs(report: Report, recipe: Recipe) -> Iterator[Found]:
    """Require meanings that follow from task and classes, and agreement of outputs that there are."""
    meaning = prediction_meaning(report.task, recipe.model.output, report.data.classes or ())
    wanted = [text for text in meaning if text is not None]
    for n, output in enumerate(report.export.outputs):
        if output.meaning not in (*wanted, f"output {n} of the network"):
            yield f"/export/outputs/{n}/meaning", f"says {output.meaning[:80]!r}, but it is {wanted[0]!r}"
    if not any(output.meaning in wanted for output in report.export.outputs):
        yield "/export/outputs", "name none that is the prediction"
    names = {output.name for output in report.export.outputs}
    for n, found in enumerate(report.agreement):
        if found.name not in names or (found.r2 is not None and found.r2 > 1) or found.max_change < 0:
            yield f"/agreement/{n}", f"of {found.name!r} is of no output, or cannot be"


def _refused(report: Report) -> Iterator[Found]:
    """Require that units which stayed are of an input or a layer of the report."""
    known = {layer.name for layer in report.hidden} | {given.name for given in report.export.inputs}
    for n, skipped in enumerate(report.removal.refused):
        if skipped.name not in known or skipped.units < 1:
            yield (
                f"/removal/refused/{n}",
                f"{skipped.units} units of {skipped.name!r} are of no input or layer",
            )


def _environment(report: Report, recipe: Recipe) -> Iterator[Found]:
    """Require figures of the run that cannot be otherwise."""
    if min(report.removal.rows, report.run.threads) < 1:
        yield "/removal/rows", "rows compared and threads are at least one"
    for name, version in report.run.versions.items():
        if not (_PACKAGE.fullmatch(name) and _VERSION.fullmatch(version)):
            yield "/run/versions", f"{name[:40]!r}: {version[:40]!r} is no version of a package"
    if not report.latency:
        yield "/latency", "is empty"
    own = report.export.exporter in _EXPORTERS
    if own and recipe.export.exporter not in ("auto", report.export.exporter):
        yield (
            "/export/exporter",
            f"is {report.export.exporter}; {bundles.RECIPE} says {recipe.export.exporter}",
        )
    if not own and not recipe.export.plugins and recipe.export.exporter in ("auto", *_EXPORTERS):
        yield "/export/exporter", f"{report.export.exporter[:40]!r} is no exporter of {bundles.RECIPE}"
