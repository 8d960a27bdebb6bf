"""Warnings follow from the interval of a change, and the three summaries show every interval."""

import pytest
from rich.console import Console

from glprune.cli.console import print_report
from glprune.report.html import render_html
from glprune.report.markdown import render_markdown
from glprune.report.uncertainty import is_clear_int8_loss, is_clear_loss, loss_sentence
from glprune.schema.metrics import HIGHER_IS_BETTER
from glprune.schema.report import Interval, Metric, PairedIntervals, QuantizedMetric
from tests.unit.report.test_html import report


def intervals(low, high, network="final", value=0.8):
    return PairedIntervals(
        method="bootstrap",
        resamples=2000,
        seed=3,
        values={
            name: Interval(low=value - 0.1, high=value + 0.1) for name in ("original", "zeroed", network)
        },
        differences={name: Interval(low=low, high=high) for name in ("zeroed", network)},
    )


def metric(name, change, low=None, high=None, original=0.8505):
    return Metric(
        name=name,
        higher_is_better=HIGHER_IS_BETTER[name],
        rows=200,
        original=original,
        zeroed=original,
        final=original + change,
        intervals=intervals(low, high) if low is not None else None,
    )


@pytest.mark.parametrize(
    ("found", "lost"),
    [
        (metric("accuracy", -0.0514, -0.08, -0.02), True),  # though AUROC is the target's metric
        (metric("auroc", -0.0044, -0.02, 0.01), False),
        (metric("auroc", -0.0044, -0.006, -0.003), True),
        (metric("log_loss", 0.05, 0.01, 0.09), True),
        (metric("log_loss", -0.05, -0.09, -0.01), False),
        (metric("brier_score", 0.05, -0.01, 0.09), False),
        (metric("accuracy", 0.05, 0.01, 0.09), False),
        (metric("log_loss", 1e-8, 1e-9, 1e-7), False),  # round-off of another runtime
        (metric("auroc", -0.01), True),  # without intervals any loss of the selection metric counts
        (metric("accuracy", -0.01), False),
        (metric("auroc", 0.0), False),
    ],
)
def test_a_loss_is_news_where_its_interval_excludes_chance(found, lost):
    assert is_clear_loss(found, "auroc") == lost


def test_the_warning_gives_both_values_and_the_interval():
    sentence = loss_sentence(metric("accuracy", -0.0514, -0.08, -0.02))
    assert sentence == (
        "Accuracy on the test split is worse than the original network's: 0.7991 against 0.8505 (95 % interval "
        "of the change -0.0800 to -0.0200)."
    )


@pytest.mark.parametrize(("low", "high", "lost"), [(-0.2, -0.1, True), (-0.2, 0.1, False)])
def test_a_loss_by_the_8_bit_file_is_one_too(low, high, lost):
    found = QuantizedMetric(
        name="auroc", higher_is_better=True, float32=0.8, int8=0.7, intervals=intervals(low, high, "int8")
    )
    assert is_clear_int8_loss(found) == lost


def test_page_markdown_and_terminal_show_every_interval_and_how_it_was_computed(capsys):
    performance = [metric("auroc", -0.05, -0.08, -0.02), metric("accuracy", 0.01, -0.03, 0.05)]
    found = report(["a", "b", "c"]).model_copy(update={"performance": performance})
    print_report(Console(width=80), found, "bundle")
    printed = capsys.readouterr().out
    page, summary = render_html(found, pictures=False), render_markdown(found)
    for text in (page, summary):
        assert "-0.0800 to -0.0200" in text
        assert "-0.0300 to +0.0500" in text
        assert "0.7000 to 0.9000" in text
    assert "-0.080 to -0.020" in printed
    assert "0.700 to 0.900" in printed
    assert max(map(len, printed.splitlines()[:20])) <= 80
    for text in (page, summary, " ".join(printed.split())):
        assert "2,000 resamples of the rows with seed 3" in text
