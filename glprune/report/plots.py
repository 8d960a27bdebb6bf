"""Draw the pictures of the report, as figures for notebooks and as static, reproducible SVG."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from glprune._escaping import escape_for_page
from glprune.report.path_lines import PathLines, drawn_points, line_collections

if TYPE_CHECKING:
    from glprune.schema.report import Feature, Frontier, PathPoint

# blue and orange of Okabe and Ito (2008), distinguishable with common colour vision deficiencies
KEPT, REMOVED, INK = "#0072b2", "#d55e00", "#3a3f44"
_STYLE: Any = {
    "svg.hashsalt": "glprune",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": "#b8bec4",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
}
_MANY = 40
_NORMAL_QUANTILE = 1.96  # of a 95 % interval


def norm_bars(features: Sequence[Feature]) -> str:
    """Draw the norms of kept features in the shipped network as horizontal bars, largest first."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 1.0 + 0.24 * len(features)))
        axes = figure.add_subplot()
        names = [_short(f.name) for f in features][::-1]
        values = [f.norm_final or 0.0 for f in features][::-1]
        axes.barh(range(len(values)), values, color=KEPT, height=0.62)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("group norm in the shipped network")
        return _svg(figure)


def path_picture(points: Sequence[PathPoint], features: Sequence[Feature]) -> str:
    """``path_figure`` as SVG."""
    with rc_context(_STYLE):
        return _svg(path_figure(points, features))


def path_figure(points: Sequence[PathPoint], features: Sequence[Feature]) -> Figure:
    """Draw the group norms of the features along the path; chosen points are marked.

    ``glprune.report.path_lines`` selects the lines.
    """
    with rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 3.6))
        axes = figure.add_subplot()
        axes.plot([], [], color=KEPT, label="kept")
        axes.plot([], [], color=REMOVED, label="removed")
        drawn = drawn_points(points, len(features))
        places = [_places(points)[n] for n in drawn]
        for lines in line_collections(points, features):
            _draw(axes, places, lines, many=len(features) > _MANY)
        _finish(axes, points)
        axes.set_ylabel("group norm")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, loc="upper right")
        return figure


def _draw(axes: Axes, places: Sequence[float], lines: PathLines, many: bool) -> None:
    """Draw the lines, or points where the path has a single point, and the band of all other features."""
    kept = lines.status == "kept"
    color, zorder = (KEPT, 2) if kept else (REMOVED, 1)
    alpha = 0.5 if many else 0.9
    norms = [[_round(v) for v in norms] for norms in lines.norms.tolist()]
    if len(places) == 1:
        flat = [norm for (norm,) in norms]
        axes.plot([*places] * len(flat), flat, "o", color=color, alpha=alpha, zorder=zorder)
    else:
        drawn = LineCollection(
            [list(zip(places, own, strict=True)) for own in norms],
            colors=color,
            linewidths=0.4 if many else 1.2,
            alpha=alpha,
            zorder=zorder,
            capstyle="projecting",
            joinstyle="round",
        )
        axes.add_collection(drawn)
        axes.autoscale_view()
    if lines.band is not None:
        low, high = ([_round(v) for v in side] for side in lines.band.tolist())
        label = f"{lines.status}: the {lines.others:,} with smaller norms"
        style: Any = {"color": color, "alpha": 0.25, "zorder": zorder - 0.5, "label": label}
        if len(places) == 1:
            axes.vlines(places, low, high, linewidth=6, **style)
        else:
            axes.fill_between(places, low, high, linewidth=0, **style)


def path_metric(points: Sequence[PathPoint], metric: str, reference: float) -> str:
    """``metric_figure`` as SVG."""
    with rc_context(_STYLE):
        return _svg(metric_figure(points, metric, reference))


