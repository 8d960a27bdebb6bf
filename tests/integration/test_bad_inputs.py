"""Every bad input is one line, with its exit code, and leaves nothing."""

import functools
import re
import shlex
import shutil
import sys

import pytest
from click.testing import CliRunner

import glprune.audit.verify
from glprune.audit.checks import rendering
from glprune.audit.signing import make_key
from glprune.cli.main import main
from tests.bad_bundles import REFUSED, TAMPERED
from tests.bad_code import LATE_CODE, ODD_CODE
from tests.bad_data import BAD_DATA
from tests.bad_inputs import CODE, DATA, RECIPES, SETTINGS, write_problem
from tests.bad_models import MODELS

ALL = (*RECIPES, *SETTINGS, *CODE, *ODD_CODE, *DATA, *BAD_DATA, *MODELS, *REFUSED)
CASES = {case.name: case for case in ALL}


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    folder = tmp_path_factory.mktemp("problem")
    write_problem(folder)
    return folder


@pytest.fixture
def place(problem, tmp_path, monkeypatch):
    """A copy of the problem, the working directory."""
    folder = tmp_path / "place"
    shutil.copytree(problem, folder)
    monkeypatch.chdir(folder)
    return folder


def listing(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if "__pycache__" not in p.parts}


def invoke(command):
    return CliRunner().invoke(main, shlex.split(command), prog_name="glprune")


def fits(text, pattern):
    return re.fullmatch(".*".join(map(re.escape, pattern.split("..."))), text) is not None


@pytest.mark.parametrize("name", CASES)
def test_a_bad_input_is_one_line_with_its_exit_code_and_leaves_nothing(name, place, request):
    case = CASES[name]
    if case in REFUSED:
        request.getfixturevalue("bundle")
    case.make(place)
    before = listing(place)
    done = invoke(case.command)
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert fits(lines[0], f"glprune: {case.message}"), lines[0]
    assert done.exit_code == case.code
    assert isinstance(done.exception, SystemExit)
    assert all(line.startswith("original network on ") for line in done.stdout.splitlines())
    assert listing(place) == before


@pytest.mark.parametrize("case", LATE_CODE, ids=lambda case: case.name)
def test_a_forward_that_fails_in_training_is_one_line_and_no_bundle(case, place):
    case.make(place)
    done = invoke(case.command)
    (line,) = done.stderr.splitlines()
    assert fits(line, f"glprune: {case.message.rstrip('.')}..."), line
    assert done.exit_code == case.code
    assert done.stdout == ""
    assert not (place / "out").exists()


@pytest.fixture
def bundle(place, audited, monkeypatch):
    """A copy of a bundle in the place, to be verified in this process and without pictures; and a key."""
    shutil.copytree(audited["slim"], place / "bundle")
    make_key(place / "me")
    monkeypatch.setattr(rendering, "can_draw", lambda: False)
    inside = functools.partial(glprune.audit.verify.verify, isolated=False)
    monkeypatch.setattr(glprune.audit.verify, "verify", inside)
    return place / "bundle"


@pytest.mark.parametrize("case", TAMPERED, ids=lambda case: case.name)
def test_a_bad_bundle_fails_with_a_finding_and_nothing_is_run(case, bundle, place):
    case.make(place)
    before = listing(place)
    done = invoke("verify bundle")
    assert done.exit_code == 1, done.output
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == "FAILED (unsigned): bundle" or "signed" in lines[0]
    assert [line for line in lines if fits(line, case.finding)], done.stdout
    assert "\x1b" not in done.stdout
    assert listing(place) == before


@pytest.mark.parametrize(
    "command", ["verify bundle", "explain bundle a", "render bundle --out rendering.html", "diff bundle bundle", "sign bundle --key me"]
)  # fmt: skip
def test_the_auditors_commands_import_nothing_that_a_bundle_names(command, bundle, place, monkeypatch):
    monkeypatch.syspath_prepend(place)
    for name in ("plan.json", "recipe.resolved.yaml"):
        path = bundle / name
        path.write_text(path.read_text().replace("networks.py:plain", "evil:build"))
    glprune.schema.manifest.write_manifest(bundle)
    invoke(command)
    assert "evil" not in sys.modules
    assert not (place / "ran").exists()


def test_the_corpus_is_large_and_no_name_is_there_twice():
    assert len(CASES) == len(ALL)
    assert len(CASES) >= 390
