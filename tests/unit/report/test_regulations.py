"""The data file that maps rules to sections, and the words that stand nowhere."""

import json
import re
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

import pytest
from pydantic import ValidationError

import glprune
from glprune.audit.checks import rendering
from glprune.audit.page_markup import check_page
from glprune.audit.parsed_bundle import read_report
from glprune.audit.verify import verify
from glprune.errors import RecipeError
from glprune.report.html import render_html
from glprune.report.regulations import Regulations, regulations, rules_for
from glprune.report.sections import evidence_for, sections
from glprune.schema import bundle as bundles
from glprune.schema.manifest import make_manifest
from glprune.schema.recipe import Domain, Jurisdiction
from glprune.schema.recipe_loading import load_recipe
from glprune.schema.report import report_schema
from tests.bundle_fixtures import copied, follow
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


PRIMARY = {
    "www.occ.treas.gov",
    "www.ecfr.gov",
    "www.dfs.ny.gov",
    "www.fda.gov",
    "www.canada.ca",
    "eur-lex.europa.eu",
    "doi.org",
}
"""Who publishes the texts of the rules themselves; doi.org leads to NIST's."""
DOMAINS = get_args(Domain)
PLACES = (None, *get_args(Jurisdiction))


def chosen(domain, jurisdiction=None):
    return report(["a", "b", "c"]).model_copy(update={"domain": domain, "jurisdiction": jurisdiction})


def table(page):
    """The section of regulations of a page, without markup; empty where it has none."""
    found = re.search(r'<h2 id="rules">.*?</body>', page, re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", found[0]).split()) if found else ""


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_every_rule_has_a_date_a_primary_source_and_pointers_that_the_schema_knows(rule):
    assert re.match(r"20\d\d", rule.status_date)
    assert urlsplit(rule.source).hostname in PRIMARY
    assert rule.status_date <= regulations().as_of
    for pointer in rule.evidence:
        assert resolve(report_schema(), pointer), pointer
    assert not resolve(report_schema(), rule.evidence[0] + "/no_such_key")


def test_rules_are_read_strictly():
    whole = regulations().model_dump()
    for change in (
        {"as_of": "soon"},
        {"rules": [RULES[0].model_dump() | {"source": ""}]},
        {"rules": [RULES[0].model_dump() | {"domains": ["astrology"]}]},
        {"rules": [RULES[0].model_dump() | {"jurisdictions": []}]},
        {"rules": [RULES[0].model_dump() | {"status_date": ""}]},
        {"rules": [RULES[0].model_dump() | {"met": True}]},
    ):
        with pytest.raises(ValidationError):
            Regulations.model_validate(whole | change)
    assert len({rule.id for rule in RULES}) == len(RULES)


def test_a_report_that_names_no_domain_names_no_rule():
    page = render_html(chosen(None), pictures=False)
    assert table(page) == ""
    assert "legal advice" not in page
    assert "egulation" not in page
    assert [rule.id for rule in RULES if rule.title in page or rule.source in page] == []
    assert rules_for(None, "us") == []


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("domain", DOMAINS)
def test_the_page_has_the_rules_of_its_domain_and_jurisdiction_on_one_printed_page(domain, place):
    page = render_html(chosen(domain, place), pictures=False)
    assert [*check_page(page)] == []
    text = table(page)
    expected = {r.id for r in RULES if domain in r.domains and place in (None, *r.jurisdictions)}
    assert {r.id for r in RULES if r.title in text} == expected
    assert {r.id for r in RULES if r.source in text} == expected
    assert "not legal advice" in text
    assert regulations().as_of in text
    assert ("knows no rule" in text) == (not expected)
    assert len(text.split()) <= 500  # a page of A4 holds about 700 in this size
    for rule in rules_for(domain, place):
        for words in (rule.asks, rule.missing, rule.status_date, *rule.unconfirmed):
            assert " ".join(words.split()) in text


def test_every_domain_and_jurisdiction_has_a_rule():
    assert {d for r in RULES for d in r.domains} == {*DOMAINS}
    assert {j for r in RULES for j in r.jurisdictions} == {*PLACES} - {None}
    assert {r.id for r in rules_for("consumer_credit", "us")} == {
        "us-occ-2026-13",
        "us-reg-b",
        "us-nist-ai-rmf",
    }


def test_evidence_that_a_report_does_not_hold_is_named_as_absent():
    made = chosen("consumer_credit")
    by_id = {s.rule.id: s for s in evidence_for(made, list(sections(made).values()))}
    credit = by_id["us-reg-b"]
    assert credit.absent == ["/policy", "/reason_codes", "/segments/decisions", "/proxies"]
    assert [s.id for s in credit.sections] == ["removed", "kept"]
    assert by_id["us-nist-ai-rmf"].front


def test_domain_and_jurisdiction_of_a_report_follow_from_the_recipe(audited, tmp_path, monkeypatch):
    monkeypatch.setattr(rendering, "_cannot_draw", lambda report: "not drawn here")
    assert read_report(audited["other"]).domain == "insurance"
    assert read_report(audited["slim"]).domain is None
    for name, change in (
        ("slim", {"domain": "consumer_credit"}),
        ("other", {"domain": None}),
        ("other", {"domain": "general"}),
        ("other", {"jurisdiction": "eu"}),
    ):
        copy = copied(audited[name], tmp_path / f"{name}-{next(iter(change.values()))}")
        copy.edit(lambda r, change=change: r.update(change))
        follow(copy)
        copy.write(make_manifest({n: (copy / n).read_bytes() for n in names(copy)}), bundles.MANIFEST)
        failed = {c.id for c in verify(copy.folder, isolated=False).checks if c.status == "failed"}
        assert failed == {"C5"}


def names(copy):
    """The files of the bundle that its manifest lists."""
    return [subject["name"] for subject in copy.json(bundles.MANIFEST)["subject"]]


def test_a_recipe_names_domain_and_jurisdiction(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    base = "task: binary\nmodel: {factory: 'n.py:f'}\ndata: {file: d.csv, target: y}\ntarget: {max_features: 1}\n"
    recipe.write_text(base + "report: {domain: insurance, jurisdiction: eu}\n")
    assert load_recipe(recipe).report.model_dump(include={"domain", "jurisdiction"}) == {
        "domain": "insurance",
        "jurisdiction": "eu",
    }
    for text, message in (
        ("{domain: credit}", "consumer_credit"),
        ("{domain: insurance, jurisdiction: mars}", "'us', 'ca', 'uk' or 'eu'"),
        ("{jurisdiction: us}", "jurisdiction needs report.domain"),
    ):
        recipe.write_text(base + f"report: {text}\n")
        with pytest.raises(RecipeError, match=r"recipe\.yaml:5: report") as caught:
            load_recipe(recipe)
        assert message in str(caught.value)
    recipe.write_text(base)
    assert load_recipe(recipe).report.domain is None


def test_every_key_of_a_report_is_shown_in_a_section_or_on_the_first_page():
    made = report(["a", "b", "c"])
    everything = made.model_copy(
        update=dict.fromkeys(("policy", "baselines", "frontier", "stability", "drop_costs", "domain"), True)
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
