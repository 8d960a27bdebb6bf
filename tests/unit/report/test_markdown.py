"""report.md, read back by a Markdown parser: whatever features are called, they stay names."""

import pytest
from markdown_it import MarkdownIt

from glprune.report.markdown import code, render_markdown, text
from tests.unit.report.test_html import report

HOSTILE = [
    "plain_name",
    "a|b",
    "a\\|b",
    "back`tick``s`",
    "<script>alert(1)</script>",
    "two\nlines",
    "cr\rlf\r\n| --- |",
    "\\",
    "![x](https://example.com/x.png)",
    "[x](javascript:alert(1))",
    "@someone",
    "https://example.com",
    "&lt;b&gt; &amp;",
    "right\u202eleft",
    " ",
    "größe & 'preis'",
    "</code></td><td>x",
]
VISIBLE = {"two\nlines": "two\\u000alines", "cr\rlf\r\n| --- |": "cr\\u000dlf\\u000d\\u000a| --- |"}
VISIBLE |= {"right\u202eleft": "right\\u202eleft"}


def parsed(source):
    return MarkdownIt("commonmark", {"html": True}).enable("table").parse(source)


def words(inline):
    """What a reader sees of one run of text, and the HTML tags in it."""
    children = inline.children or []
    seen = "".join(c.content for c in children if c.type in ("text", "text_special", "code_inline"))
    return seen, [c.content for c in children if c.type == "html_inline"]


def cells(source):
    """Rows of the first table's body, as a reader sees them."""
    tokens = parsed(source)
    start = next(n for n, t in enumerate(tokens) if t.type == "tbody_open")
    rows = []
    for n, token in enumerate(tokens[start:], start):
        if token.type == "tr_open":
            rows.append([])
        if token.type == "td_open":
            rows[-1].append(words(tokens[n + 1]))
        if token.type == "tbody_close":
            return rows
    raise AssertionError("the table does not end")


def test_every_feature_name_is_one_cell_and_reads_as_it_is():
    rows = cells(render_markdown(report([*HOSTILE, "kept"], removed=len(HOSTILE))))
    assert [row[0][0] for row in rows] == [VISIBLE.get(name, name) for name in HOSTILE]
    assert {len(row) for row in rows} == {4}
    assert {tag for row in rows for _, tags in row for tag in tags} <= {"<code>", "</code>"}


@pytest.mark.parametrize("name", HOSTILE)
def test_sentences_hold_names_as_plain_text(name):
    made = report([name, "b", "c"]).model_copy(
        update={"title": name, "purpose": name, "warnings": [name], "not_measured": [f"1. {name}"]}
    )
    tokens = parsed(render_markdown(made))
    allowed = {"heading", "paragraph", "bullet_list", "list_item", "inline", "hr"}
    allowed |= {"table", "thead", "tbody", "tr", "th", "td"}
    assert {t.type.removesuffix("_open").removesuffix("_close") for t in tokens} <= allowed
    inside = {c.type for t in tokens for c in t.children or ()}
    assert inside <= {"text", "code_inline", "html_inline"}
    tags = {c.content for t in tokens for c in t.children or () if c.type == "html_inline"}
    assert tags <= {"<code>", "</code>"}
    assert sum(t.type == "heading_open" for t in tokens) == 6


def test_plain_names_and_words_stay_readable_in_the_source():
    assert code("credit_history") == "`credit_history`"
    assert code("") == "<code></code>"
    assert text("R² of 0.5 (10 %), more: none.") == "R² of 0.5 (10 %), more: none."
    assert text("snake_case and _this_") == "snake_case and &#95;this&#95;"
    assert text("# a\n- b") == "&#35; a - b"
    assert text("ask @someone") == "ask `@`someone"


def test_the_summary_tells_findings_metrics_sizes_and_what_was_not_measured():
    source = render_markdown(report(["sex", "age", "income"]))
    for part in (
        "- The shipped model has no input for 2 of 3 features: sex, age.",
        "| `sex` | penalty | 1 | 1 |",
        "| AUROC, higher is better | 0.8000 | 0.7500 | -0.0500 | 9 |",
        "| Parameters | 100 | 40 | 40.0 % |",
        "- read me",
        "- calibration",
    ):
        assert part in source
    assert "None." in render_markdown(report(["a", "b"], removed=0))
    assert source == render_markdown(report(["sex", "age", "income"]))
