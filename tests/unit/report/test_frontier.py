"""The frontier in the report: a table and a picture, on the page, in Markdown and in a notebook."""

import re

import pytest

from glprune.report.html import render_html
from glprune.report.markdown import render_markdown
from glprune.report.plots import frontier_figure
from glprune.report.sentences import frontier_sentence
from glprune.schema.report import Frontier, FrontierPoint, Interval
from tests.unit.report.test_html import report

NAMES = ["age", "<script>alert(1)</script>", "income", "debts"]


def point(size, test, shipped=False, reason=None):
    return FrontierPoint(
        size=size,
        features=NAMES[:size],
        found_by="backward elimination",
        valid=0.8,
        standard_error=0.01,
        gain=0.0 if size == 4 else -0.02,
        gain_standard_error=0.0 if size == 4 else 0.03,
        test=test,
        test_interval=Interval(low=test - 0.1, high=test + 0.1) if test is not None else None,
        reason=reason,
        parameters=10 * size,
        macs=9 * size,
        shipped=shipped,
    )


@pytest.fixture
def with_frontier():
    points = [point(4, 0.8), point(2, 0.7, shipped=True), point(1, None, reason="<b>no</b> opset.")]
    frontier = Frontier(
        metric="auroc", higher_is_better=True, valid_rows=50, test_rows=60, rule="the rule", points=points
    )
    return report(NAMES).model_copy(update={"frontier": frontier})


def test_the_page_has_a_table_and_a_picture_of_every_size(with_frontier):
    page = render_html(with_frontier)
    section = page.partition('id="frontier"')[2].partition("<h2")[0]
    assert "0.7000 to 0.9000" in section
    assert "<svg" in section
    assert "features kept" in section
    assert "not measured: &lt;b&gt;no&lt;/b&gt; opset." in section
    assert re.search(r'<tr class="selected"><td class="n">2, shipped</td>', section)
    assert "<script" not in page


def test_a_page_without_matplotlib_has_the_table(with_frontier):
    section = render_html(with_frontier, pictures=False).partition('id="frontier"')[2].partition("<h2")[0]
    assert "0.7000 to 0.9000" in section
    assert "<svg></svg>" in section


def test_a_report_without_a_frontier_has_no_section():
    assert 'id="frontier"' not in render_html(report(NAMES), pictures=False)
    assert "Networks of other sizes" not in render_markdown(report(NAMES))


def test_markdown_draws_the_intervals_on_one_scale(with_frontier):
    text = render_markdown(with_frontier)
    assert "| shipped | 2 | 0.8000 | -0.0200 ± 0.0300 | 0.7000 | 0.6000 to 0.8000 | 20 |" in text
    assert "|  | 1 | 0.8000 | -0.0200 ± 0.0300 | not measured | - | 10 |" in text
    _, four, two = text.partition("```text\n")[2].partition("\n```")[0].splitlines()
    assert two.endswith("  shipped")
    assert (two.index("|"), four.rindex("|")) == (10, 57)  # the lowest and the highest end
    assert two.index("o") < four.index("o")


def test_the_figure_has_a_place_for_every_size_and_marks_the_shipped_one(with_frontier):
    axes = frontier_figure(with_frontier.frontier, "AUROC", 0.75).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "4"]
    assert axes.get_xlabel() == "features kept"
    assert len(axes.patches) == 1


def test_the_sentence_names_the_sizes_and_the_rule(with_frontier):
    assert frontier_sentence(with_frontier.frontier) == (
        "One search found networks of 3 sizes, for 4, 2 and 1 features. The one for 2 ships: the rule."
    )
