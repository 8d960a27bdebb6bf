"""The data file that maps rules to sections, and the words that stand nowhere."""

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

import glprune
from glprune.report.html import render_html
from glprune.report.regulations import Regulations, regulations
from glprune.report.sections import evidence_for, sections
from glprune.schema.report import report_schema
from tests.unit.report.test_html import report

PACKAGE = Path(glprune.__file__).parent
RULES = regulations().rules


def resolve(schema, pointer):
    """The schemas a JSON pointer leads to, through references and alternatives."""

    def opened(node):
        if "$ref" in node:
            return opened(schema["$defs"][node["$ref"].rsplit("/", 1)[1]])
        return [leaf for option in node["anyOf"] for leaf in opened(option)] if "anyOf" in node else [node]

    nodes = opened(schema)
    for key in pointer.split("/")[1:]:
        found = [n["properties"][key] for n in nodes if key in n.get("properties", {})]
        nodes = [leaf for node in found for leaf in opened(node)]
    return nodes


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_every_rule_has_a_date_a_source_and_pointers_that_the_schema_knows(rule):
    assert re.match(r"20\d\d", rule.status_date)
    assert rule.sources
    assert rule.status_date <= regulations().as_of
    for pointer in rule.evidence:
        assert resolve(report_schema(), pointer), pointer
    assert not resolve(report_schema(), rule.evidence[0] + "/no_such_key")


def test_rules_are_read_strictly():
    whole = regulations().model_dump()
    for change in (
        {"as_of": "soon"},
        {"rules": [RULES[0].model_dump() | {"sources": []}]},
        {"rules": [RULES[0].model_dump() | {"status_date": ""}]},
        {"rules": [RULES[0].model_dump() | {"met": True}]},
    ):
        with pytest.raises(ValidationError):
            Regulations.model_validate(whole | change)
    assert len({rule.id for rule in RULES}) == len(RULES)


def test_the_page_names_every_rule_its_date_and_its_sources():
    page = render_html(report(["a", "b", "c"]), pictures=False)
    assert "not legal advice" in page
    assert regulations().as_of in page
    for text in (text for rule in RULES for text in (rule.status_date, *(s.url for s in rule.sources))):
        assert text in page


def test_evidence_that_a_report_does_not_hold_is_named_as_absent():
    made = report(["a", "b", "c"])
    by_id = {s.rule.id: s for s in evidence_for(made, list(sections(made).values()))}
    credit = by_id["us-reg-b"]
    assert credit.absent == ["/policy", "/reason_codes", "/segments/decisions", "/proxies"]
    assert [s.id for s in credit.sections] == ["removed", "kept"]
    assert by_id["us-nist-ai-rmf"].front


def test_every_key_of_a_report_is_shown_in_a_section_or_on_the_first_page():
    made = report(["a", "b", "c"])
    everything = made.model_copy(
        update=dict.fromkeys(("policy", "baselines", "frontier", "stability", "drop_costs"), True)
    )
    shown = {key for section in sections(everything).values() for key in section.shows}
    assert {*report_schema()["properties"]} - shown == {
        "title",
        "purpose",
        "warnings",
        "not_measured",
        "lr_halvings",
    }


def test_conformity_is_claimed_nowhere():
    words = " ".join(["compliant", "with"])
    texts = {
        p: p.read_text() for p in PACKAGE.rglob("*") if p.suffix in {".py", ".j2", ".yaml", ".json", ".txt"}
    }
    assert len(texts) > 80
    assert [str(p) for p, text in texts.items() if words in " ".join(text.lower().split())] == []
    page = render_html(report(["a", "b", "c"]))
    assert words not in " ".join(page.lower().split())
    assert words not in json.dumps(report_schema()).lower()
