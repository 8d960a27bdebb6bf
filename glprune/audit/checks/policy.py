"""C11: features that must be dropped or kept, and what is derived from them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from glprune.audit.findings import Finding
from glprune.errors import UsageError
from glprune.schema import bundle as bundles
from glprune.schema.report import Feature, Policy, Report
from glprune.schema.strict_yaml import parse, read_text


def read_policy(path: Path) -> Policy:
    """Read rules of the auditor, YAML or JSON with the keys of the report's ``policy``.

    Raises:
        UsageError: The file cannot be read or is not a policy.
    """
    tree, _ = parse(read_text(path), str(path))
    try:
        return Policy.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        keys = ", ".join(Policy.model_fields)
        raise UsageError(f"{path}: {where}: {first['msg']}; keys: {keys}.") from None


def check_policy(report: Report, policy: Policy, source: str) -> list[Finding]:
    """Check the kept features against rules.

    Args:
        report: The report; C6 and C7 check that the model reads its kept columns.
        policy: The rules.
        source: The file with the rules, for the findings.
    """
    lineage = _lineage(report, policy)
    return [
        Finding(bundles.REPORT if source == bundles.REPORT else source, where, what)
        for where, what in (*_drops(report, policy, lineage), *_keeps(report, policy, lineage))
    ]


def protected_kept(report: Report, policy: Policy) -> list[str]:
    """Return kept features that are, or are derived from, protected ones."""
    lineage = _lineage(report, policy)
    wanted = set(policy.protected)
    return [f.name for f in _kept(report) if lineage[f.name] & wanted]


def _kept(report: Report) -> Iterator[Feature]:
    return (f for f in report.features if f.status == "kept")


def ancestors(feature: Feature, policy: Policy) -> dict[str, str]:
    """Map everything a feature is derived from, including itself and its columns, to the step before it."""
    found = {feature.name: ""} | {column: feature.name for column in feature.columns}
    waiting = list(found)
    while waiting:
        name = waiting.pop()
        for parent in policy.derived_from.get(name, []):
            if parent not in found:
                found[parent] = name
                waiting.append(parent)
    return found


def _lineage(report: Report, policy: Policy) -> dict[str, set[str]]:
    return {f.name: set(ancestors(f, policy)) for f in report.features}


def _drops(report: Report, policy: Policy, lineage: dict[str, set[str]]) -> Iterator[tuple[str, str]]:
    forbidden = set(policy.must_drop)
    for n, feature in enumerate(report.features):
        if feature.status != "kept":
            continue
        for name in sorted(lineage[feature.name] & forbidden):
            via = "" if name == feature.name else f", derived from {name!r},"
            yield f"/features/{n}", f"{feature.name!r}{via} is kept; must_drop lists {name!r}"


def _keeps(report: Report, policy: Policy, lineage: dict[str, set[str]]) -> Iterator[tuple[str, str]]:
    present = set().union(*(lineage[f.name] for f in _kept(report)))
    for name in policy.must_keep:
        if name not in present:
            yield "/features", f"must_keep lists {name!r}, but no kept feature is it or is derived from it"
