"""Rewrite the documentation's table of attacks from the tests: python -m tests.attack_table."""

from dataclasses import dataclass

from tests.paths import ROOT
from tests.unit.audit import (
    attacks_attestation,
    attacks_columns,
    attacks_evaluate,
    attacks_keys,
    attacks_limits,
    attacks_onnx,
    attacks_page,
    attacks_selection,
    attacks_timestamps,
    test_tampering,
)

PAGE = ROOT / "docs" / "pages" / "reference" / "attacks.md"
_BEGIN = """# Attacks that are tested

Every attack below changes a bundle that verifies, and a test runs it in two ways:

- *plain*: the file is changed and nothing else. The hashes of the manifest (C2), or the list of files (C1), find it; the exit code is 1.
- *sealed*: the producer makes report, page, manifest and signature anew around the lie. The check in the table finds it then, with the
  exit code beside it.

`python -m tests.attack_table` writes this page from the tests. {count} attacks are run. What only the auditor's own knowledge can find
stands at the end; [for auditors](../auditor.md) says what each check proves.
"""
_END = """## What the bundle alone cannot show

A producer who makes every dependent file anew makes another bundle that agrees with itself. The first three below pass without what the
auditor brings along; `--expect-model`, `--expect-original`, `--previous`, `glprune evaluate` on the auditor's own rows or
`glprune reproduce` find them.

"""


@dataclass(frozen=True)
class _Row:
    name: str
    check: str
    code: int


def sections():
    """Return the title of each section, an introduction, and its rows."""
    cases = test_tampering.CASES.items()
    tampering = [_Row(name, ", ".join(sorted(checks)), 1) for name, (_, _, checks) in cases]
    manifests = [_Row(name, check, 1) for name, (_, check) in test_tampering.MANIFESTS.items()]
    return [
        ("Report, plan and files", tampering),
        ("The manifest", manifests),
        ("Columns, rules, caveats and counts", _rows(attacks_columns.ATTACKS)),
        ("How the network was chosen", _rows(attacks_selection.ATTACKS)),
        ("The ONNX files", _rows(attacks_onnx.ATTACKS)),
        ("The page", _rows(attacks_page.ATTACKS)),
        ("Time and memory", _rows(attacks_limits.ATTACKS)),
        (
            "Time and memory, while `glprune evaluate` runs a model",
            _rows(attacks_limits.RUN_ATTACKS, "evaluate"),
        ),
        ("Keys and roles", _rows(attacks_keys.ATTACKS)),
        ("Timestamps", _rows(attacks_timestamps.ATTACKS, "C13")),
        ("Statements on the original", _rows(attacks_attestation.ATTACKS, "C14")),
        ("Figures, found by `glprune evaluate`", _rows(attacks_evaluate.ATTACKS, "evaluate")),
        (
            "Figures, found by `glprune evaluate` on own rows",
            _rows(attacks_evaluate.ON_OWN_ROWS, "evaluate"),
        ),
    ]


def _rows(attacks, check=None):
    return [
        _Row(
            getattr(a, "says", None) or getattr(a, "description", None) or a.name,
            check or a.check,
            getattr(a, "code", None) or a.exit_code,
        )
        for a in attacks
    ]


def page():
    """Return the page of the documentation."""
    parts = sections()
    lines = [_BEGIN.format(count=sum(len(rows) for _, rows in parts))]
    for title, rows in parts:
        lines += [f"## {title}", "", "| attack | found by | exit code |", "|---|---|---|"]
        lines += [f"| {_cell(row.name)} | {row.check} | {row.code} |" for row in rows]
        lines.append("")
    lines.append(_END + "\n".join(f"- {name}" for name in test_tampering.CEILING))
    return "\n".join(lines) + "\n"


def _cell(text):
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
