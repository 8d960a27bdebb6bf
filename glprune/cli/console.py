"""Output of ``run`` and ``inspect``: bars on a terminal, plain lines in a log, only notes if quiet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import progress as bars
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn

from glprune._escaping import escape_for_terminal
from glprune._wording import counted
from glprune.cli.tables import fits, new_table, print_table
from glprune.report.html import compared
from glprune.report.sentences import file_sentence, headline
from glprune.report.uncertainty import WHICH, method_sentence, with_interval
from glprune.runtime.events import Event, Notice, OriginalMeasured, PointDone, Progress, Stage
from glprune.schema.metrics import label, metric_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from glprune.inspection import Inspection, SetFacts
    from glprune.schema.report import PathPoint, Report


class PipedConsole(Console):
    """A console that stops printing when its pipe is closed, instead of ending the run."""

    def on_broken_pipe(self) -> None:
        """Print nothing more."""
        self.quiet = True


class ProgressReporter:
    """Print the events of a run.

    Args:
        console: Where to print; a console that is not a terminal gets plain lines.
        quiet: Print notes only.
    """

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self.console, self.quiet = console, quiet
        self.progress: bars.Progress | None = None
        self.task: TaskID | None = None

    def __enter__(self) -> ProgressReporter:
        if self.console.is_terminal and not self.quiet:
            self.progress = bars.Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[detail]}", markup=False),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
            )
            self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.progress is not None:
            self.progress.stop()

    def __call__(self, event: Event) -> None:
        """Print one event."""
        if isinstance(event, Notice):
            _print(self.console, f"note: {event.text}")
        elif isinstance(event, OriginalMeasured):
            if not self.quiet:
                _print(self.console, _original(event))
        elif not self.quiet and self.progress is not None:
            self._advance(self.progress, event)
        elif not self.quiet:
            _print(self.console, _line(event))

    def _advance(self, progress: bars.Progress, event: Stage | PointDone | Progress) -> None:
        if isinstance(event, Stage):
            if self.task is not None:
                progress.remove_task(self.task)
            self.task = progress.add_task(event.name, total=None, detail=escape_for_terminal(event.detail))
        elif self.task is not None and isinstance(event, Progress):
            progress.update(self.task, total=event.of, completed=event.done, detail=_part(event))
        elif self.task is not None and isinstance(event, PointDone):
            progress.update(
                self.task, total=max(event.of, event.index), completed=event.index, detail=_point(event.point)
            )


def _print(console: Console, text: str) -> None:
    console.print(escape_for_terminal(text), markup=False, highlight=False, soft_wrap=True)


def _line(event: Stage | PointDone | Progress) -> str:
    if isinstance(event, Stage):
        return f"{event.name}: {event.detail}" if event.detail else event.name
    if isinstance(event, Progress):
        return f"  {_part(event)}"
    return f"  point {event.index}: {_point(event.point)}"


def print_original(console: Console, found: OriginalMeasured) -> None:
    """Print the metrics of the original network on one split."""
    _print(console, _original(found))


def _original(found: OriginalMeasured) -> str:
    values = ", ".join(f"{label(name)} {metric_text(value)}" for name, value in found.metrics.items())
    return f"original network on {found.split} ({counted(found.rows, 'row')}): {values}"


def _part(event: Progress) -> str:
    return f"{event.done} of {event.of} {event.what}"


def _point(point: PathPoint) -> str:
    return (
        f"lambda {point.lam:.3g}, {counted(point.features, 'feature')}, {point.hidden:,} hidden, "
        f"metric {point.metric:.4f}, KKT {point.kkt_zero:.1e} (zero groups), {point.kkt_active:.1e} (others)"
    )


def print_report(console: Console, report: Report, bundle: str) -> None:
    """Print the findings of a run and the bundle's folder."""
    for sentence in headline(report):
        console.print(escape_for_terminal(sentence), markup=False, highlight=False)
    table = _performance_table(report)
    print_table(console, table if fits(console, table) else _performance_table(report, stacked=True))
    if method := method_sentence([metric.intervals for metric in report.performance]):
        console.print(f"second lines: {method}", markup=False, highlight=False)
    _print_compared(console, report)
    for warning in report.warnings:
        console.print(escape_for_terminal(f"warning: {warning}"), markup=False, highlight=False)
    console.print(escape_for_terminal(file_sentence(report)), markup=False, highlight=False)
    _print(console, f"bundle: {bundle}")


