"""A result in a notebook: findings as HTML, one call for a picture, a bundle opened again."""

import io
import re

import pytest

import glprune
from glprune.report.html import render_findings
from glprune.report.sentences import headline


@pytest.fixture(scope="module")
def result(audited):
    return glprune.Result.load(audited["slim"])


def test_a_bundle_opens_as_the_result_its_run_gave(audited, result):
    assert result.bundle == audited["slim"]
    assert [f.name for f in result.report.features if f.status == "removed"]


def test_a_folder_that_is_no_bundle_is_refused_in_one_line(tmp_path):
    with pytest.raises(glprune.GlpruneError, match="not a bundle") as caught:
        glprune.Result.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_notebook_shows_the_findings_of_the_report(result):
    page = result._repr_html_()
    shown = re.sub(r"&#39;", "'", page)
    assert all(sentence in shown for sentence in headline(result.report))
    assert not re.search(r"<(script|style|link|img|iframe)|https?://|\bon\w+=", page)


def test_names_from_the_data_cannot_become_markup(result):
    hostile = result.report.model_copy(update={"title": "<script>alert(1)</script>"})
    page = render_findings(hostile, '"><img src=x onerror=alert(1)>')
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page


def test_the_path_is_drawn_by_one_call(result):
    figure = result.plot_path()
    (axes,) = figure.axes
    lines = [line for drawn in axes.collections for line in drawn.get_segments()]
    assert len(lines) == len(result.report.features)
    assert {len(line) for line in lines} == {len(result.report.path)}
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    assert stream.getvalue().startswith(b"\x89PNG")


def test_the_metric_is_drawn_by_one_call(result):
    left, right = result.plot_metric().axes
    assert list(left.lines[0].get_ydata()) == [p.features for p in result.report.path]
    assert list(right.lines[0].get_ydata()) == [p.metric for p in result.report.path]
