"""Compute the policy's records again: reasons, reason codes, segments, decisions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from glprune._wording import range_labels
from glprune.audit.checks.policy import ancestors
from glprune.audit.findings import Found, check_close, check_equal
from glprune.schema import bundle as bundles
from glprune.schema.recipe import DEFAULT_THRESHOLD
from glprune.schema.report import (
    EDGES,
    MISSING,
    QUARTILES,
    VALUES,
    DecisionChange,
    Feature,
    Policy,
    ProtectedAttribute,
    ReasonCode,
    Report,
    Segment,
    Segments,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from glprune.schema.recipe import PolicySpec, Recipe

DERIVED = "derived_from "


def removed_by_policy(feature: Feature) -> bool:
    """Whether a rule removed the feature, not a stage of the search."""
    reason = feature.reason or ""
    return feature.status == "removed" and (reason == "must_drop" or reason.startswith(DERIVED))


def check_policy_records(report: Report) -> Iterator[Found]:
    """Check that the policy's records follow from the features and tables of the report."""
    policy = report.policy or Policy()
    keep, drop = set(policy.must_keep), set(policy.must_drop)
    for n, feature in enumerate(report.features):
        yield from _reason(f"/features/{n}/reason", feature, policy, keep, drop)
    if report.policy is None:
        for name in ("segments", "reason_codes", "proxies"):
            if getattr(report, name) is not None:
                yield f"/{name}", "is given, but there is no policy"
    yield from _codes(report)
    if report.segments is not None:
        yield from _segments(report, report.segments)
    if report.proxies is not None:
        made = report.proxies.performed
        if made != (report.proxies.digest is not None) or made == (report.proxies.reason is not None):
            yield "/proxies", "must have either a digest, if the analysis was made, or a reason why not"


def check_recipe_policy(report: Report, recipe: Recipe) -> Iterator[Found]:
    """Check that rules, segments, proxies and reason codes are those that the recipe asks for."""
    spec, says = recipe.policy, f"{bundles.RECIPE} says"
    wanted = Policy.of(spec) if spec is not None else None
    yield from check_equal("/policy", report.policy, wanted, says)
    if spec is None:
        return
    if report.segments is None or report.proxies is None:
        yield "/segments" if report.segments is None else "/proxies", f"is null, but {says} policy"
        return
    adverse = [str(label) for label in spec.adverse] if spec.adverse is not None else None
    pairs: list[tuple[str, object, object]] = [
        ("/segments/min_rows", report.segments.min_rows, spec.min_segment_rows),
        ("/segments/adverse", report.segments.adverse, adverse),
        ("/segments/attributes", [a.name for a in report.segments.attributes], spec.protected),
        ("/proxies/performed", report.proxies.performed, spec.proxies),
        ("/reason_codes", _codes_of(report), _wanted_codes(report, spec)),
    ]
    if report.task == "binary":
        pairs.append(("/segments/threshold", report.segments.threshold, spec.threshold or DEFAULT_THRESHOLD))
    for where, stated, asked in pairs:
        yield from check_equal(where, stated, asked, says)
    yield from _complete(report, report.segments)
    for n, attribute in enumerate(report.segments.attributes):
        yield from _division(f"/segments/attributes/{n}", attribute, spec.bins.get(attribute.name))


def _codes_of(report: Report) -> dict[str, set[str]]:
    """Map every reason code of the report to the features it cites."""
    codes = report.reason_codes
    found = [*codes.retired, *codes.to_review, *codes.unchanged] if codes is not None else []
    return {code.code: {*code.removed, *code.kept} for code in found}


def _wanted_codes(report: Report, spec: PolicySpec) -> dict[str, set[str]]:
    """Map every reason code of the recipe to the features it cites."""
    owner = {column: f.name for f in report.features for column in (*f.columns, f.name)}
    wanted: dict[str, set[str]] = {}
    for name, codes in spec.reason_codes.items():
        for code in [codes] if isinstance(codes, str) else codes:
            wanted.setdefault(code, set()).add(owner.get(name, name))
    return wanted


def _reason(where: str, feature: Feature, policy: Policy, keep: set[str], drop: set[str]) -> Iterator[Found]:
    names, lineage = {feature.name, *feature.columns}, ancestors(feature, policy)
    wanted: set[str | None] = {None}
    if feature.status == "kept":
        wanted = {"must_keep" if names & keep else None}
    elif names & drop:
        wanted = {"must_drop"}
    else:
        wanted = {f"{DERIVED}{name}" for name in lineage.keys() & drop} or {"penalty"}
    if feature.reason not in wanted:
        named = " or ".join(sorted(map(str, wanted)))
        yield where, f"says {feature.reason!r}; by the policy it is {named}"


def _codes(report: Report) -> Iterator[Found]:
    codes = report.reason_codes
    if codes is None:
        return
    status = {f.name: f.status for f in report.features}
    parts: dict[str, list[ReasonCode]] = {
        "retired": codes.retired,
        "to_review": codes.to_review,
        "unchanged": codes.unchanged,
    }
    for part, found in parts.items():
        for n, code in enumerate(found):
            where = f"/reason_codes/{part}/{n}"
            cited = [("removed", name) for name in code.removed] + [("kept", name) for name in code.kept]
            for stated, name in cited:
                if status.get(name) != stated:
                    yield (
                        where,
                        f"says {name!r} is {stated}, but the feature is {status.get(name, 'unknown')}",
                    )
            belongs = "unchanged" if not code.removed else "to_review" if code.kept else "retired"
            if part != belongs:
                yield where, f"{code.code!r} belongs under {belongs}"


