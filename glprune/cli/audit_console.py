"""Output of the auditor's commands; control characters and markup in names of a bundle are escaped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from glprune._escaping import escape_for_terminal
from glprune._wording import counted
from glprune.cli.tables import new_table, print_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from glprune.audit.findings import Check, Verdict

_COLOURS = {"passed": "green", "failed": "bold red", "incomplete": "yellow", "skipped": "dim"}
_HEADINGS = {
    "trust": "Trust: signatures and digests",
    "recomputation": "Recomputation: the report against the files",
    "policy": "Policy: your rules",
}
_MAX_FINDINGS = 20  # shown of one check
_POINTS_AT_END = 100  # shown of a path at either end


def print_verdict(console: Console, verdict: Verdict) -> None:
    """Print the verdict, every check with its findings, and last what was not checked."""
    colour = {0: "green", 1: "bold red", 3: "yellow", 4: "bold red"}[verdict.exit_code]
    signature = f" ({verdict.signature})"
    console.print(
        Text.assemble((verdict.result, colour), f"{signature}: {escape_for_terminal(verdict.bundle)}"),
        soft_wrap=True,
    )
    if verdict.model:
        console.print(Text(f"model.onnx sha256:{verdict.model}"), soft_wrap=True)
    for kind, heading in _HEADINGS.items():
        console.print()
        print_table(console, _check_table(heading, [c for c in verdict.checks if c.info.kind == kind]))
    for check in verdict.checks:
        for finding in check.findings[:_MAX_FINDINGS]:
            console.print(
                Text(f"{check.id} {escape_for_terminal(str(finding))}", style="red"), soft_wrap=True
            )
        if len(check.findings) > _MAX_FINDINGS:
            console.print(
                Text(f"{check.id} and {len(check.findings) - _MAX_FINDINGS} more findings (--json has all)")
            )
    console.print("\nNot checked:")
    for sentence in verdict.not_checked:
        console.print(Text(f"- {escape_for_terminal(sentence)}"), soft_wrap=True)


def _check_table(heading: str, checks: list[Check]) -> Table:
    table = new_table("id", "check", "status", "finding", whole=("id", "check", "status"))
    table.title, table.title_justify, table.title_style, table.show_header = heading, "left", "bold", False
    for check in checks:
        text = check.info.proves if check.status == "passed" else escape_for_terminal(check.note)
        if check.status == "passed" and check.note:
            text = f"{text} ({escape_for_terminal(check.note)})"
        if check.status == "failed":
            text = f"{counted(len(check.findings), 'finding')} below"
        table.add_row(
            check.id, check.info.title, Text(check.status, style=_COLOURS[check.status]), Text(text)
        )
    return table


def print_comparison(console: Console, found: dict[str, Any]) -> None:
    """Print the differences between two bundles."""
    features = found["features"]
    for key in ("gained", "lost", "new_in_data", "gone_from_data"):
        names = ", ".join(features[key]) or "none"
        _line(console, f"features {key.replace('_', ' ')}: {names}")
    table = new_table("figure", "old", "new", numbers=("old", "new"))
    for name, values in found["metrics"].items():
        table.add_row(
            Text(escape_for_terminal(name)),
            *("-" if values[k] is None else f"{values[k]:.4f}" for k in ("old", "new")),
        )
    for name, pair in found["size"].items():
        table.add_row(name.removesuffix("_after").replace("_", " "), *(f"{v:,}" for v in pair))
    for name, pair in found["hidden"].items():
        table.add_row(
            Text(f"units of {escape_for_terminal(name)}"), *("-" if v is None else f"{v:,}" for v in pair)
        )
    print_table(console, table)
    for key, (old, new) in found["changed"].items():
        _line(console, f"{key}: {_shorten(old)} -> {_shorten(new)}")
    for key, sentences in found["warnings"].items():
        for sentence in sentences:
            _line(console, f"warning {key}: {sentence}")


def print_story(console: Console, story: dict[str, Any]) -> None:
    """Print what a report says of one feature."""
    for sentence in (*_fate(story), *_norms(story), *_measurements(story)):
        _line(console, sentence)
    for warning in story["warnings"]:
        _line(console, f"warning: {warning}")
    points = story["path"]
    left_out = max(0, len(points) - 2 * _POINTS_AT_END)
    if points:
        print_table(console, _path([*points[:_POINTS_AT_END], *points[_POINTS_AT_END + left_out :]]))
    if left_out:
        _line(
            console,
            f"{left_out:,} points between the first and last {_POINTS_AT_END} left out (--json has all)",
        )


def _fate(story: dict[str, Any]) -> Iterator[str]:
    """Say which columns make the feature, and whether and where it was removed."""
    noun = {0: "all columns", 1: "column"}.get(len(story["columns"]), "columns")
    columns = ", ".join(story["columns"])
    yield f"{story['feature']}: {story['status']} ({noun} {columns} of {story['input']})"
    if story["status"] == "removed" and story["exit"]["stage"] is not None:
        yield f"removed in stage {story['exit']['stage']} at lambda {story['exit']['lambda']:.4g}"
    if story["positions"] is not None:
        yield f"read at positions {story['positions']} of the shipped input"


def _norms(story: dict[str, Any]) -> Iterator[str]:
    """State the norms and the penalty weight of the feature's group."""
    norms = story["norms"]
    shipped = "removed" if norms["shipped"] is None else f"{norms['shipped']:.4g}"
    yield (
        f"group of {story['group_size']} weights, norm {norms['original']:.4g} in the trained network, "
        f"{norms['selected']:.4g} at the chosen point, {shipped} as shipped; penalty weight "
        f"{story['penalty_weight']:.4g}"
    )


def _measurements(story: dict[str, Any]) -> Iterator[str]:
    """State stability, drop cost, baselines and policy, as far as the report has them."""
    if story["stability"]:
        kept = story["stability"]
        yield f"kept in {kept['kept_in']} of {counted(kept['of'], 'resample')}"
    if story["drop_cost"]:
        cost = story["drop_cost"]
        without = cost["reason"] if cost["test_without"] is None else f"{cost['test_without']:.4f}"
        yield f"{cost['metric']} on the test split {cost['test_with']:.4f}; without the feature {without}"
    for name, share in story["baselines"].items():
        yield f"kept by {name}: {share}"
    for key, value in (story["policy"] or {}).items():
        if value:
            yield f"policy, {key.replace('_', ' ')}: {', '.join(value)}"


def _path(points: list[dict[str, Any]]) -> Table:
    numbers = ("lambda", "norm", "KKT, zero groups")
    table = new_table("stage", *numbers, "", numbers=numbers, whole=("stage", ""))
    for p in points:
        chosen = "chosen" if p["selected"] else ""
        table.add_row(
            str(p["stage"]), f"{p['lambda']:.4g}", f"{p['norm']:.4g}", f"{p['kkt_zero']:.1e}", chosen
        )
    return table


def _shorten(value: object) -> str:
    text = str(value)
    return text if len(text) <= 90 else text[:87] + "..."


def _line(console: Console, text: str) -> None:
    console.print(Text(escape_for_terminal(text)), soft_wrap=True)
