"""The shipped file has at most four bytes for each parameter, 5 % and 4 kB, whatever its columns are called."""

import hashlib
import json
from unittest import mock

import numpy as np
import onnx
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import glprune
from glprune import pipeline
from glprune.audit.verify import verify
from glprune.export import onnx_export
from glprune.report.html import render_html
from glprune.report.sentences import file_sentence
from glprune.schema.bundle import size_limit
from glprune.schema.recipe_loading import load_recipe

COLUMNS = [f"pixel_in_row_{i // 28}_column_{i % 28}" for i in range(784)]
NETWORKS = """
import torch
from torch import nn
def one():
    return nn.Sequential(nn.Linear(784, 12), nn.ReLU(), nn.Linear(12, 1))
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.out = nn.Linear(700, 8), nn.Linear(84, 8), nn.Linear(8, 1)
    def forward(self, left, right):
        return self.out(torch.relu(self.left(left) + self.right(right)))
"""
RECIPE = """
task: binary
model: {factory: "networks.py:one"}
data: {file: data.parquet, target: y}
penalty: {inputs: {strength: 1.0}, hidden: null}
target: {max_features: 300}
search: path
train: {epochs: 1, n_lambdas: 3, full_batch_steps: 1, batch_size: all, lambda_min_ratio: 0.1}
refit: {epochs: 1}
report: {baselines: false}
"""
TWO = [
    "model.factory=networks.py:Two",
    "model.inputs=[{name: left, columns: ['pixel_in_row_?_*', 'pixel_in_row_1?_*', 'pixel_in_row_2[0-4]_*']}, "
    "{name: right, columns: ['pixel_in_row_2[5-7]_*']}]",
]
ORIGINAL = ["export.signature=original"]
RUNS = {
    "slim": ("one", [], "dynamo"),
    "original": ("one", ORIGINAL, "torchscript"),
    "two inputs": ("Two", TWO, "torchscript"),
    "two inputs, original": ("Two", [*TWO, *ORIGINAL], "dynamo"),
    "all names": ("one", [*ORIGINAL, "export.names=all"], "dynamo"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    x = np.random.default_rng(0).normal(size=(120, 784)).astype(np.float32)
    columns = {name: x[:, n] for n, name in enumerate(COLUMNS)} | {"y": (x[:, 0] > 0).astype(np.int64)}
    pq.write_table(pa.table(columns), folder / "data.parquet")
    (folder / "networks.py").write_text(NETWORKS)
    (folder / "recipe.yaml").write_text(RECIPE)
    scope: dict = {}
    exec(NETWORKS, scope)
    for name in ("one", "Two"):
        torch.manual_seed(0)
        torch.save(scope[name]().state_dict(), folder / f"{name}.pt")
    return folder


@pytest.fixture(scope="module")
def ran(folder):
    """The results of runs by name, each made when it is first asked for."""
    done = {}

    def run(name):
        if name not in done:
            network, changes, exporter = RUNS[name]
            only = [pair for pair in onnx_export.EXPORTERS if pair[0] == exporter]
            recipe = load_recipe(folder / "recipe.yaml", changes)
            with (
                mock.patch.object(onnx_export, "EXPORTERS", only),
                mock.patch.object(pipeline, "LATENCY_BATCHES", (1,)),
            ):
                model, out = folder / f"{network}.pt", folder / name.replace(" ", "_")
                done[name] = glprune.run(recipe, model, out, accept_original=True)  # not trained
        return done[name]

    return run


def facts(result):
    model = onnx.load(result.bundle / "model.onnx")
    return json.loads({p.key: p.value for p in model.metadata_props}["glprune.inputs"])


@pytest.mark.parametrize("name", RUNS)
def test_a_run_ships_a_file_within_the_limit_that_an_audit_accepts(ran, name):
    result = ran(name)
    size = result.report.size
    assert size.onnx_bytes_after == (result.bundle / "model.onnx").stat().st_size
    assert result.report.export.exporter == RUNS[name][2]
    fits = size.onnx_bytes_after <= size_limit(size.parameters_after) <= 4.2 * size.parameters_after + 4000
    assert fits is (name != "all names")
    assert verify(result.bundle, isolated=False).exit_code == 0


def test_names_that_do_not_fit_are_a_digest_in_the_file_and_stay_beside_it(ran):
    result = ran("original")
    assert result.report.export.names == "digest"
    (given,) = facts(result)
    listed = json.dumps(COLUMNS, separators=(",", ":")).encode()
    assert given == {
        "name": given["name"],
        "dtype": "float32",
        "axis": -1,
        "count": 784,
        "sha256": hashlib.sha256(listed).hexdigest(),
    }
    contract = json.loads((result.bundle / "input_schema.json").read_text())
    assert [c["name"] for c in contract["inputs"][0]["columns"]] == COLUMNS
    assert b"pixel_in_row" not in (result.bundle / "model.onnx").read_bytes()


def test_names_are_kept_whatever_the_size_where_the_recipe_says_so(ran):
    result = ran("all names")
    kept = json.loads((result.bundle / "plan.json").read_text())["inputs"][0]["kept"]
    (given,) = facts(result)
    assert given["columns"] == COLUMNS
    read = [span.split("-") for span in given["read"].split(",")]
    assert [n for span in read for n in range(int(span[0]), int(span[-1]) + 1)] == kept
    raw = (result.bundle / "model.onnx").read_bytes()
    assert raw.count(COLUMNS[400].encode()) == 1


def test_the_report_says_what_the_file_holds_beside_its_parameters(ran):
    for name, verdict, said in (
        ("original", "within", "SHA-256 of their names, which are in input_schema.json."),
        ("all names", "above", "Its metadata names all columns."),
    ):
        report = ran(name).report
        beside = report.size.onnx_bytes_after - 4 * report.size.parameters_after
        sentence = file_sentence(report)
        assert (
            f"4 for each parameter and {beside:,} for graph and metadata. That is {verdict} the limit of "
            in sentence
        )
        assert sentence.endswith(said)
        assert sentence in render_html(report, pictures=False)
        assert "| of which graph and metadata | " in (ran(name).bundle / "report.md").read_text()


def test_the_digested_file_computes_the_same(ran):
    x = np.random.default_rng(1).normal(size=(5, 784)).astype(np.float32)
    outputs = [
        ort.InferenceSession(ran(name).bundle / "model.onnx").run(None, {facts(ran(name))[0]["name"]: x})[0]
        for name in ("original", "all names")
    ]
    np.testing.assert_allclose(*outputs, atol=1e-6)
