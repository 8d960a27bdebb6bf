"""Counts in sentences have the noun in the right number."""

import pytest

from glprune._wording import counted
from glprune.report.html import render_html
from glprune.report.markdown import render_markdown
from glprune.report.sentences import headline
from tests.unit.report.test_html import report


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 features"), (1, "1 feature"), (1.0, "1 feature"), (1200, "1,200 features")]
)
def test_a_single_thing_has_no_plural(number, text):
    assert counted(number, "feature") == text


def test_a_report_on_one_row_and_one_input_speaks_of_one():
    found = report(["a", "b", "c"])
    single = found.model_copy(update={"performance": [found.performance[0].model_copy(update={"rows": 1})]})
    for text in (render_html(single, pictures=False), render_markdown(single), " ".join(headline(single))):
        assert "1 test row is" in text
        assert "1 test rows" not in text
