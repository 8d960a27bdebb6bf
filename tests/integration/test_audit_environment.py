"""The auditor's environment as the README gives it: the locked list and glprune without its dependencies."""

import shutil
import subprocess
import sys
from importlib import metadata

import pytest
import torch
from torch import nn

from tests.auditor_requirements import FILE, pins
from tests.paths import ROOT


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Paths of python and glprune in a new virtual environment."""
    folder = tmp_path_factory.mktemp("auditor")
    source = folder / "source"
    shutil.copytree(ROOT / "glprune", source / "glprune", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("examples", "recipes"):  # the wheel holds the ones of `glprune demo`
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    scripts = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    pip = [scripts / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", FILE], check=True)
    subprocess.run([*pip, "--no-deps", source], check=True)
    return scripts


def run(environment, name, *args):
    """Run a program of the environment, with nothing of this one on its path."""
    return subprocess.run(
        [environment / name, *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        cwd=environment,
        env={"PATH": str(environment)},
    )


@pytest.mark.slow
def test_the_environment_has_no_pytorch(environment):
    code = "import glprune, glprune.audit.verify, importlib.util as u; print(glprune.__file__, u.find_spec('torch'))"
    done = run(environment, "python", "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "None"
    assert str(environment.parent) in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["slim", "wide", "mixed", "recurrent"])
def test_a_bundle_verifies_in_it(name, environment, audited):
    done = run(environment, "glprune", "verify", audited[name])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("verified (unsigned)")
    assert "byte for byte" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["german_credit", "german_credit_policy", "mnist"])
def test_the_examples_verify_in_it(name, environment, examples):
    done = run(environment, "glprune", "verify", examples[name].bundle)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("verified (unsigned)")


@pytest.mark.slow
def test_tampering_is_caught_in_it(environment, audited, tmp_path):
    shutil.copytree(audited["slim"], tmp_path / "bundle")
    with (tmp_path / "bundle" / "model.onnx").open("ab") as stream:
        stream.write(b"\0")
    done = run(environment, "glprune", "verify", tmp_path / "bundle")
    assert done.returncode == 1
    assert "C2 model.onnx" in done.stdout


@pytest.mark.slow
def test_a_key_is_made_and_a_bundle_signed_in_it(environment, audited, tmp_path):
    shutil.copytree(audited["slim"], tmp_path / "bundle")
    assert run(environment, "glprune", "keygen", tmp_path / "key").returncode == 0
    assert run(environment, "glprune", "sign", tmp_path / "bundle", "--key", tmp_path / "key").returncode == 0
    done = run(environment, "glprune", "verify", tmp_path / "bundle", "--trust", tmp_path / "key.pub")
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("verified (signed by producer")


@pytest.mark.slow
def test_a_run_in_it_says_what_is_missing(environment, tmp_path):
    torch.save(nn.Linear(2, 1).state_dict(), tmp_path / "model.pt")
    recipe = ROOT / "recipes" / "german_credit.yaml"
    done = run(environment, "glprune", "run", recipe, tmp_path / "model.pt")
    assert done.returncode == 2
    assert "needs" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_locked_list_is_whole_and_has_no_pytorch():
    """Every package the listed ones need is listed; versions are whatever was locked last."""
    listed = {line.split("==")[0] for line in FILE.read_text().splitlines() if "==" in line}
    assert listed == set(pins())
    assert not {n for n in listed if n.startswith("torch")}
    assert metadata.version("torch")  # it is installed here, so its absence there means something