def metric_figure(points: Sequence[PathPoint], metric: str, reference: float) -> Figure:
    """Draw the number of features and the validation metric along the path, with refits as diamonds."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 3.0))
        axes = figure.add_subplot()
        places = _places(points)
        axes.plot(
            places, [p.features for p in points], color="#8a9097", drawstyle="steps-post", linewidth=1.4
        )
        axes.set_ylabel("features left (grey)")
        axes.set_ylim(bottom=0)
        other = axes.twinx()
        other.plot(places, [p.metric for p in points], color=KEPT, marker=".", linewidth=1.2)
        refitted = [
            (x, p.refit_metric) for x, p in zip(places, points, strict=True) if p.refit_metric is not None
        ]
        other.plot(
            [x for x, _ in refitted],
            [y for _, y in refitted],
            linestyle="none",
            marker="D",
            color=REMOVED,
            markersize=4,
        )
        other.axhline(reference, color=KEPT, linewidth=0.8, linestyle=":")
        other.set_ylabel(f"{metric} (blue; after a refit: orange)")
        other.spines["right"].set_visible(True)
        _finish(axes, points)
        return figure


def frontier_picture(frontier: Frontier, metric: str, original: float) -> str:
    """``frontier_figure`` as SVG."""
    with rc_context(_STYLE):
        return _svg(frontier_figure(frontier, metric, original))


def frontier_figure(frontier: Frontier, metric: str, original: float) -> Figure:
    """Draw the metric against the number of features, with 95 % intervals on test and validation split.

    Args:
        frontier: The record.
        metric: Display name of the metric.
        original: The original network's metric on the test split.
    """
    with rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 3.4))
        axes = figure.add_subplot()
        points = frontier.points[::-1]
        places = range(len(points))
        measured = [(x, p.test, p.test_interval) for x, p in zip(places, points, strict=True)]
        reach = [_NORMAL_QUANTILE * p.standard_error for p in points]
        _draw_intervals(
            axes,
            [
                (x + 0.14, p.valid, p.valid - r, p.valid + r)
                for x, p, r in zip(places, points, reach, strict=True)
            ],
            color="#8a9097",
            marker="s",
            label="validation split",
        )
        _draw_intervals(
            axes,
            [
                (x - 0.14, test, i.low, i.high)
                for x, test, i in measured
                if test is not None and i is not None
            ],
            color=KEPT,
            marker="o",
            label="test split",
        )
        axes.axhline(original, color=KEPT, linewidth=0.8, linestyle=":", label="original, test split")
        for x, point in zip(places, points, strict=True):
            if point.shipped:
                axes.axvspan(x - 0.4, x + 0.4, color=KEPT, alpha=0.1, linewidth=0, label="shipped")
        axes.set_xticks([*places], [f"{len(p.features):,}" for p in points])
        axes.set_xlabel("features kept")
        axes.set_ylabel(metric)
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, fontsize=8)
        return figure


def _draw_intervals(
    axes: Axes, values: Sequence[tuple[float, float, float, float]], color: str, marker: str, label: str
) -> None:
    """Draw values with intervals; each is its place, value, low and high end."""
    x, y, low, high = ([_round(value[n]) for value in values] for n in range(4))
    errors = [[b - a for a, b in zip(low, y, strict=True)], [b - a for a, b in zip(y, high, strict=True)]]
    errors = [[max(0.0, error) for error in side] for side in errors]
    axes.errorbar(
        x,
        y,
        errors,
        color=color,
        marker=marker,
        markersize=4,
        linewidth=0.8,
        elinewidth=1.2,
        capsize=2.5,
        label=label,
    )


def _places(points: Sequence[PathPoint]) -> list[float]:
    """Return the positions of points on the axis: their lambda, or their number with several stages."""
    if len({p.stage for p in points}) > 1:
        return [float(n) for n in range(1, len(points) + 1)]
    return [p.lam for p in points]


def _finish(axes: Axes, points: Sequence[PathPoint]) -> None:
    places = _places(points)
    selected = [(x, p) for x, p in zip(places, points, strict=True) if p.selected]
    if len({p.stage for p in points}) > 1:
        axes.set_xlabel("points of all stages; lambda increases within a stage (dashed: chosen points)")
    else:
        _scale(axes, places)
        axes.set_xlabel("lambda (strength of the penalty)")
    for x, point in selected:
        axes.axvline(x, color=INK, linewidth=0.7, linestyle="--", alpha=0.8)
        axes.annotate(
            f" {point.lam:.2g}",
            (x, 1.0),
            xycoords=("data", "axes fraction"),
            va="bottom",
            ha="center",
            fontsize=7,
            annotation_clip=False,
        )


def _scale(axes: Axes, lams: Sequence[float]) -> None:
    if len(lams) > 1 and max(lams) > 0:
        if min(lams) > 0:
            axes.set_xscale("log")
        else:
            axes.set_xscale("symlog", linthresh=min(v for v in lams if v > 0))


def _svg(figure: Figure) -> str:
    """Render a figure as an inline SVG element without metadata or outside names."""
    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # text stays text, drawn with the fonts of the reader
        figure.tight_layout()
        canvas: Any = FigureCanvasSVG(figure)  # matplotlib does not annotate its writers
        canvas.print_svg(stream, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # tenths of a point are enough for a line, and more than halve the file
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d)\d+", r"\1", path[0]), text)
    return re.sub(r"\n\s*", "\n", text)


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def _short(name: str) -> str:
    shown = escape_for_page(name if len(name) <= 32 else name[:31] + "…")
    return shown.replace("$", r"\$")
