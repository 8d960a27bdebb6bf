"""Render a report as one HTML file without scripts or external requests, also for printing."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from glprune._escaping import escape_for_page
from glprune._wording import counted
from glprune.report.path_lines import caption
from glprune.report.regulations import regulations
from glprune.report.sections import evidence_for, sections
from glprune.report.sentences import (
    CALIBRATION,
    WAYS,
    banner,
    comparison_sentence,
    file_sentence,
    frontier_sentence,
    headline,
    mac_ratio,
    main_metric,
    number,
    part_of_rows,
    penalty_sentence,
    saturation_sentence,
    share,
    thousands,
    tiny,
)
from glprune.report.uncertainty import between, method_sentence
from glprune.schema.metrics import inline, label

if TYPE_CHECKING:
    from glprune.schema.report import (
        Baseline,
        DropCost,
        DropCosts,
        Feature,
        Report,
    )

_MANY = 30


@dataclass(frozen=True)
class Change:
    """One figure before and after, formatted for the page."""

    label: str
    before: str
    after: str
    change: str


@dataclass(frozen=True)
class Compared:
    """One row of the comparison of selections, formatted.

    Attributes:
        label: Name of the method.
        shipped: Whether it is the shipped selection.
        features: Number of features in common with the shipped model.
        units: Number of hidden units in common with the shipped model.
        test: Every metric on the test split.
        valid: The selection metric on the validation split.
        gained: Features it keeps and the shipped model does not; None for several selections.
        lost: Features the shipped model keeps and it does not; None for several selections.
    """

    label: str
    shipped: bool
    features: str
    units: str
    test: tuple[str, ...]
    valid: str
    gained: list[str] | None
    lost: list[str] | None


NO_PICTURE = "<svg></svg>\n"


class _NoPictures:
    """Replaces ``glprune.report.plots`` where matplotlib is not installed."""

    def __getattr__(self, name: str) -> Callable[..., str]:
        return lambda *_, **__: NO_PICTURE


@functools.cache
def _environment() -> Environment:
    """Compile the templates, once."""
    environment = Environment(
        loader=PackageLoader("glprune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_escape,
    )
    environment.filters |= {"number": number, "tiny": tiny, "thousands": thousands, "metric_label": label}
    environment.filters |= {"metric_inline": inline, "between": between, "saturation": saturation_sentence}
    environment.filters["counted"] = counted
    environment.filters["shortened"] = lambda digest: f"{digest[:23]}…"
    environment.filters["words"] = lambda text: text.replace("_", " ", 1) if text else "-"
    return environment


def _escape(value: object) -> object:
    """Escape invisible characters and marks of writing direction; pictures stay unchanged."""
    return escape_for_page(value, keep="\n\t") if type(value) is str else value


def render_html(report: Report, pictures: bool = True) -> str:
    """Render the report as one self-contained HTML page.

    Args:
        report: The records, the only source of sentences and pictures.
        pictures: Draw the pictures, which needs matplotlib; otherwise each is an empty ``<svg>``.
    """
    return _environment().get_template("report.html.j2").render(r=report, **_view(report, pictures))


def render_findings(report: Report, bundle: str) -> str:
    """Render the findings as an HTML fragment with inline styles, for notebooks.

    Args:
        report: The records.
        bundle: Path of the bundle, named in the fragment.
    """
    template = _environment().get_template("findings.html.j2")
    return template.render(r=report, banner=banner(report), headline=headline(report), bundle=bundle)


def compared(report: Report) -> list[Compared]:
    """Return the shipped selection and the simpler ones; empty where none was measured."""
    baselines = report.baselines
    if baselines is None or not baselines.results:
        return []
    kept = {f.name: None for f in report.features if f.status == "kept"}
    shipped = Compared(
        label="group LASSO, shipped",
        shipped=True,
        features=f"{baselines.features:,}",
        units=f"{baselines.hidden:,}",
        test=tuple(f"{m.final:.4f}" for m in report.performance),
        valid=f"{baselines.valid:.4f}",
        gained=None,
        lost=None,
    )
    return [shipped, *(row for result in reversed(baselines.results) for row in _compared(result, kept))]


def _compared(result: Baseline, kept: Mapping[str, None]) -> list[Compared]:
    """Return one row for a single selection; mean and standard deviation for several."""
    runs, single = result.runs, result.runs[0] if len(result.runs) == 1 else None
    theirs = set(single.kept) if single else set()
    figures = [*result.test, result.valid]
    *test, valid = (f"{spread.mean:.4f}" for spread in figures)
    row = Compared(
        label=WAYS[result.name] + ("" if single else f", mean of {len(runs)}"),
        shipped=False,
        features=_mean_count([run.common for run in runs]),
        units=_mean_count([run.common_hidden for run in runs]),
        test=tuple(test),
        valid=valid,
        gained=[name for name in single.kept if name not in kept] if single else None,
        lost=[name for name in kept if name not in theirs] if single else None,
    )
    *test, valid = ("" if spread.std is None else f"{spread.std:.4f}" for spread in figures)
    deviation = replace(row, label="standard deviation", features="", units="", test=tuple(test), valid=valid)
    return [row] if single else [row, deviation]


def _mean_count(counts: Sequence[int]) -> str:
    return f"{counts[0]:,}" if len(counts) == 1 else f"{sum(counts) / len(counts):,.1f}"


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        return False
    return True


def _plots(pictures: bool) -> Any:
    return importlib.import_module("glprune.report.plots") if pictures else _NoPictures()


def _view(report: Report, pictures: bool) -> dict[str, Any]:
    plots = _plots(pictures)
    kept = sorted((f for f in report.features if f.status == "kept"), key=lambda f: -(f.norm_final or 0.0))
    selection, numbered = report.selection, sections(report)
    return {
        "sections": numbered,
        "rules": evidence_for(report, list(numbered.values())),
        "as_of": regulations().as_of,
        "banner": banner(report),
        "headline": headline(report),
        "removed": [f for f in report.features if f.status == "removed"],
        "kept": kept,
        "by_rule": [f for f in report.features if f.status == "removed" and by_rule(f)],
        "derived": [f.name for f in report.features if (f.reason or "").startswith("derived_from")],
        "many": _MANY,
        "size_rows": size_rows(report),
        "bars": Markup(plots.norm_bars(kept[:_MANY])),
        "lines": Markup(plots.path_picture(report.path, report.features)),
        "lines_caption": caption(report.path, report.features),
        "metric_plot": Markup(plots.path_metric(report.path, label(selection.metric), selection.reference)),
        "paths": [(s, [p for p in report.path if p.stage == s.number]) for s in report.stages],
        "penalty": penalty_sentence(report.penalty),
        "main": main_metric(report),
        "interval_method": method_sentence([m.intervals for m in report.performance]),
        "calibration": CALIBRATION,
        "part_of_rows": part_of_rows(report.stability) if report.stability else "",
        "drop_rows": _drop_rows(report.drop_costs) if report.drop_costs else [],
        "compared": compared(report),
        "comparison": comparison_sentence(selection) if selection.comparison else "",
        "frontier": frontier_sentence(report.frontier) if report.frontier else "",
        "frontier_plot": _frontier_plot(report, plots),
        "mac_ratio": mac_ratio(report.size),
        "file": file_sentence(report),
    }


def _frontier_plot(report: Report, plots: Any) -> Markup:
    if report.frontier is None:
        return Markup("")
    metric = main_metric(report)
    return Markup(plots.frontier_picture(report.frontier, label(metric.name), metric.original))


def by_rule(feature: Feature) -> bool:
    """Whether the policy removed a feature, not the penalty."""
    return feature.reason not in (None, "penalty")


def _drop_rows(costs: DropCosts) -> list[DropCost]:
    """Sort by cost on the validation split, highest first; features that cannot be dropped come last."""
    sign = 1 if costs.higher_is_better else -1
    return sorted(costs.features, key=lambda c: math.inf if c.valid is None else sign * c.valid)


def size_rows(report: Report) -> list[Change]:
    """Return the counts of the network and its file, before and after."""
    size = report.size
    features = sum(f.status == "kept" for f in report.features)
    columns = sum(len(f.columns) for f in report.features)
    left = sum(len(f.columns) for f in report.features if f.status == "kept")
    before, after = (sum(getattr(h, side) for h in report.hidden) for side in ("before", "after"))
    pairs = [
        ("Input features read", len(report.features), features),
        ("Input columns read", columns, left),
        ("Hidden units", before, after),
        ("Parameters", size.parameters_before, size.parameters_after),
        ("Multiply-accumulates for one row", size.macs_before, size.macs_after),
        ("ONNX file, bytes", size.onnx_bytes_before, size.onnx_bytes_after),
    ]
    graph = (
        f"{size.onnx_bytes_before - 4 * size.parameters_before:,}",
        f"{size.onnx_bytes_after - 4 * size.parameters_after:,}",
    )
    changes = [Change(name, f"{b:,}", f"{a:,}", share(a, b)) for name, b, a in pairs]
    return [*changes, Change("of which graph and metadata", graph[0], graph[1], "")]
