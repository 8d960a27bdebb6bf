"""The version has one source, and the pages that repeat it agree with it."""

import re

from ruamel.yaml import YAML

import glprune
from tests.paths import ROOT


def test_changelog_and_citation_name_the_version_and_one_date():
    dated = re.findall(r"^## (\S+) - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = YAML(typ="safe").load((ROOT / "CITATION.cff").read_text())
    assert dated[0] == (glprune.__version__, citation["date-released"])
    assert citation["version"] == glprune.__version__


def test_changelog_goes_from_the_newest_version_to_the_oldest():
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    dates = [heading.split(" - ")[1] for heading in headings if heading != "Unreleased"]
    assert dates == sorted(dates, reverse=True)
