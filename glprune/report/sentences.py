"""Sentences of the report, used by the page, the Markdown summary and the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from glprune._wording import counted, shortened
from glprune.report.uncertainty import between, change_of, in_parentheses
from glprune.schema import bundle as bundles
from glprune.schema.metrics import inline, label

if TYPE_CHECKING:
    from glprune.schema.report import (
        Baselines,
        Comparison,
        Feature,
        Frontier,
        Metric,
        PenaltyFacts,
        Quantized,
        Report,
        Selection,
        Size,
        Spread,
        Stability,
        WidthTiming,
    )

CALIBRATION = (
    "The calibration error is the mean gap between predicted probabilities and what happened, over 15 bins "
    "of equal width; the Brier score is the mean squared error of the probabilities."
)
_FEW, _MAX_LISTED = 12, 30
WAYS = {"random": "random selection", "magnitude": "magnitude", "permutation": "permutation importance"}


def number(value: float) -> str:
    """Format with four significant digits."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return tiny(value) if abs(value) < 1e-3 or abs(value) >= 1e6 else f"{value:.4g}"


def tiny(value: float) -> str:
    """Format with two significant digits and an exponent; 0 stays 0."""
    return "0" if value == 0 else f"{value:.1e}"


def thousands(value: int) -> str:
    """Format a count with thousands separators."""
    return f"{value:,}"


def removed_not_optimal(residual: float) -> str:
    """Begin the warning of removed groups that are not optimal; the residual is a share of the penalty."""
    return f"The optimality conditions of the removed groups are violated by {residual:.2g} of the penalty"


def kept_not_converged(residual: float) -> str:
    """Begin the warning of kept groups that are not optimal."""
    share_of_penalty = f"{number(residual)} of the penalty"
    return f"The kept groups have not converged: they violate the KKT conditions by {share_of_penalty}"


def headline(report: Report) -> list[str]:
    """Summarise the run in sentences: what was removed, the metric before and after, size and speed."""
    sentences = [_removed_sentence(report)]
    main = main_metric(report)
    sentences.append(_agreement_sentence(main) if report.task == "distillation" else _cost_sentence(main))
    before, after = (sum(getattr(h, side) for h in report.hidden) for side in ("before", "after"))
    size = report.size
    units = f"{before - after:,} of {before:,} hidden units were removed. " if before else ""
    sentences.append(
        f"{units}{size.parameters_after:,} of {size.parameters_before:,} parameters remain "
        f"({share(size.parameters_after, size.parameters_before)})."
    )
    if report.frontier is not None:
        sentences.append(frontier_sentence(report.frontier))
    if report.baselines is not None:
        sentences.append(_baselines_sentence(report.baselines, main))
    if report.stability is not None:
        sentences.append(_stability_sentence(report.stability, report.features))
    sentences += [_widths_sentence(report.widths)] if report.widths is not None else []
    speeds = [_speed_sentence(time.batch, time.speedup) for time in report.latency]
    speeds.append(f"Multiply-accumulates for one row decreased by a factor of {mac_ratio(size):.1f}.")
    sentences.append(" ".join(speeds))
    sentences += [_int8_sentence(report.quantized, main)] if report.quantized is not None else []
    return [s for s in sentences if s]


@dataclass(frozen=True)
class Figure:
    """One large figure of the banner and its meaning."""

    value: str
    meaning: str


def banner(report: Report) -> list[Figure]:
    """Return the three figures of the banner: removed features, metric, parameters."""
    gone, total = sum(f.status == "removed" for f in report.features), len(report.features)
    what = "input features"
    if total == 0:
        before, after = (sum(getattr(h, side) for h in report.hidden) for side in ("before", "after"))
        gone, total, what = before - after, before, "hidden units"
    metric, size = main_metric(report), report.size
    left = share(size.parameters_after, size.parameters_before)
    return [
        Figure(f"{gone:,} of {total:,}", f"{what} removed"),
        Figure(f"{metric.original:.4f} → {metric.final:.4f}", f"{label(metric.name)}, {_verdict_on(metric)}"),
        Figure(f"{size.parameters_before:,} → {size.parameters_after:,}", f"parameters, {left} left"),
    ]


