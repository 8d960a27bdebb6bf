"""``glprune demo`` runs a bundled example out of an installed wheel, in a folder that holds nothing else."""

import os
import subprocess
import sys
import zipfile

import pytest
from click.testing import CliRunner

from glprune.cli.demo import DEMOS
from glprune.cli.main import main
from tests.paths import ROOT


def invoke(*args):
    return CliRunner().invoke(main, [*map(str, args)])


def test_every_demo_has_a_recipe_and_a_model_in_the_repository():
    for demo in DEMOS.values():
        assert (ROOT / demo.recipe).is_file()
        assert (ROOT / demo.model).is_file()


def test_list_prints_a_line_for_each_demo():
    done = invoke("demo", "--list")
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.output.splitlines()] == list(DEMOS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "german-credit",
            "glprune: demo: there is no example 'german-credit'. Did you mean 'german_credit'?",
        ),
        ("iris", "glprune: demo: there is no example 'iris'. Examples: german_credit, mnist."),
    ],
)
def test_unknown_name_is_one_line(name, message):
    done = invoke("demo", name)
    assert done.exit_code == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder a wheel built from this source is unpacked into, its files write-protected."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for path in site.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield site
    for path in (p for p in site.rglob("*") if p.is_dir()):
        path.chmod(0o755)


SCRIPT = """
import sys
import glprune
from glprune.cli.main import main
assert glprune.__file__.startswith(sys.argv.pop(1)), glprune.__file__
main()
"""


@pytest.mark.slow
def test_wheel_prunes_german_credit_in_an_empty_folder(installed, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(installed), "demo", "--out", "pruned"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
    )
    assert done.returncode == 0, done.stderr
    assert "bundle: pruned\nnext: open pruned/report.html, or: glprune verify pruned\n" in done.stdout
    assert os.listdir(tmp_path) == ["pruned"]
