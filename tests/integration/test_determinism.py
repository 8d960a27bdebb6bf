"""One recipe and seed, one result: whatever threads the process had, in another process, with another hash seed."""

import contextlib
import functools
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import glprune
from glprune.data import load_data
from glprune.runtime.determinism import reproducible
from glprune.runtime.events import Notice
from glprune.schema.recipe_loading import load_recipe
from tests.networks import fit_binary

NETWORK = """
from torch import nn
def build():
    # the gradient of BatchNorm is a sum that PyTorch splits among its threads
    first = [nn.Linear(24, 64), nn.BatchNorm1d(64), nn.ReLU()]
    return nn.Sequential(*first, nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 1))
"""
RECIPE = """
task: binary
model: {factory: "network.py:build"}
data: {file: rows, target: y, standardize: train}
penalty: {inputs: {strength: 1.0}, hidden: {strength: 0.1}}
target: {max_features: 8}
search: path
train: {epochs: 1, n_lambdas: 2, batch_size: 256, n_stages: 1, full_batch_steps: 3, lr: 0.01}
refit: {epochs: 1, batch_size: 256}
export: {exporter: torchscript}
"""
TIMED = {"report.json", "report.html", "report.md", "MANIFEST.json"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("determinism")
    x = np.random.default_rng(0).normal(size=(2000, 24))
    z = x[:, :6].sum(axis=1) + x[:, 6] * x[:, 7]
    table = pa.table({f"x{n}": x[:, n] for n in range(24)} | {"y": np.where(z > 0, "yes", "no")})
    (folder / "rows").mkdir()
    pq.write_table(table.slice(1000), folder / "rows" / "b.parquet")
    pq.write_table(table.slice(0, 1000), folder / "rows" / "a.parquet")
    (folder / "network.py").write_text(NETWORK)
    (folder / "recipe.yaml").write_text(RECIPE)
    scope: dict = {}
    exec(NETWORK, scope)
    torch.manual_seed(0)
    network = scope["build"]()
    with reproducible(0, 1):
        fit_binary(network, (torch.tensor(x, dtype=torch.float32),), torch.tensor(z > 0).float(), 30)
    torch.save(network.state_dict(), folder / "model.pt")
    return folder


def run(folder, name, threads):
    """Run with that many threads set beforehand."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        bundle = glprune.run(folder / "recipe.yaml", folder / "model.pt", folder / name).bundle
        assert torch.get_num_threads() == threads
        return bundle
    finally:
        torch.set_num_threads(before)


def timeless(bundle):
    report = json.loads((bundle / "report.json").read_text())
    del report["timing"], report["latency"]
    return report


@pytest.fixture(scope="module")
def bundle(folder):
    return run(folder, "one", 1)


def assert_same(bundle, other):
    names = {path.name for path in bundle.iterdir()}
    assert names == {path.name for path in other.iterdir()}
    for name in names - TIMED:
        assert (other / name).read_bytes() == (bundle / name).read_bytes(), name
    assert timeless(other) == timeless(bundle)


def test_threads_the_process_had_do_not_matter(folder, bundle):
    assert_same(bundle, run(folder, "two", 2))


@pytest.mark.slow
def test_another_process_gives_the_same(folder, bundle):
    code = "import sys, glprune; glprune.run(*sys.argv[1:])"
    seeds = {"PYTHONHASHSEED": "12345", "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    arguments = [str(folder / name) for name in ("recipe.yaml", "model.pt", "fresh")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, env=os.environ | seeds)
    assert_same(bundle, folder / "fresh")


def test_threads_are_those_of_the_recipe_and_the_report_says_what_results_depend_on(folder, bundle):
    report = glprune.run(
        load_recipe(folder / "recipe.yaml", ["threads=2"]), folder / "model.pt", folder / "split"
    ).report
    assert report.run.threads == 2
    assert {point.threads for point in report.latency} == {2}
    assert report.run.cpu == torch.backends.cpu.get_cpu_capability()
    assert {"torch", "onnxruntime", "numpy", "python"} <= set(report.run.versions)
    # sums are split among threads: else the other tests here would show nothing
    weights = "model.safetensors"
    assert (folder / "split" / weights).read_bytes() != (bundle / weights).read_bytes()


def test_files_of_a_folder_are_read_in_the_order_of_their_names(folder):
    first = pq.read_table(folder / "rows" / "a.parquet").column("x0")[0].as_py()
    recipe = load_recipe(folder / "recipe.yaml", ["data.split={train: 0.98, valid: 0.01, test: 0.01}"])
    assert float(load_data(recipe).train.inputs[0][0, 0]) == np.float32(first)


@pytest.mark.slow
@pytest.mark.parametrize(("threads", "cores", "told"), [(1, 4, True), (2, 4, False), (1, 1, False)])
def test_a_large_network_on_one_of_several_cores_is_said_to_be_slow(
    folder, monkeypatch, threads, cores, told
):
    monkeypatch.setattr("glprune.search.prepare.available_cores", lambda: cores)
    monkeypatch.setattr("glprune.search.prepare._LARGE", 256 * 24 * 64)  # the first layer alone, for a batch
    notes = []
    glprune.inspect(
        load_recipe(folder / "recipe.yaml", [f"threads={threads}"]),
        folder / "model.pt",
        on_event=notes.append,
    )
    said = [
        n.text
        for n in notes
        if isinstance(n, Notice) and "threads: 4 in the recipe would be faster" in n.text
    ]
    assert len(said) == told


@contextlib.contextmanager
def default_type(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    "setting", [torch.no_grad, torch.inference_mode, functools.partial(default_type, torch.float64)]
)
def test_settings_of_the_caller_change_nothing_and_stay(folder, setting):
    undisturbed = glprune.inspect(folder / "recipe.yaml", folder / "model.pt")
    with setting():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()
        found = glprune.inspect(folder / "recipe.yaml", folder / "model.pt")
        assert before == (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_default_dtype(),
        )
    assert found.lambda_max == undisturbed.lambda_max
