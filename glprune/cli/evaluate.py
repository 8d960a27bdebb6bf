"""``glprune evaluate``: the figures of a bundle on an auditor's rows. It does not need PyTorch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from glprune._escaping import escape_for_terminal
from glprune._wording import counted
from glprune.cli.audit import timeout_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from glprune.audit.evaluation.evaluate import Evaluation
    from glprune.audit.evaluation.figures import Figure
    from glprune.audit.evaluation.rows import SplitName
    from glprune.schema.report import Interval

_EPILOG = (
    "Exit codes: 0 the figures agree with the report; 1 some do not, or the bundle was changed; 2 usage, or "
    "data that cannot be used; 3 incomplete: metrics of the report could not be compared, or a model was "
    "stopped; 5 unreadable or unknown schema."
)
_WIDTH = 170
_path = click.Path(path_type=Path)


@click.command(epilog=_EPILOG)
@click.argument("bundle", type=_path)
@click.option(
    "--data",
    type=_path,
    metavar="FILE",
    help="Rows with their targets: CSV, Parquet, a folder of Parquet, or arrays (.npz, .safetensors). The "
    "data file or test file of the report is known by its SHA-256.",
)
@click.option(
    "--loader",
    metavar="FILE.py:FUNCTION",
    help="Function that is called with split='test' and returns batches (inputs, target), instead of --data. "
    "It is your code: it runs in this process, without limits.",
)
@click.option(
    "--split",
    type=click.Choice(["test", "valid", "train", "all"]),
    help="Rows to take: of the data file of the report or one with its split column; for a loader the split "
    "that it is called with [test; all rows of a file without that column].",
)
@click.option(
    "--original",
    type=_path,
    metavar="FILE",
    help="ONNX file of the original network [that of BUNDLE, if export.keep_original kept it].",
)
@timeout_option("Time limit of each model, in seconds.")
@click.option("--overall", is_flag=True, help="Leave out protected attributes: figures over all rows alone.")
@click.option(
    "--disagreements", is_flag=True, help="Print only figures that disagree or that could not be compared."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
def evaluate(
    bundle: Path,
    data: Path | None,
    loader: str | None,
    original: Path | None,
    split: SplitName | None,
    timeout: float,
    overall: bool,
    disagreements: bool,
    as_json: bool,
) -> None:
    """Measure BUNDLE's models on rows of yours and compare with what its report states. Verify it first."""
    from glprune.audit.evaluation.evaluate import Options, as_record
    from glprune.audit.evaluation.evaluate import evaluate as run_evaluation

    found = run_evaluation(bundle, data, loader, original, Options(split, timeout, overall))
    if as_json:
        click.echo(json.dumps(as_record(found), indent=2))
    else:
        _print(found, disagreements)
    sys.exit(found.exit_code)


def _print(found: Evaluation, disagreements: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    from glprune.audit.evaluation.evaluate import summary

    console = Console(highlight=False)
    console.width = max(console.width, _WIDTH)  # a table of wrapped cells cannot be read

    def line(text: str) -> None:
        console.print(Text(escape_for_terminal(text)), soft_wrap=True)

    line(f"{counted(found.rows, 'row')} of {found.source}: {found.kind} ({found.evidence})")
    line(f"{found.rule}.")
    shown = [f for f in found.figures if not disagreements or _is_open(f)]
    if shown:
        console.print(_table(shown))
    for sentence in found.not_evaluated:
        line(f"not evaluated: {sentence}")
    for note in found.notes:
        line(f"note: {note}")
    line(f"{found.result}: {summary(found)}; model.onnx sha256:{found.model}")


def _is_open(figure: Figure) -> bool:
    return figure.agrees is False or (figure.agrees is None and bool(figure.reason))


def _table(figures: Sequence[Figure]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("rows", "model", "figure", box=None, pad_edge=False, header_style="bold")
    for name in ("stated", "found", "95 % interval", "agrees within"):
        table.add_column(name, justify="right")
    table.add_column("")
    for figure in figures:
        style = "bold red" if figure.agrees is False else ""
        table.add_row(*(Text(escape_for_terminal(cell), style=style) for cell in _cells(figure)))
    return table


def _cells(figure: Figure) -> tuple[str, ...]:
    return (
        figure.where,
        figure.model,
        figure.name,
        _number(figure.stated),
        _number(figure.found),
        _range(figure.interval),
        _within(figure),
        _verdict(figure),
    )


def _within(figure: Figure) -> str:
    """Return which stated values agree: those near the found one, up to rounding, or a range."""
    if figure.agrees_within is None:
        return ""
    reach = figure.reach
    width = figure.agrees_within.high - figure.agrees_within.low
    return f"± {reach:.1g}" if width <= 2 * reach * (1 + 1e-6) + 1e-12 else _range(figure.agrees_within)


def _verdict(figure: Figure) -> str:
    reason = f": {figure.reason}" if figure.reason else ""
    if figure.agrees is None:
        return f"not compared{reason}" if reason else ""
    return f"agrees{reason}" if figure.agrees else f"DISAGREES{reason}"


def _number(value: float | None) -> str:
    from glprune.schema.metrics import metric_text

    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else metric_text(value)


def _range(interval: Interval | None) -> str:
    return f"{_number(interval.low)} to {_number(interval.high)}" if interval is not None else ""
