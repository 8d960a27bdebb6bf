"""The list of columns, and what follows from recipe and figures: attacks, and the auditor's own list."""

import json

import pytest
from click.testing import CliRunner

from glprune.audit.checks.columns import read_columns
from glprune.audit.verify import VerificationOptions, verify
from glprune.cli.main import main
from glprune.errors import UsageError
from glprune.schema.report import Policy
from tests.bundle_fixtures import NAMES
from tests.unit.audit.attack import failed, told, verified
from tests.unit.audit.attacks_columns import ATTACKS


@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name)
def test_a_lie_is_found_by_what_follows_from_the_rest(attack, sealed, audited, producer, tmp_path):
    verdict = verified(attack, audited, *producer, tmp_path / "bundle", sealed)
    assert verdict.exit_code == attack.exit_code, told(verdict)
    assert (attack.check if sealed else "C2") in failed(verdict), told(verdict)


def with_policy(bundle, **rules):
    options = VerificationOptions(policy=(Policy(**rules), "rules.yaml"))
    return verify(bundle, options, isolated=False)


@pytest.mark.parametrize(
    ("base", "rules", "words"),
    [
        ("mixed", {"must_drop": ["codes"]}, "the file reads 'codes'"),  # an input
        ("mixed", {"must_drop": ["kind"]}, "must_drop lists 'kind'"),  # one of its columns
        ("slim", {"must_drop": ["pair"]}, "the file reads 'pair'"),
        ("slim", {"must_drop": ["A"]}, "'a', whose name looks like it"),
        ("slim", {"must_drop": ["\u0430"]}, "lists '\\u0430'; the file reads 'a', whose name looks like it"),
        ("slim", {"must_drop": ["a\u200b"]}, "lists 'a\\u200b'; the file reads 'a'"),
        ("slim", {"must_drop": ["sexx"]}, "the rule has no effect"),
        ("slim", {"protected": ["sexx"]}, "the rule has no effect"),
        ("slim", {"derived_from": {"sexx": ["birth"]}}, "the rule has no effect"),
        ("slim", {"must_keep": ["sexx"]}, "nothing that is read is it"),
    ],
)
def test_rules_hold_for_everything_that_is_read_and_name_what_there_is(base, rules, words, audited):
    verdict = with_policy(audited[base], **rules)
    assert verdict.exit_code == 4, told(verdict)
    policy = next(c for c in verdict.checks if c.id == "C11")
    assert any(words in str(finding) for finding in policy.findings), told(verdict)


@pytest.mark.parametrize(
    "rules",
    [
        {"must_drop": ["y"]},  # the target, a column outside of the network
        {"must_drop": ["kind", "h"], "protected": ["kind"]},
        {"must_drop": ["birth"], "derived_from": {"h": ["birth"]}},
        {"must_keep": ["pair", "a"]},
    ],
)
def test_rules_that_are_met_pass(rules, audited):
    verdict = with_policy(audited["slim"], **rules)
    assert verdict.exit_code == 0 or failed(verdict) == set(), told(verdict)
    assert "C11" not in failed(verdict)


HEADERS = {
    "a header of the data file": ",".join([*NAMES, "kind", "place", "y"]),
    "a quoted header": ",".join(f'"{name}"' for name in NAMES),
    "one name a line": "\n".join(NAMES),
    "a list": json.dumps(NAMES),
    "a data file": ",".join(NAMES) + "\n" + "1," * 7 + "1\n",
}


@pytest.mark.parametrize("form", HEADERS)
@pytest.mark.parametrize("base", ["slim", "wide", "digested"])
def test_the_auditors_own_list_of_columns_is_compared_in_order(form, base, audited, tmp_path):
    (tmp_path / "columns.txt").write_text(HEADERS[form])
    columns = read_columns(tmp_path / "columns.txt")
    same = verify(audited[base], VerificationOptions(columns=(columns, "columns.txt")), isolated=False)
    assert "C7" not in failed(same), told(same)
    columns[0], columns[1] = columns[1], columns[0]
    other = verify(audited[base], VerificationOptions(columns=(columns, "columns.txt")), isolated=False)
    assert failed(other) == {"C7"}
    assert "columns.txt column 0: is 'b'; the report has 'a' there" in told(other)


@pytest.mark.parametrize("text", ["", "[]", "[1, 2]", '{"a": 1}', "[\n"])
def test_a_list_without_names_is_refused(text, tmp_path):
    (tmp_path / "columns.json").write_text(text)
    if text.startswith("{"):  # one name a line
        assert read_columns(tmp_path / "columns.json") == ['{"a": 1}']
        return
    with pytest.raises(UsageError, match=r"columns\.json"):
        read_columns(tmp_path / "columns.json")


def test_names_of_the_list_that_the_network_does_not_read_are_named(audited):
    columns = (["y", *NAMES], "columns.txt")
    verdict = verify(audited["slim"], VerificationOptions(columns=columns), isolated=False)
    assert "C7" not in failed(verdict), told(verdict)
    assert "of columns.txt the network does not read 'y'" in told(verdict)


def test_the_command_line_takes_the_list(audited, tmp_path):
    (tmp_path / "columns.csv").write_text(",".join(NAMES[:-1]))
    done = CliRunner().invoke(
        main, ["verify", str(audited["slim"]), "--expect-columns", str(tmp_path / "columns.csv")]
    )
    assert done.exit_code == 1
    assert "lists 7 columns; the network takes 8" in " ".join(done.stdout.split())
    missing = CliRunner().invoke(main, ["verify", str(audited["slim"]), "--expect-columns", "nowhere.csv"])
    assert missing.exit_code == 2
    assert "nowhere.csv cannot be read" in missing.stderr