def _performance_table(report: Report, stacked: bool = False) -> Table:
    """A table of the metrics, with intervals below; ``stacked``: each end on a line of its own."""
    what = "agreement" if report.task == "distillation" else "metric"
    numbers = ("original", "zeroed", "shipped", "change")
    table = new_table(f"{what} on the test split", *numbers, numbers=numbers)
    for metric in report.performance:
        cells = [with_interval(metric, which, "{}\n{}", digits=3) for which in WHICH]
        if stacked:
            cells = [cell.replace(" to ", " to\n") for cell in cells]
        table.add_row(label(metric.name), *cells)
    return table


def _print_compared(console: Console, report: Report) -> None:
    """Print the baselines beside the shipped network, if they were measured."""
    rows = compared(report)
    if not rows:
        return
    metrics = [label(metric.name) for metric in report.performance]
    table = new_table("selection, on the test split", *metrics, numbers=metrics)
    for row in rows:
        table.add_row(row.label, *row.test)
    print_table(console, table)
    for note in report.baselines.notes if report.baselines else ():
        console.print(escape_for_terminal(f"note: {note}"), markup=False, highlight=False)


def print_inspection(console: Console, inspection: Inspection) -> None:
    """Print what a run would group and remove, what it cannot remove, and its cost."""
    print_table(console, _set_table(inspection.sets))
    proved = sum(facts.refused is None for facts in inspection.sets)
    equal = sum(facts.planner == "both" for facts in inspection.sets)
    rows = ", ".join(f"{name} {count:,}" for name, count in inspection.rows.items())
    lines = [
        f"{proved} of {len(inspection.sets)} plans hold on random weights; torch-pruning's own plan is the "
        f"same for {equal} of them",
        f"parameters {inspection.parameters:,}, multiply-accumulates for one row {inspection.macs:,}",
        f"rows: {rows}",
        f"lambda_max {inspection.lambda_max:.4g}",
        f"cost: about {inspection.seconds:.0f} s of processor time for {inspection.passes:,} passes over the "
        f"training rows, at {counted(inspection.points, 'lambda')}; {inspection.not_counted} are not counted",
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False)
    for note in inspection.notes:
        console.print(escape_for_terminal(f"note: {note}"), markup=False, highlight=False)


def _set_table(sets: Sequence[SetFacts]) -> Table:
    """A table with a row for each set of units that are removed together."""
    names = ("units of", "kind", "groups", "units", "strength", "removal", "read by / because")
    table = new_table(*names, numbers=("groups", "units", "strength"), whole=("kind",))
    for facts in sets:
        table.add_row(
            escape_for_terminal(facts.name),
            facts.kind,
            f"{facts.groups:,}",
            f"{facts.units:,}",
            "-" if facts.strength is None else f"{facts.strength:g}",
            *map(escape_for_terminal, _removal(facts)),
        )
    return table


def _removal(facts: SetFacts) -> tuple[str, str]:
    """How a set is removed, and the tensors that read it or the reason why it is kept."""
    if facts.refused:
        return "refused", facts.refused
    removal = f"inexact: {facts.inexact}" if facts.inexact else facts.removal
    sizes = f" (sizes: {', '.join(facts.attributes)})" if facts.attributes else ""
    return removal, ", ".join(facts.readers) + sizes


def as_json(inspection: Inspection) -> dict[str, Any]:
    """Return an inspection as JSON values."""
    names = ("name", "columns", "weights", "norm")
    return {
        "original": [vars(found) | {"metrics": dict(found.metrics)} for found in inspection.original],
        "sets": [
            vars(facts) | {"readers": list(facts.readers), "attributes": list(facts.attributes)}
            for facts in inspection.sets
        ],
        "features": [dict(zip(names, feature, strict=True)) for feature in inspection.features],
        "parameters": inspection.parameters,
        "macs": inspection.macs,
        "rows": inspection.rows,
        "lambda_max": inspection.lambda_max,
        "points": inspection.points,
        "passes": inspection.passes,
        "seconds_per_pass": inspection.seconds_per_pass,
        "seconds": inspection.seconds,
        "not_counted": inspection.not_counted,
        "notes": list(inspection.notes),
    }
