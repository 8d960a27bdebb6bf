"""The page holds what template and matplotlib write, and nothing else; pictures not drawn anew are said to be."""

import shutil
import time

import pytest

from glprune.audit.checks import rendering
from glprune.audit.page_markup import check_page, check_picture
from glprune.audit.parsed_bundle import read_report
from glprune.audit.verify import verify
from glprune.schema import bundle as bundles
from tests.bundle_fixtures import copied
from tests.unit.audit.attack import failed, told, verified
from tests.unit.audit.attacks_page import ATTACKS

REASON = "matplotlib is not installed"


@pytest.fixture(autouse=True)
def cannot_draw(monkeypatch):
    """The auditor's matplotlib is missing: the allowlist alone must find the attack."""
    monkeypatch.setattr(rendering, "_cannot_draw", lambda report: REASON)


@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name)
def test_markup_that_no_report_has_is_found_without_drawing(attack, sealed, audited, producer, tmp_path):
    verdict = verified(attack, audited, *producer, tmp_path / "bundle", sealed)
    assert verdict.exit_code == attack.exit_code, told(verdict)
    assert attack.check in failed(verdict), told(verdict)


@pytest.mark.parametrize("name", ["slim", "wide", "ruled", "mixed", "recurrent"])
def test_pictures_that_cannot_be_drawn_leave_the_page_incomplete(name, audited):
    verdict = verify(audited[name], isolated=False)
    assert verdict.exit_code == 3, told(verdict)
    page = next(c for c in verdict.checks if c.id == "C12")
    assert page.status == "incomplete"
    assert "text and numbers in pictures are unchecked" in page.note
    assert f"Text and numbers in the pictures of report.html: {REASON}." in verdict.not_checked


def test_a_number_changed_in_a_picture_is_found_only_where_it_is_drawn_again(audited, tmp_path, monkeypatch):
    copy = copied(audited["slim"], tmp_path / "bundle")
    path = copy / bundles.PAGE
    text = path.read_text(encoding="utf-8")
    at = text.index("<text")
    path.write_text(text[:at] + text[at:].replace("</text>", "9</text>", 1), encoding="utf-8")
    given = read_report(copy.folder), path.read_bytes(), (copy / bundles.SUMMARY).read_bytes()
    assert rendering.check_rendering(*given).status == "incomplete"
    monkeypatch.setattr(rendering, "_cannot_draw", lambda _: None)
    assert rendering.check_rendering(*given).status == "failed"


@pytest.mark.parametrize("version", ["3.9", "3.11"])
def test_text_spread_over_places_as_older_matplotlib_writes_it_is_allowed(version):
    x = {"3.9": "0 7.479492 16.773926", "3.11": "0"}[version]
    span = f'<tspan x="{x}" y="-0.8734375000000014" style="font-size: 9px; font-family: \'DejaVu Sans\'">10</tspan>'
    assert not list(check_picture(f'<svg><g id="text_1"><text style="fill: #3a3f44">{span}</text></g></svg>'))


def test_tags_without_end_are_refused_by_number():
    assert "1,000,000 tags" in next(check_picture("<svg>" + "<g>" * 1_000_001 + "</svg>"))
    assert "1,000,000 tags" in next(check_page("<p>" * 1_000_001))


def test_another_version_with_a_clean_page_is_incomplete(audited, tmp_path):
    shutil.copytree(audited["slim"], tmp_path / "bundle")
    report = read_report(tmp_path / "bundle")
    versions = report.run.versions | {"glprune": "0.1.9"}
    older = report.model_copy(update={"run": report.run.model_copy(update={"versions": versions})})
    raw = [(tmp_path / "bundle" / name).read_bytes() for name in (bundles.PAGE, bundles.SUMMARY)]
    check = rendering.check_rendering(older, *raw)
    assert check.status == "incomplete"
    assert "0.1.9" in check.note


@pytest.mark.parametrize(
    "tail",
    ['<a "', "<a b='", "<!--", "</", "<", "<a b", "<![CDATA[", "<title>", "<a =", "&#"],
)
def test_a_page_that_does_not_end_takes_linear_time(tail, audited):
    text, pictures = rendering._pictures((audited["slim"] / bundles.PAGE).read_text(encoding="utf-8"))
    seconds = []
    for times in (20_000, 160_000):
        started = time.process_time()
        list(check_page(text + times * tail))
        list(check_picture(pictures[0].replace("</svg>", times * tail + "</svg>")))
        seconds.append(time.process_time() - started)
    assert seconds[1] < 5
