"""Paths side by side, in other processes: the bundle of paths one after another, to the bit."""

import json

import pytest

import glprune
from glprune.errors import TargetError
from glprune.runtime.events import Progress, Stage
from glprune.schema.recipe_loading import load_recipe
from glprune.search import search
from tests.integration.test_resume import NETWORK, TIMES, digest
from tests.integration_packages import need
from tests.networks import write_planted

RECIPE = """
task: binary
model: {factory: "network.py:build"}
data: {file: data.parquet, target: y}
penalty: {inputs: {strength: 1.0}, hidden: {strength: 1.0}, input_strengths: [0.3, 1.0, 3.0]}
target: {macs: "40%"}
train: {epochs: 2, n_lambdas: 4, batch_size: all, full_batch_steps: 3, n_stages: 2}
refit: {epochs: 2}
export: {exporter: torchscript}
workers: {engine: local, processes: 2}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_planted(tmp_path_factory.mktemp("abreast"), NETWORK, RECIPE, 300)


def run(folder, out, *changes, **options):
    recipe = load_recipe(folder / "recipe.yaml", list(changes))
    return glprune.run(recipe, folder / "model.pt", out, **options).bundle


def facts(bundle):
    """The model and the report, but for times and the recipe, which says how many processes there were."""
    report = json.loads((bundle / "report.json").read_text())
    del report["digests"]["recipe_resolved"], report["digests"]["outputs"]["recipe.resolved.yaml"]
    left_out = {*TIMES, "recipe"}
    return digest(bundle / "model.onnx"), {k: v for k, v in report.items() if k not in left_out}


@pytest.fixture(scope="module")
def alone(folder):
    """Of paths one after another: so short that no other process is started."""
    told = []
    bundle = run(folder, folder / "alone", on_event=told.append)
    assert not any(isinstance(e, Progress) for e in told)
    return facts(bundle)


@pytest.fixture
def worth_it(monkeypatch):
    """Other processes are started however short a path is."""
    monkeypatch.setattr(search, "_PARALLEL_SECONDS", 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine", ["local", pytest.param("ray", marks=[pytest.mark.with_ray, pytest.mark.slow])]
)
def test_paths_side_by_side_are_those_one_after_another(folder, alone, tmp_path, worth_it, engine):
    if engine == "ray":
        need("ray")
    told = []
    bundle = run(folder, tmp_path / "out", f"workers.engine={engine}", on_event=told.append)
    parts = [e for e in told if isinstance(e, Progress)]
    stages = {e.detail.split(",")[0] for e in told if isinstance(e, Stage)}
    assert [(e.what, e.done, e.of) for e in parts] == 2 * [("paths", n, 3) for n in (1, 2, 3)]
    assert "3 paths side by side" in stages
    assert facts(bundle) == alone


@pytest.mark.slow
def test_paths_that_were_done_elsewhere_stay_done(folder, alone, tmp_path, worth_it, monkeypatch):
    monkeypatch.setattr("glprune.pipeline.is_parallel", lambda spec, threads: True)
    done = []

    def stop(event):
        if isinstance(event, Progress) and event.done == 2:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(folder, out, "workers.processes=1", on_event=stop)  # one, so that they come in order
    assert facts(run(folder, out, resume=True, on_event=done.append)) == alone
    counts = [e.done for e in done if isinstance(e, Progress)]
    assert counts == [3, 1, 2, 3]  # the last of the first stage, and the second stage


def test_one_path_that_fails_leaves_the_others(folder, tmp_path, monkeypatch):
    real = search.run_stage

    def failing(state, spec, listener):
        if spec.input_strength != 3.0:
            raise TargetError(f"input strength {spec.input_strength}")
        return real(state, spec, listener)

    monkeypatch.setattr(search, "run_stage", failing)
    report = json.loads((run(folder, tmp_path / "out", "train.n_stages=1") / "report.json").read_text())
    assert [stage["input_strength"] for stage in report["stages"]] == [3.0]


@pytest.mark.slow
def test_where_every_path_fails_the_first_says_why(folder, tmp_path, worth_it):
    """No network of one multiply-accumulate: the error arises in another process."""
    with pytest.raises(TargetError, match=r"^target\.macs: ") as here:
        run(folder, tmp_path / "one", "target.macs=1", "workers.processes=1")
    with pytest.raises(TargetError) as there:
        run(folder, tmp_path / "several", "target.macs=1")
    assert str(there.value) == str(here.value)
