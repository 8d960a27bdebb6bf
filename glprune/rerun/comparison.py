"""Compare the bundles of two runs of one recipe: to the byte, or within tolerances."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from glprune.schema import bundle as bundles
from glprune.schema.manifest import sha256
from glprune.schema.metrics import metric_text

if TYPE_CHECKING:
    from glprune.audit.parsed_bundle import ParsedBundle
    from glprune.schema.report import HiddenLayer, Metric, Report, Run

Rule = Literal["bytes", "tolerances"]
HIDDEN = 0.02
"""Share of a layer's units by which their number may differ elsewhere; at least one unit."""
WEIGHTS = 0.01
"""Relative L2 difference that weights of the same shapes may have elsewhere."""
ORIGINAL = 1e-4
"""Relative difference that a metric of the original, which is not trained, may have elsewhere."""
_FILES = (
    bundles.ONNX,
    bundles.INT8,
    bundles.ORIGINAL,
    bundles.WEIGHTS,
    bundles.PLAN,
    bundles.GOLDEN,
    bundles.RECIPE,
    bundles.INPUT_SCHEMA,
    bundles.PROXIES,
)
_FIGURES = 20  # of the report that are listed where they differ
_LENGTH = 80  # characters of a value
_TIMES = {"timing", "latency", "widths"}
_ELSEWHERE = re.compile(r"/performance/[^/]+/final|/digests/outputs/.*")
_PATHS = {bundles.FRONTIER}  # it names recipe and model by their paths


@dataclass(frozen=True)
class Difference:
    """One thing that was compared.

    Attributes:
        what: What was compared.
        stated: What the first bundle has.
        found: What the second one has.
        rule: When they agree.
        agrees: Whether they do.
    """

    what: str
    stated: str
    found: str
    rule: str
    agrees: bool


def same_environment(old: Run, new: Run) -> Iterator[str]:
    """Yield what differs between two environments; nothing where results must be the same to the byte."""
    pairs = {"platform": (old.platform, new.platform), "processor": (old.cpu, new.cpu)}
    pairs |= {"threads": (old.threads, new.threads)} | _pairs(old.versions, new.versions)
    for name, (was, is_now) in (pairs | _pairs(old.plugins, new.plugins)).items():
        if was != is_now:
            yield f"{name}: {was or 'none'} there, {is_now or 'none'} here"


def _pairs(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, tuple[Any, Any]]:
    return {name: (old.get(name), new.get(name)) for name in sorted({*old, *new})}


def compare_bundles(old: ParsedBundle, new: ParsedBundle, rule: Rule) -> Iterator[Difference]:
    """Compare two bundles that can be read, one difference for each thing."""
    assert old.report is not None
    assert new.report is not None
    if rule == "bytes":
        yield from _features(old.report, new.report)
        yield from _equal_metrics(old.report, new.report)
        yield from _equal_files(old, new)
        yield from _equal_reports(old.report, new.report)
        return
    yield from _features(old.report, new.report)
    yield from (_hidden(*pair) for pair in zip(old.report.hidden, new.report.hidden, strict=False))
    yield _weights(old, new)
    for before, after in zip(old.report.performance, new.report.performance, strict=False):
        yield _original(before, after)
        yield _final(before, after)


def _features(old: Report, new: Report) -> Iterator[Difference]:
    """Compare the kept features; the rule is the same everywhere."""
    names = [{f.name for f in report.features if f.status == "kept"} for report in (old, new)]
    texts = [", ".join(f.name for f in report.features if f.status == "kept") for report in (old, new)]
    yield Difference("kept features", texts[0], texts[1], "the same features", names[0] == names[1])


def _equal_files(old: ParsedBundle, new: ParsedBundle) -> Iterator[Difference]:
    """Compare the files without times and paths."""
    points = sorted(filter(bundles.POINT_FILE.fullmatch, {*old.files.contents, *new.files.contents}))
    for name in (*_FILES, *points):
        found = [files.files.contents.get(name) for files in (old, new)]
        if found != [None, None]:
            texts = [_digest(raw) for raw in found]
            yield Difference(name, texts[0], texts[1], "the same bytes", found[0] == found[1])


def _digest(raw: bytes | None) -> str:
    return "no such file" if raw is None else f"sha256:{sha256(raw)}"