def _verdict_on(metric: Metric) -> str:
    """Say whether the shipped file is better or worse than the original network."""
    change = metric.final - metric.original
    better = (change > 0) == metric.higher_is_better
    return "unchanged" if change == 0 else f"{'better' if better else 'worse'} by {abs(change):.4f}"


def main_metric(report: Report) -> Metric:
    """Return the selection metric as measured on the test split."""
    return next(m for m in report.performance if m.name == report.selection.metric)


def _removed_sentence(report: Report) -> str:
    """Say how many features are removed; name them where they are few, and the kept ones if fewer."""
    names: dict[str, list[str]] = {"removed": [], "kept": []}
    for feature in report.features:
        names[feature.status].append(feature.name)
    removed, kept, total = names["removed"], names["kept"], len(report.features)
    if total == 0:
        return "The network has no input features that can be removed; only hidden units were pruned."
    if not removed:
        return f"No input feature was removed: the shipped model reads all {total}."
    verb = "has no input for" if report.export.signature == "slim" else "does not read"
    sentence = f"The shipped model {verb} {len(removed):,} of {total:,} features"
    which = f": {shortened(removed, _MAX_LISTED)}" if len(removed) <= max(_FEW, len(kept)) else ""
    reads = f" It reads {shortened(kept, _MAX_LISTED)}." if 0 < len(kept) < len(removed) else ""
    return f"{sentence}{which}. Their values cannot influence its output.{reads}"


def _cost_sentence(metric: Metric) -> str:
    interval = in_parentheses(change_of(metric))
    return (
        f"{label(metric.name)} on {counted(metric.rows, 'test row')} is {metric.final:.4f}, "
        f"{_verdict_on(metric)} compared with {metric.original:.4f} for the original network{interval}; both "
        "were measured on ONNX files with ONNX Runtime."
    )


def _agreement_sentence(metric: Metric) -> str:
    perfect = 1 if metric.higher_is_better else 0
    return (
        f"Agreement with the original network on {counted(metric.rows, 'test row')}: {label(metric.name)} "
        f"{metric.final:.4f}, where {perfect} is full agreement; both were measured on ONNX files "
        "with ONNX Runtime. There were no labels, so accuracy was not measured."
    )


def _speed_sentence(batch: int, speedup: float) -> str:
    if speedup >= 1:
        return f"At batch size {batch} it is {speedup:.2f} times as fast as the original."
    return f"At batch size {batch} it is slower: {speedup:.2f} times as fast as the original."


def mac_ratio(size: Size) -> float:
    """Return the original's multiply-accumulates divided by the shipped network's."""
    return size.macs_before / max(1, size.macs_after)


def _int8_sentence(found: Quantized, main: Metric) -> str:
    """Describe the 8-bit file, which is not certified."""
    metric = next(m for m in found.metrics if m.name == main.name)
    interval, same = "", ""
    if metric.intervals is not None:
        interval = in_parentheses(metric.intervals.differences["int8"])
    if found.same_decisions is not None:
        same = f", and {100 * found.same_decisions:.2f} % of them get the same decision"
    speeds = " and ".join(f"{t.speedup:.2f} times as fast at batch size {t.batch}" for t in found.latency)
    return (
        f"{found.file} is the network quantised to 8-bit integers, which is not lossless: "
        f"{label(metric.name)} is {metric.int8:.4f} instead of {metric.float32:.4f} on the test rows"
        f"{interval}{same}; outputs change by up to {100 * found.difference:.2g} % of the largest output. "
        f"It has {found.bytes:,} bytes. Compared with the shipped file it is {speeds}. "
        f"{saturation_sentence(found)}"
    )


def saturation_sentence(found: Quantized) -> str:
    """Say whether processors agree on the 8-bit file, and on which it was measured."""
    measured = f"It was measured on {', '.join(found.instruction_sets) or 'an unknown processor'}."
    if found.largest_pair is None:
        return measured
    verdict = "no kernel saturates" if found.largest_pair < 2**15 else "kernels without VNNI saturate"
    reach = f"Two 8-bit products of one output reach at most {found.largest_pair:,} of 32,767"
    return f"{reach}: {verdict}. {measured}"


