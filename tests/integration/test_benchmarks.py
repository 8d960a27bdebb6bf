"""The benchmarks run: they use inner parts of the package, which move."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.paths import ROOT

FOLDER = ROOT / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """Import a script and call its ``main`` with arguments; nothing of it is left behind."""
    monkeypatch.syspath_prepend(str(FOLDER))
    known, threads = set(sys.modules), torch.get_num_threads()

    def call(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        __import__(name)
        sys.modules[name].main()

    yield call
    torch.set_num_threads(threads)
    for name in set(sys.modules) - known:
        if FOLDER.samefile(Path(getattr(sys.modules[name], "__file__", None) or "/").parent):
            del sys.modules[name]


@pytest.mark.slow
def test_steps_under_the_penalty_are_timed_beside_plain_ones(benchmark, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import path_steps

    monkeypatch.setattr(path_steps, "SUBJECTS", {"MLP": path_steps.SUBJECTS["MLP 784-256-128-10"]})
    out = tmp_path / "overhead.json"
    benchmark("overhead", "--parts", "steps", "profile", "--steps", 1, "--out", out)
    content = json.loads(out.read_text())
    (record,), (profile,) = content["steps"], content["profile"]
    assert record["groups"] == 784 + 256 + 128
    assert record["operator"] > 0
    for name in ("plain", "penalty"):
        calls = {op: count for op, count, _ in profile[name]}
        assert calls["aten::addmm"] == 3  # layers


@pytest.mark.slow
def test_half_of_a_network_is_cut_and_timed(benchmark, tmp_path):
    out = tmp_path / "removal.json"
    benchmark("removal", "--cases", "four layers of 256", "--out", out)
    (record,) = json.loads(out.read_text())["records"]
    assert record["after"] < record["parameters"] / 2
    assert record["refused"] == 0
    assert record["difference"] < 1e-5


@pytest.mark.slow
def test_a_wide_run_finds_the_planted_features(benchmark, tmp_path):
    out = tmp_path / "wide.json"
    benchmark("wide_inputs", "--columns", 60, "--threads", 1, "--work", tmp_path / "wide", "--out", out)
    record = json.loads(out.read_text())["record"]
    assert (record["kept"], record["true"]) == (10, 10)


@pytest.mark.slow
def test_streamed_epochs_are_timed_beside_those_in_memory(benchmark, tmp_path, capsys):
    benchmark("streaming", "make", tmp_path / "large", "--rows", 2000)
    benchmark("streaming", "rate", tmp_path / "large", "--epochs", 1, "--buffer", 4)
    record = json.loads(capsys.readouterr().out)
    assert record["rows"] == 2000
    assert record["ratio_of_medians"]["wall"] > 0


@pytest.mark.slow
def test_methods_are_run_refitted_and_recorded(tmp_path):
    out = tmp_path / "features.json"
    sets = ["--sets", "cancer", "--seeds", "1", "--methods", "glprune", "backward", "random"]
    places = ["--out", out, "--work", tmp_path / "work"]
    command = [sys.executable, FOLDER / "features.py", *sets, *places]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    records = json.loads(out.read_text())["records"]
    assert {r["status"] for r in records} == {"done"}
    assert len(records) == 1 + 3 * 3  # the network, and three numbers of features for each method
    assert {"commit" in r for r in records if r["method"] == "glprune"} == {True}
    assert all(0.5 < r["test"] <= 1 for r in records)
    assert "backward" in done.stdout
