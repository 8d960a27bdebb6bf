"""Every bad input is one line, with its exit code, and leaves nothing."""

import re
import shlex
import shutil

import pytest
from click.testing import CliRunner

from glprune.cli import main
from tests.bad_inputs import CODE, DATA, RECIPES, SETTINGS, write_problem
from tests.bad_models import MODELS

CASES = {case.name: case for case in (*RECIPES, *SETTINGS, *CODE, *DATA, *MODELS)}


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
def test_a_bad_input_is_one_line_with_its_exit_code_and_leaves_nothing(name, place):
    case = CASES[name]
    case.make(place)
    before = listing(place)
    done = invoke(case.command)
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert fits(lines[0], f"glprune: {case.message}"), lines[0]
    assert done.exit_code == case.code
    assert isinstance(done.exception, SystemExit)
    assert done.stdout == ""
    assert listing(place) == before


def test_the_corpus_is_large_and_no_name_is_there_twice():
    assert len(CASES) == len([*RECIPES, *SETTINGS, *CODE, *DATA, *MODELS])
    assert len(CASES) >= 120