def _segments(report: Report, record: Segments) -> Iterator[Found]:
    rows = next((m.rows for m in report.performance), None)
    if record.decisions is not None:
        yield from _decisions("/segments/decisions", record.decisions)
        if record.decisions.rows != rows:
            yield "/segments/decisions/rows", f"says {record.decisions.rows}, but {rows} rows were tested"
    for n, attribute in enumerate(record.attributes):
        where = f"/segments/attributes/{n}"
        status = _status_of(attribute.name, report)
        yield from check_equal(f"{where}/status", attribute.status, status, "by the features it is")
        yield from _attribute(where, attribute, record, rows)


def _status_of(attribute: str, report: Report) -> str:
    """Return whether a protected attribute is a kept or a removed feature, or a column of one, or neither."""
    found = {f.status for f in report.features if attribute in (f.name, *f.columns)}
    return "outside" if not found else "kept" if "kept" in found else "removed"


def _attribute(
    where: str, attribute: ProtectedAttribute, record: Segments, rows: int | None
) -> Iterator[Found]:
    if sum(s.rows for s in attribute.segments) > (rows or 0):
        yield where, f"has more rows than the {rows} that were tested"
    for n, segment in enumerate(attribute.segments):
        segment_where = f"{where}/segments/{n}"
        if segment.suppressed != (segment.rows < record.min_rows):
            yield (
                f"{segment_where}/suppressed",
                f"is {segment.suppressed} with {segment.rows} rows; min_rows is {record.min_rows}",
            )
        if segment.suppressed and (segment.metrics or segment.decisions):
            yield segment_where, "is suppressed, but has figures"
        for m, metric in enumerate(segment.metrics):
            if metric.original is None or metric.final is None:
                continue
            found = metric.final - metric.original
            yield from check_close(
                f"{segment_where}/metrics/{m}/difference", metric.difference, found, "it is"
            )
        if segment.decisions is not None:
            yield from _decisions(f"{segment_where}/decisions", segment.decisions)
            if segment.decisions.rows != segment.rows:
                yield f"{segment_where}/decisions/rows", f"says {segment.decisions.rows}, not {segment.rows}"
    yield from _flips(where, attribute, record)


def _complete(report: Report, record: Segments) -> Iterator[Found]:
    """Require every test row in one segment, and every figure of a segment that is not suppressed."""
    rows = next((m.rows for m in report.performance), 0)
    yield from _decided("/segments", record.decisions, report)
    for n, attribute in enumerate(record.attributes):
        where = f"/segments/attributes/{n}"
        total = sum(segment.rows for segment in attribute.segments)
        yield from check_equal(f"{where}/segments", total, rows, "rows in all segments; tested were")
        for m, segment in enumerate(attribute.segments):
            if not segment.suppressed:
                yield from _complete_segment(f"{where}/segments/{m}", segment, report)


def _complete_segment(where: str, segment: Segment, report: Report) -> Iterator[Found]:
    names, wanted = [m.name for m in segment.metrics], [m.name for m in report.performance]
    yield from check_equal(f"{where}/metrics", names, wanted, "the performance has")
    yield from _decided(where, segment.decisions, report)


def _decided(where: str, found: DecisionChange | None, report: Report) -> Iterator[Found]:
    """Require decisions where the task has classes, by direction where the recipe names adverse ones."""
    has_classes = report.data.classes is not None
    if (found is not None) != has_classes:
        yield f"{where}/decisions", "are left out" if has_classes else "are given without classes"
    elif found is not None and report.segments is not None:
        counts = (found.to_adverse, found.to_favourable, found.adverse_original, found.adverse_final)
        if any((count is None) != (report.segments.adverse is None) for count in counts):
            yield f"{where}/decisions", "have a direction without adverse classes, or the reverse"


def _division(where: str, attribute: ProtectedAttribute, bins: Sequence[float] | None) -> Iterator[Found]:
    """Require the edges that the recipe gives, and the names of ranges that follow from edges."""
    if bins is not None:
        wanted = [*map(float, bins)]
        yield from check_equal(f"{where}/edges", attribute.edges, wanted, f"{bundles.RECIPE} says")
    way = VALUES if attribute.edges is None else EDGES if bins is not None else QUARTILES
    yield from check_equal(f"{where}/by", attribute.by, way, "by recipe and edges it is")
    if attribute.edges:
        labels, names = range_labels(attribute.edges), tuple(s.value for s in attribute.segments)
        if names not in (labels, (*labels, MISSING)):
            yield f"{where}/segments", "are not the ranges that the edges give"


def _flips(where: str, attribute: ProtectedAttribute, record: Segments) -> Iterator[Found]:
    """Require that segments do not have more flipped decisions than all rows."""
    parts = [s.decisions for s in attribute.segments if s.decisions is not None]
    if record.decisions is not None and sum(d.flipped for d in parts) > record.decisions.flipped:
        yield where, f"has more flipped decisions than the {record.decisions.flipped} of all rows"


def _decisions(where: str, change: DecisionChange) -> Iterator[Found]:
    if change.flipped > change.rows:
        yield f"{where}/flipped", f"says {change.flipped} of {change.rows} rows"
    adverse, favourable = change.to_adverse, change.to_favourable
    before, after = change.adverse_original, change.adverse_final
    if adverse is None or favourable is None or before is None or after is None:
        return
    if adverse + favourable > change.flipped:
        yield f"{where}/flipped", f"says {change.flipped}, but {adverse} + {favourable} changed sides"
    if before + adverse - favourable != after:
        expected = before + adverse - favourable
        yield f"{where}/adverse_final", f"says {after}, but {before} + {adverse} - {favourable} is {expected}"