def file_sentence(report: Report) -> str:
    """Describe the size of the shipped file and how its metadata names the columns."""
    size, limit = report.size, bundles.size_limit(report.size.parameters_after)
    found = "within" if size.onnx_bytes_after <= limit else "above"
    names = {
        "all": "Its metadata names all columns.",
        "digest": "Its metadata has the number of columns and the SHA-256 of their names, which are in "
        f"{bundles.INPUT_SCHEMA}.",
    }
    return (
        f"{report.export.file} has {size.onnx_bytes_after:,} bytes: 4 for each parameter and "
        f"{size.onnx_bytes_after - 4 * size.parameters_after:,} for graph and metadata. That is {found} the "
        f"limit of {limit:,} bytes (4 for each parameter, plus 5 %, plus 4 kB). {names[report.export.names]}"
    )


def _widths_sentence(widths: WidthTiming) -> str:
    rounded = f"rounded up to multiples of {widths.tried}"
    faster = f"{widths.speedup:.2f} times as fast at batch size {widths.batch} before the refit"
    if widths.round_to > 1:
        return f"Hidden widths were {rounded}, which made the network {faster}."
    return f"Hidden widths were not rounded: {rounded}, the network was {faster}."


def penalty_sentence(penalty: PenaltyFacts) -> str:
    """Describe the penalty."""
    what = {
        "group_lasso": "a group LASSO penalty, which shrinks whole groups to zero",
        "sparse_group_lasso": "a sparse group LASSO penalty, which shrinks whole groups to zero and, with "
        f"{100 * (penalty.l1_ratio or 0):.3g} % of its strength, single weights of the other groups",
        "group_mcp": "a group MCP penalty, which shrinks whole groups to zero and stops shrinking a group "
        f"whose norm is at least {penalty.gamma or 0:.3g} times its trained one",
        "tree_group_lasso": "a tree-structured group LASSO penalty, which shrinks features and nested "
        f"sets of features to zero ({_groups(penalty)})",
        "latent_group_lasso": "a latent group LASSO penalty, which keeps a union of overlapping sets of "
        f"features ({_groups(penalty)})",
        "plugin": f"the plugin penalty {penalty.plugin!r}, whose proximal operator and residuals were "
        "checked against its values on random numbers before training",
    }[penalty.kind]
    least = {
        "size": "",
        "adaptive": "; it shrinks groups more that were weak in the trained network",
        "fisher": "; it shrinks groups more whose Fisher information was small",
        "taylor": "; it shrinks groups more whose removal changed the training loss little to first order",
        "ablation": "; it shrinks groups more whose removal raised the training loss little",
    }[penalty.weights]
    return f"The network was fine-tuned with {what}{least}"


def _groups(penalty: PenaltyFacts) -> str:
    """State how many features each set keeps."""
    return ", ".join(f"{g.name}: {len(g.kept)} of {len(g.features)} kept" for g in penalty.groups)


def comparison_sentence(selection: Selection) -> str:
    """State how sets of features were compared and how sure the choice is."""
    comparison = selection.comparison
    assert comparison is not None  # the caller has looked
    times = f", {comparison.repeats} times at random" if comparison.repeats > 1 else ""
    folds = (
        f", and the best two in {comparison.folds}-fold cross-validation of the "
        f"{thousands(comparison.fold_rows)} training and validation rows{times}"
        if comparison.fold_rows
        else ""
    )
    return (
        "Sets of features were found in several ways, refitted briefly and compared on the "
        f"{thousands(comparison.rows)} validation rows{folds}. The table gives the "
        f"{inline(selection.metric)} and its gain over the set of the path, each with one standard error. "
        f"Rule of the choice: {comparison.rule}. {_lead_sentence(comparison)} The figures are somewhat too "
        "good, since the same rows chose the sets."
    )


def _lead_sentence(comparison: Comparison) -> str:
    if comparison.lead is None or comparison.lead_standard_error is None:
        return "All ways found the same set."
    figure = f"{comparison.lead:+.4f} with a standard error of {comparison.lead_standard_error:.4f}"
    if comparison.lead > 2 * comparison.lead_standard_error:
        return f"The chosen set is clearly better than the next best: {figure}."
    return f"The chosen set and the next best do not differ by more than noise: {figure}."


