"""Tables of the terminal at every width: text wraps, numbers are never cut."""

import re

import pytest
from rich.console import Console

from glprune.cli import console as run_console
from glprune.cli.audit_console import print_comparison
from glprune.cli.tables import new_table, print_table
from glprune.inspection import SetFacts
from glprune.schema.report import Interval, Metric, PairedIntervals
from tests.unit.report.test_html import report

WIDTHS = [30, 50, 80, 200]


def in_ordinary_units(name):
    """A metric in the units of a target in the hundred thousands."""
    values = {which: Interval(low=198765.4321, high=201234.5678) for which in ("original", "zeroed", "final")}
    intervals = PairedIntervals(
        method="bootstrap",
        resamples=2000,
        seed=0,
        values=values,
        differences={w: Interval(low=-1234.5678, high=8765.4321) for w in ("zeroed", "final")},
    )
    return Metric(
        name=name,
        higher_is_better=False,
        rows=200,
        original=200123.4567,
        zeroed=200123.4567,
        final=212469.0134,
        intervals=intervals,
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_results_show_whole_numbers_at_every_width(capsys, width):
    found = report(["a"]).model_copy(
        update={"performance": [in_ordinary_units(n) for n in ("auroc", "log_loss")]}
    )
    run_console.print_report(Console(width=width), found, "bundle")
    table = capsys.readouterr().out.partition("change\n")[2]
    numbers = {"200123.4567": 4, "212469.0134": 2, "+12345.5567": 2, "201234.568": 6, "+8765.432": 2}
    for number, times in numbers.items():
        assert len(re.findall(rf"(?<!\S){re.escape(number)}(?!\S)", table)) == times


def test_results_in_ordinary_units_fit_80_columns(capsys):
    found = report(["a"]).model_copy(update={"performance": [in_ordinary_units("auroc")]})
    run_console.print_report(Console(width=80), found, "bundle")
    assert max(map(len, capsys.readouterr().out.splitlines()[:25])) <= 80


@pytest.mark.parametrize("width", WIDTHS)
def test_a_table_wraps_text_and_not_numbers(capsys, width):
    table = new_table("name", "share of all", "why", numbers=("share of all",))
    table.add_row("encoder.layers[0].attention", "12,345.6789", "it is read by two layers [bold]")
    print_table(Console(width=width), table)
    printed = capsys.readouterr().out
    assert "12,345.6789" in printed
    assert "…" not in printed
    assert width < 80 or "encoder.layers[0].attention" in printed
    assert width < 80 or "[bold]" in printed


@pytest.mark.parametrize("width", WIDTHS)
def test_sets_of_an_inspection_show_whole_numbers(capsys, width):
    facts = SetFacts(
        name="encoder.layers.0.feed_forward.linear1",
        kind="hidden",
        groups=1_234_567,
        units=7_654_321,
        strength=0.123456,
        removal="exact",
        refused=None,
        inexact=None,
        readers=("encoder.layers.0.feed_forward.linear2.weight",),
        attributes=(),
        planner="both",
    )
    print_table(Console(width=width), run_console._set_table([facts]))
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("1,234,567", "7,654,321", "0.123456", "hidden"))


@pytest.mark.parametrize("width", WIDTHS)
def test_the_auditor_s_tables_show_whole_numbers(capsys, width):
    found = {
        "features": {k: [] for k in ("gained", "lost", "new_in_data", "gone_from_data")},
        "metrics": {"mean absolute error of a plugin": {"old": 123456.7891, "new": 223456.7891}},
        "size": {"parameters_after": (123_456_789, 23_456_789)},
        "hidden": {"encoder.layers.0.feed_forward.linear1": (1024, 512)},
        "changed": {},
        "warnings": {},
    }
    print_comparison(Console(width=width), found)
    printed = capsys.readouterr().out
    assert all(t in printed for t in ("123456.7891", "223456.7891", "123,456,789", "23,456,789", "512"))