def _equal_metrics(old: Report, new: Report) -> Iterator[Difference]:
    """Compare the metrics of the shipped model, as they are printed and to the last bit."""
    for before, after in zip(old.performance, new.performance, strict=False):
        texts = metric_text(before.final), metric_text(after.final)
        same = (before.name, before.final) == (after.name, after.final)
        yield Difference(f"{before.name} of the shipped model", *texts, "the same figure", same)


def _equal_reports(old: Report, new: Report) -> Iterator[Difference]:
    """Compare all other figures of two reports but times; those that differ are listed."""
    trees = [_without_times(report.model_dump(mode="json", by_alias=True)) for report in (old, new)]
    found = list(_unequal(trees[0], trees[1], ""))
    rule = "the same, but times and latencies"
    for where, there, here in found[:_FIGURES]:
        yield Difference(f"{bundles.REPORT} {where}", _short(there), _short(here), rule, False)
    if not found:
        yield Difference(bundles.REPORT, "all other figures", "all other figures", rule, True)
    elif len(found) > _FIGURES:
        more = f"{len(found) - _FIGURES} more figures differ"
        yield Difference(bundles.REPORT, "all other figures", more, rule, False)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LENGTH else f"{text[: _LENGTH - 3]}..."


def _without_times(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: _without_times(v) for k, v in tree.items() if k not in _TIMES | _PATHS}
    return [_without_times(item) for item in tree] if isinstance(tree, list) else tree


def _unequal(old: Any, new: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield place and values of what differs; what is compared by itself, files and metrics, is left out."""
    if _ELSEWHERE.fullmatch(where):
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _unequal(old.get(key), new.get(key), f"{where}/{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, pair in enumerate(zip(old, new, strict=True)):
            yield from _unequal(*pair, f"{where}/{_entry(number, *pair)}")
    elif old != new:
        yield where, old, new


def _entry(number: int, old: Any, new: Any) -> str:
    """Return the name of an entry of a list, where it has one, or its number."""
    names = [item.get("name") if isinstance(item, dict) else None for item in (old, new)]
    return names[0] if isinstance(names[0], str) and names[0] == names[1] else str(number)


def _hidden(old: HiddenLayer, new: HiddenLayer) -> Difference:
    allowed = max(1, round(HIDDEN * old.before))
    agrees = (old.name, old.before) == (new.name, new.before) and abs(old.after - new.after) <= allowed
    return Difference(
        f"units of {old.name}", str(old.after), str(new.after), f"up to {allowed} units", agrees
    )


def _weights(old: ParsedBundle, new: ParsedBundle) -> Difference:
    """Compare weights of the same shapes; the numbers of units are compared by themselves."""
    rule = f"relative L2 difference up to {WEIGHTS:g}, where all shapes are the same"
    before, after = ({} if b.weights is None else b.weights.arrays for b in (old, new))
    shapes = [{name: x.shape for name, x in arrays.items()} for arrays in (before, after)]
    if shapes[0] != shapes[1]:
        return Difference("weights", "other shapes", "other shapes", rule, True)
    flat = [
        np.concatenate([np.empty(0), *(arrays[n].astype(np.float64).ravel() for n in sorted(arrays))])
        for arrays in (before, after)
    ]
    gap, size = (float(np.linalg.norm(values)) for values in (flat[0] - flat[1], flat[0]))
    relative = gap / size if size else gap
    return Difference("weights", "0", f"{relative:.2g} apart", rule, relative <= WEIGHTS)


def _original(old: Metric, new: Metric) -> Difference:
    allowed = ORIGINAL * max(1.0, abs(old.original))
    agrees = old.name == new.name and abs(old.original - new.original) <= allowed
    texts = metric_text(old.original), metric_text(new.original)
    return Difference(f"{old.name} of the original", *texts, f"up to {allowed:.1g}", agrees)


def _final(old: Metric, new: Metric) -> Difference:
    """Compare a metric of the shipped model: it may differ by what the test rows cannot tell apart."""
    known = old.intervals.values.get("final") if old.intervals is not None else None
    reach = 0.01 * max(1.0, abs(old.final))
    low, high = (known.low, known.high) if known is not None else (old.final - reach, old.final + reach)
    rule = f"within {metric_text(low)} to {metric_text(high)}"
    rule += ", the 95 % interval of the report" if known is not None else ""
    agrees = old.name == new.name and low <= new.final <= high
    texts = metric_text(old.final), metric_text(new.final)
    return Difference(f"{old.name} of the shipped model", *texts, rule, agrees)