def frontier_sentence(frontier: Frontier) -> str:
    """State the sizes that were found and why one of them ships."""
    sizes = [point.size for point in frontier.points]
    shipped = next(point for point in frontier.points if point.shipped)
    listed = _joined([f"{size:,}" for size in sizes])
    noun = "feature" if sizes == [1] else "features"
    return (
        f"One search found networks of {counted(len(sizes), 'size')}, for {listed} {noun}. "
        f"The one for {shipped.size:,} ships: {frontier.rule}."
    )


def _baselines_sentence(baselines: Baselines, metric: Metric) -> str:
    """Compare with simpler selections on the test split, whatever the outcome."""
    if not baselines.results:
        return " ".join(["No simpler selection was compared.", *baselines.notes])
    verdicts: dict[str, list[str]] = {"better than": [], "equal to": [], "worse than": []}
    for result in baselines.results:
        found = next(s for s in result.test if s.name == metric.name)
        verdicts[_verdict(metric, found.mean)].append(
            f"{WAYS[result.name]} ({_figure(found, len(result.runs))})"
        )
    outcomes = [f"{verdict} {_joined(names)}" for verdict, names in verdicts.items() if names]
    size = "the same size" if _same_size(baselines) else "nearly the same size"
    return (
        f"Compared with simpler selections of {size}, refitted and measured in the same way, the shipped "
        f"model's {inline(metric.name)} of {metric.final:.4f} is {_joined(outcomes)}"
        f"{_difference_sentence(baselines, metric.name)}."
    )


def _same_size(baselines: Baselines) -> bool:
    size = baselines.features, baselines.hidden
    return all((len(run.kept), run.hidden) == size for result in baselines.results for run in result.runs)


def _verdict(metric: Metric, other: float) -> str:
    """Compare the shipped file with another value, rounded to the digits shown."""
    gap = round(metric.final, 4) - round(other, 4)
    if gap == 0:
        return "equal to"
    return "better than" if (gap > 0) == metric.higher_is_better else "worse than"


def _difference_sentence(baselines: Baselines, metric: str) -> str:
    """Give the intervals of the differences to single selections, and count those of several that hold 0."""
    found = []
    for result in baselines.results:
        known = [run.differences[metric] for run in result.runs if metric in run.differences]
        if len(known) == 1:
            found.append(f"{between(known[0], signed=True)} for {WAYS[result.name]}")
        elif known:
            by_chance = sum(interval.low <= 0 <= interval.high for interval in known)
            found.append(f"within chance for {by_chance} of {len(known)} draws of {WAYS[result.name]}")
    return f"; the difference (95 % interval) is {_joined(found)}" if found else ""


def _figure(found: Spread, runs: int) -> str:
    if found.std is None:
        return f"{found.mean:.4f}"
    return f"{found.mean:.4f} mean of {runs}, standard deviation {found.std:.4f}"


def _joined(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _stability_sentence(stability: Stability, features: Sequence[Feature]) -> str:
    kept = [f.kept_share for f in features if f.status == "kept" and f.kept_share is not None]
    stable = sum(share >= stability.threshold for share in kept)
    sentence = (
        f"{stable} of the {len(kept)} kept features were kept in at least {100 * stability.threshold:g} % of "
        f"{counted(len(stability.resamples), 'resample')} of {part_of_rows(stability)}"
    )
    if stability.nogueira is None:
        return f"{sentence}."
    interval = stability.nogueira_interval
    between = f" (95 % interval {interval.low:.2f} to {interval.high:.2f})" if interval is not None else ""
    return (
        f"{sentence}; Nogueira's stability index is {stability.nogueira:.2f}{between}, where 1 means the "
        "same features every time and 0 a random choice."
    )


def part_of_rows(stability: Stability) -> str:
    """Describe the share of the training rows in a resample."""
    words = {0.5: "half the training rows", 1.0: "all training rows in another order"}
    return words.get(stability.subsample, f"{100 * stability.subsample:g} % of the training rows")


def share(after: int, before: int) -> str:
    """Format a count as a percentage of the count before."""
    return f"{100 * after / before:.1f} %" if before else "none"
