"""Whole runs of other tasks, evaluated on their test files and on other rows."""

import json

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn import metrics as sk

import glprune
from glprune.audit.evaluation.evaluate import evaluate
from glprune.schema.recipe_loading import load_recipe

pytestmark = pytest.mark.slow

NETWORKS = """
import torch
from torch import nn
def three():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
def one():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.body, self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2), nn.Linear(8, 5)
    def forward(self, x):
        hidden = torch.tanh(self.body(x))
        return {"small": self.a(hidden), "large": 100 * self.b(hidden)}
"""
COMMON = """
train: {epochs: 3, n_lambdas: 4, batch_size: all, lambda_min_ratio: 0.05, full_batch_steps: 3, n_stages: 1, lr: 0.01}
refit: {epochs: 3}
search: path
penalty: {inputs: {strength: 1.0}}
target: {max_features: 4}
export: {exporter: torchscript, keep_original: true}
seed: 5
"""
THREE_FILES = "data: {train: train.parquet, valid: valid.parquet, test: test.parquet, target: TARGET, exclude: [OTHER, group]}"
RECIPES = {
    "multiclass": "task: multiclass\nmodel: {factory: 'networks.py:three'}\n"
    + THREE_FILES.replace("TARGET", "kind").replace("OTHER", "value")
    + "\npolicy: {protected: [group], min_segment_rows: 5, adverse: [low]}\n",
    "regression": "task: regression\nmodel: {factory: 'networks.py:one'}\n"
    + THREE_FILES.replace("TARGET", "value").replace("OTHER", "kind"),
    "distillation": "task: distillation\nmodel: {factory: 'networks.py:Two'}\n"
    "data: {file: test.parquet, features: ['x*']}\n",
}
NAMES = [f"x{n}" for n in range(6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    rng = np.random.default_rng(0)
    (folder / "networks.py").write_text(NETWORKS)
    scope: dict = {}
    exec(NETWORKS, scope)
    for split in ("train", "valid", "test"):
        x = rng.normal(size=(120, 6))
        score = x[:, 0] + x[:, 1] + 0.2 * rng.normal(size=120)
        columns = {name: x[:, n] for n, name in enumerate(NAMES)}
        columns |= {"value": score, "group": rng.choice(["a", "b"], 120)}
        columns["kind"] = np.where(score < -0.7, "low", np.where(score > 0.7, "high", "middle"))
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    for task, name in (("multiclass", "three"), ("regression", "one"), ("distillation", "Two")):
        network = scope[name]()
        torch.save(network.state_dict(), folder / f"{task}.pt")
        (folder / f"{task}.yaml").write_text(RECIPES[task] + COMMON)
    return folder


@pytest.fixture(scope="module")
def bundle(folder):
    def make(task):
        if not (folder / f"out-{task}").exists():
            recipe = load_recipe(folder / f"{task}.yaml")
            glprune.run(recipe, folder / f"{task}.pt", folder / f"out-{task}", accept_original=True)
        return folder / f"out-{task}"

    return make


def outputs(bundle, file, table):
    plan = json.loads((bundle / "plan.json").read_text())["inputs"][0]
    names = plan["columns"] if file == "model.onnx" else NAMES
    rows = np.stack([table[name].to_numpy() for name in names], axis=1).astype(np.float32)
    return [y.astype(float) for y in ort.InferenceSession(bundle / file).run(None, {"features": rows})]


def found_values(found, model="final", where="all rows"):
    return {f.name: f.found for f in found.figures if (f.model, f.where) == (model, where)}


@pytest.mark.parametrize("rows", ["test", "valid"])
def test_several_classes_by_their_labels_and_segments(bundle, folder, rows):
    made, table = bundle("multiclass"), pq.read_table(folder / f"{rows}.parquet")
    found = evaluate(made, folder / f"{rows}.parquet")
    assert (found.exit_code, found.kind) == (0, "test rows" if rows == "test" else "own rows")
    classes = json.loads((made / "report.json").read_text())["data"]["classes"]
    target = np.array([classes.index(label) for label in table["kind"].to_pylist()])
    for model, file in (("final", "model.onnx"), ("original", "original.onnx")):
        (logits,) = outputs(made, file, table)
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        measured = found_values(found, model)
        assert measured["accuracy"] == pytest.approx(sk.accuracy_score(target, logits.argmax(1)))
        expected = sk.log_loss(target, probabilities, labels=[0, 1, 2])
        assert measured["log_loss"] == pytest.approx(expected, abs=1e-5)
        chosen = np.array(table["group"].to_pylist()) == "b"
        segment = found_values(found, model, "group = b")
        assert segment["accuracy"] == pytest.approx(
            sk.accuracy_score(target[chosen], logits[chosen].argmax(1))
        )


def test_numbers(bundle, folder):
    made, table = bundle("regression"), pq.read_table(folder / "test.parquet")
    found = evaluate(made, folder / "test.parquet")
    assert (found.exit_code, found.kind) == (0, "test rows")
    (output,) = outputs(made, "model.onnx", table)
    measured = found_values(found)
    assert measured["r2"] == pytest.approx(sk.r2_score(table["value"], output), abs=1e-5)
    assert measured["mae"] == pytest.approx(sk.mean_absolute_error(table["value"], output), abs=1e-5)
    assert evaluate(made, folder / "valid.parquet").exit_code == 0
    seen = evaluate(made, folder / "train.parquet")  # better, since it was trained on them
    assert (seen.exit_code, seen.kind) == (1, "own rows")
    assert "train file of the report" in seen.evidence


def test_distillation_compares_with_the_kept_original(bundle, folder):
    made = bundle("distillation")
    found = evaluate(made, folder / "test.parquet")
    assert (found.exit_code, found.kind) == (0, "test rows")
    report = json.loads((made / "report.json").read_text())
    scales = [output["scale"] for output in report["export"]["outputs"]]
    assert scales[1] > 20 * scales[0]
    table = pq.read_table(folder / "valid.parquet")
    own = evaluate(made, folder / "valid.parquet")
    views = [
        np.concatenate([y / s for y, s in zip(outputs(made, file, table), scales, strict=True)], axis=1)
        for file in ("model.onnx", "original.onnx")
    ]
    expected = np.sqrt(np.square(views[0] - views[1]).mean())
    assert found_values(own)["rmse"] == pytest.approx(expected, abs=1e-5)
    assert any(f.name.startswith("R2 of") and f.agrees for f in found.figures)


def test_distillation_without_the_original_is_incomplete(bundle, folder, tmp_path):
    recipe = load_recipe(folder / "distillation.yaml", ["export.keep_original=false"])
    made = glprune.run(recipe, folder / "distillation.pt", tmp_path / "out", accept_original=True).bundle
    assert not (made / "original.onnx").exists()
    found = evaluate(made, folder / "test.parquet")
    assert (found.exit_code, found.figures) == (3, ())
    assert "--original" in found.not_evaluated[0]
    given = evaluate(made, folder / "test.parquet", original=bundle("distillation") / "original.onnx")
    assert given.exit_code == 0
