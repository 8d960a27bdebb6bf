"""Whole runs on a small planted problem: the claims of the report against independent readings."""

import json

import numpy as np
import onnx
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from jsonschema import Draft202012Validator
from safetensors.torch import load_file

import glprune
from glprune.runtime.events import Stage
from glprune.schema.recipe_loading import load_recipe
from glprune.schema.report import report_schema
from tests.networks import fit_binary, write_planted

NETWORK = """
from torch import nn
def build():
    first = [nn.Linear(8, 12), nn.ReLU(), nn.Dropout(0.1)]
    return nn.Sequential(*first, nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 1))
"""
RECIPE = """
task: binary
model: {factory: "network.py:build"}
data:
  file: data.parquet
  target: y
  feature_groups: {pair: ["a", "b"]}
  standardize: train
penalty: {inputs: {strength: 1.0}, hidden: {strength: 0.3}}
target: {max_features: 3}
search: path
train: {epochs: 3, n_lambdas: 6, batch_size: all, lambda_min_ratio: 0.05, full_batch_steps: 10, n_stages: 3}
refit: {epochs: 20, distill: 0.5}
seed: 3
"""
NAMES = ["a", "b", "c", "d", "e", "f", "g", "h"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set whose target depends on the feature 'pair' (a, b) and on c only, and a trained network."""
    folder = tmp_path_factory.mktemp("planted")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 8)) * np.arange(1, 9) + 5
    z = (x[:, 0] - 5) * (x[:, 1] - 5) / 2 + (x[:, 2] - 5)
    y = np.where(z > 0, "yes", "no")
    columns = {n: pa.array(x[:, i]) for i, n in enumerate(NAMES)} | {"y": pa.array(y)}
    pq.write_table(pa.table(columns), folder / "data.parquet")
    (folder / "network.py").write_text(NETWORK)
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "quick.yaml").write_text(RECIPE + "export: {exporter: torchscript}\n")
    scope: dict = {}
    exec(NETWORK, scope)
    torch.manual_seed(0)
    network = scope["build"]()
    inputs = torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32)
    target = torch.tensor(z > 0).float()
    fit_binary(network, (inputs,), target, 200)
    torch.save(network.state_dict(), folder / "model.pt")
    return folder


@pytest.fixture(scope="module")
def result(folder):
    return glprune.run(folder / "recipe.yaml", folder / "model.pt", folder / "out")


def shipped(result):
    """The columns of the shipped file's only input."""
    (only,) = result.report.export.inputs
    return only.columns


def build(folder):
    scope: dict = {}
    exec((folder / "network.py").read_text(), scope)
    return scope["build"]


def raw_rows(folder, names):
    table = pq.read_table(folder / "data.parquet")
    return np.stack([table[n].to_numpy() for n in names], axis=1).astype(np.float32)


def test_the_planted_features_survive_and_go_together(result):
    kept = {f.name for f in result.report.features if f.status == "kept"}
    assert {"pair", "c"} <= kept
    assert len(kept) <= 3
    pair = next(f for f in result.report.features if f.name == "pair")
    assert pair.columns == ["a", "b"]
    assert pair.input_columns == [0, 1]


def test_the_bundle_holds_what_the_readme_lists(result):
    names = {p.name for p in result.bundle.iterdir()}
    assert names == {
        "model.onnx",
        "model.safetensors",
        "plan.json",
        "report.json",
        "report.html",
        "report.md",
        "recipe.resolved.yaml",
        "report.schema.json",
        "input_schema.json",
        "golden.safetensors",
        "MANIFEST.json",
    }


def test_report_json_fits_the_published_schema(result):
    Draft202012Validator(report_schema()).validate(json.loads((result.bundle / "report.json").read_text()))


def test_the_onnx_file_takes_the_kept_columns_and_names_them(result):
    model = onnx.load(result.bundle / "model.onnx", load_external_data=False)
    props = {p.key: p.value for p in model.metadata_props}
    (named,) = json.loads(props["glprune.inputs"])
    assert named["columns"] == shipped(result)
    assert json.loads(props["glprune.classes"]) == ["no", "yes"]
    (graph_input,) = model.graph.input
    batch, width = graph_input.type.tensor_type.shape.dim
    assert batch.dim_param
    assert width.dim_value == len(shipped(result))
    text = model.SerializeToString()
    assert b"site-packages" not in text
    assert b"/home" not in text


def test_reported_metrics_are_those_of_the_file(result, folder):
    """AUROC computed by scikit-learn from ONNX Runtime's outputs on the rows of the test split."""
    from sklearn.metrics import roc_auc_score

    from glprune.data import load_data

    data = load_data(load_recipe(folder / "recipe.yaml"))
    session = ort.InferenceSession(result.bundle / "model.onnx")
    columns = [data.columns.index(n) for n in shipped(result)]
    rows = data.test.inputs[0].numpy()[:, columns]
    scores = session.run(None, {"features": rows})[0].ravel()
    auroc = next(m for m in result.report.performance if m.name == "auroc")
    assert auroc.final == pytest.approx(roc_auc_score(data.test.target.numpy(), scores), abs=1e-6)
    assert auroc.rows == len(scores)


def test_load_rebuilds_the_slim_network_without_pickle(result, folder):
    network = glprune.load(result.bundle, build(folder))
    rows = raw_rows(folder, shipped(result))
    session = ort.InferenceSession(result.bundle / "model.onnx")
    for count in (1, 7):
        expected = session.run(None, {"features": rows[:count]})[0]
        with torch.no_grad():
            np.testing.assert_allclose(network(torch.from_numpy(rows[:count])).numpy(), expected, atol=1e-5)


def test_load_refuses_another_factory_in_one_line(result):
    with pytest.raises(glprune.ModelError, match="should have"):
        glprune.load(result.bundle, lambda: torch.nn.Linear(3, 1))


def test_every_point_has_kkt_residuals_and_removed_groups_are_certified(result):
    assert len(result.report.path) >= 3
    chosen = [p for p in result.report.path if p.selected]
    assert len(chosen) == len(result.report.stages)
    assert all(p.kkt_zero < 0.05 for p in chosen)
    assert chosen[-1].features == sum(f.status == "kept" for f in result.report.features)
    assert all(f.norm_selected == 0.0 for f in result.report.features if f.status == "removed")


def test_removal_is_lossless_at_every_cut(result):
    removal = result.report.removal
    assert removal.cuts
    assert max(c.difference for c in removal.cuts) <= removal.tolerance == 1e-5
    assert removal.difference <= 1e-5
    assert result.report.export.difference < 1e-5


def test_same_recipe_and_seed_give_the_same_report_and_file(result, folder):
    again = glprune.run(folder / "recipe.yaml", folder / "model.pt", folder / "again")
    timed = {"report.json", "report.html", "report.md", "MANIFEST.json"}
    for name in {p.name for p in result.bundle.iterdir()} - timed:
        assert (again.bundle / name).read_bytes() == (result.bundle / name).read_bytes(), name

    def timeless(bundle):
        report = json.loads((bundle / "report.json").read_text())
        del report["timing"], report["latency"]
        return report

    assert timeless(again.bundle) == timeless(result.bundle)


def test_original_signature_keeps_the_width_and_ignores_dropped_columns(folder):
    recipe = load_recipe(folder / "recipe.yaml", ["export.signature=original"])
    result = glprune.run(recipe, folder / "model.pt", folder / "wide")
    session = ort.InferenceSession(result.bundle / "model.onnx")
    assert session.get_inputs()[0].shape[1] == 8
    rows = raw_rows(folder, NAMES)[:20]
    before = session.run(None, {"features": rows})[0]
    removed = [NAMES.index(c) for f in result.report.features if f.status == "removed" for c in f.columns]
    assert removed
    for poison in (np.nan, np.inf, 3e38):
        changed = rows.copy()
        changed[:, removed] = poison
        np.testing.assert_array_equal(session.run(None, {"features": changed})[0], before)
    operators = [n.op_type for n in onnx.load(result.bundle / "model.onnx").graph.node]
    assert operators[0] == "Gather"


def test_lambda_zero_changes_nothing_but_the_fine_tuning(folder):
    recipe = load_recipe(folder / "quick.yaml", ["target={lambda: 0}"])
    result = glprune.run(recipe, folder / "model.pt", folder / "zero")
    assert all(f.status == "kept" for f in result.report.features)
    assert [p.lam for p in result.report.path] == [0.0]
    assert result.report.size.parameters_after == result.report.size.parameters_before
    assert result.report.path[0].penalty == 0.0


def test_a_huge_lambda_is_refused_as_removing_every_input(folder):
    recipe = load_recipe(folder / "quick.yaml", ["target={lambda: 1000}"])
    with pytest.raises(glprune.TargetError, match="removes every input") as caught:
        glprune.run(recipe, folder / "model.pt", folder / "huge")
    assert caught.value.exit_code == 5
    assert not (folder / "huge").exists()
    assert not list(folder.glob(".huge*"))


@pytest.mark.slow
def test_max_drop_holds_on_the_validation_split_after_the_refit(folder):
    recipe = load_recipe(folder / "quick.yaml", ["target={max_drop: {metric: auroc, amount: 0.05}}"])
    result = glprune.run(recipe, folder / "model.pt", folder / "drop")
    selected = [p for p in result.report.path if p.selected][-1]
    assert selected.refit_metric is not None
    assert selected.refit_metric >= result.report.selection.reference - 0.05
    assert any(f.status == "removed" for f in result.report.features)


@pytest.mark.slow
def test_max_hidden_runs_a_second_path_over_hidden_units_alone(folder):
    recipe = load_recipe(folder / "quick.yaml", ["target.max_hidden=6"])
    result = glprune.run(recipe, folder / "model.pt", folder / "staged")
    assert 0 < sum(h.after for h in result.report.hidden) <= 6
    kinds = [s.penalised for s in result.report.stages]
    assert kinds[0] == ["input"]
    assert kinds[-1] == ["hidden"]
    network = glprune.load(result.bundle, build(folder))
    widths = [m.out_features for m in network.modules() if isinstance(m, torch.nn.Linear)]
    assert widths[:2] == [h.after for h in result.report.hidden]
    rows = raw_rows(folder, shipped(result))
    expected = ort.InferenceSession(result.bundle / "model.onnx").run(None, {"features": rows})[0]
    with torch.no_grad():
        np.testing.assert_allclose(network(torch.from_numpy(rows)).numpy(), expected, atol=1e-5)


def test_an_existing_folder_is_refused_and_kept_unless_overwrite(result, folder):
    before = (result.bundle / "report.json").read_bytes()
    with pytest.raises(glprune.UsageError, match="--overwrite"):
        glprune.run(folder / "recipe.yaml", folder / "model.pt", result.bundle)
    assert (result.bundle / "report.json").read_bytes() == before
    other = folder / "precious"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(glprune.UsageError, match="not a bundle"):
        glprune.run(folder / "recipe.yaml", folder / "model.pt", other, overwrite=True)
    assert (other / "thesis.txt").read_text() == "mine"


def test_a_layer_the_network_does_not_have_is_named(folder):
    recipe = load_recipe(folder / "recipe.yaml", ["penalty.hidden.layers={nope: 1}"])
    with pytest.raises(glprune.RecipeError, match="nope"):
        glprune.run(recipe, folder / "model.pt", folder / "nope")


def test_inspection_finds_the_groups_and_writes_nothing(folder):
    before = sorted(p.name for p in folder.iterdir())
    inspection = glprune.inspect(folder / "recipe.yaml", folder / "model.pt")
    assert [(s.name, s.groups, s.units) for s in inspection.sets] == [
        ("features", 7, 8),
        ("0", 12, 12),
        ("3", 6, 6),
    ]
    assert inspection.parameters == 8 * 12 + 12 + 12 * 6 + 6 + 6 + 1
    assert inspection.macs == 8 * 12 + 12 * 6 + 6
    assert sorted(p.name for p in folder.iterdir()) == before


@pytest.mark.parametrize(
    ("changes", "facts", "words"),
    [
        (
            ["penalty.kind=sparse_group_lasso", "penalty.l1_ratio=0.3", "penalty.weights=size"],
            {
                "kind": "sparse_group_lasso",
                "weights": "size",
                "l1_ratio": 0.3,
                "gamma": None,
                "plugin": None,
                "groups": [],
            },
            "sparse group LASSO",
        ),
        (
            ["penalty.kind=group_mcp", "penalty.weights=adaptive"],
            {
                "kind": "group_mcp",
                "weights": "adaptive",
                "l1_ratio": None,
                "gamma": 1.2,
                "plugin": None,
                "groups": [],
            },
            "group MCP",
        ),
    ],
)
def test_every_penalty_leaves_a_proved_network_and_a_report_that_names_it(folder, changes, facts, words):
    few = ["train.n_lambdas=6", "train.epochs=10", "refit.epochs=5"]
    out = folder / facts["kind"]
    report = glprune.run(
        load_recipe(folder / "quick.yaml", [*changes, *few]), folder / "model.pt", out
    ).report
    assert report.penalty.model_dump() == facts
    assert words in (out / "report.html").read_text()
    assert sum(f.status == "kept" for f in report.features) <= 3
    assert report.removal.difference <= 1e-5
    assert all(p.penalty >= 0 for p in report.path)
    assert all(p.kkt_zero < 0.05 for p in report.path if p.selected)
    Draft202012Validator(report_schema()).validate(json.loads((out / "report.json").read_text()))


def test_the_sparse_group_lasso_zeroes_weights_of_features_that_stay(folder):
    changes = [
        "penalty.kind=sparse_group_lasso",
        "penalty.l1_ratio=0.5",
        "penalty.weights=size",
        "refit.epochs=0",
        "target={lambda: 0.005}",
    ]
    run = glprune.run(load_recipe(folder / "quick.yaml", changes), folder / "model.pt", folder / "elements")
    weights = load_file(run.bundle / "model.safetensors")
    first = next(w for w in weights.values() if w.ndim == 2)
    assert ((first == 0).any(dim=1) & (first != 0).any(dim=1)).any()


NORMED = """
import torch
from torch import nn
class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.body = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 1))
    def forward(self, x):
        return self.body(self.norm(x))
def build():
    return Normed()
"""


def test_inputs_under_layernorm_are_refused_and_hidden_units_can_still_go(folder):
    (folder / "normed.py").write_text(NORMED)
    scope: dict = {}
    exec(NORMED, scope)
    torch.manual_seed(0)
    torch.save(scope["build"]().state_dict(), folder / "normed.pt")
    changes = ["model.factory=normed.py:build", "target={lambda: 0.05}"]
    with pytest.raises(glprune.ModelError, match="LayerNorm 'norm' mixes the units") as caught:
        glprune.run(load_recipe(folder / "quick.yaml", changes), folder / "normed.pt", folder / "normed")
    assert caught.value.exit_code == 3
    recipe = load_recipe(folder / "quick.yaml", [*changes, "penalty={inputs: null, hidden: {strength: 1}}"])
    report = glprune.run(recipe, folder / "normed.pt", folder / "normed").report
    assert all(f.status == "kept" for f in report.features)
    assert [s.penalised for s in report.stages] == [["hidden"]] * len(report.stages)  # not the inputs
    assert report.hidden[0].after < 12
    assert report.removal.difference <= 1e-5
    assert any("LayerNorm" in r.reason for r in report.removal.refused)


def test_every_hidden_unit_gone_leaves_one_and_the_file_still_runs(folder):
    changes = ["penalty={inputs: null, hidden: {strength: 1}}", "target={lambda: 5}", "refit.epochs=0"]
    report = glprune.run(
        load_recipe(folder / "quick.yaml", changes), folder / "model.pt", folder / "flat"
    ).report
    assert [h.after for h in report.hidden] == [1, 1]
    assert report.refit is None
    assert report.export.difference < 1e-5


def test_a_file_that_computes_something_else_is_not_released(folder, monkeypatch):
    from glprune.evaluation import measurements
    from glprune.export import onnx_runtime

    class Wrong(onnx_runtime.OnnxFile):
        def __call__(self, inputs):
            return tuple(y + 0.01 for y in super().__call__(inputs))

    monkeypatch.setattr(measurements, "OnnxFile", Wrong)
    with pytest.raises(glprune.ModelError, match="was not released"):
        glprune.run(folder / "recipe.yaml", folder / "model.pt", folder / "wrong")
    assert not (folder / "wrong").exists()


PROJECTED = """
import torch
from torch import nn
class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.entry, self.cell, self.out = nn.Linear(8, 6), nn.LSTM(6, 6, proj_size=3), nn.Linear(3, 1)
    def forward(self, x):
        return self.out(self.cell(self.entry(x)[None])[0][0])
def build():
    return Network()
"""
PLANTED = """
task: binary
model: {factory: "network.py:build"}
data: {file: data.parquet, target: y}
target: {max_features: 3}
search: path
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_a_network_that_onnx_has_no_operator_for_is_told_before_anything_is_trained(tmp_path, capfd):
    """An LSTM with projections: one exporter writes a file that ONNX Runtime does not run, the other none."""
    told = []
    folder = write_planted(tmp_path, PROJECTED, PLANTED, 100)
    with pytest.raises(glprune.ModelError, match=r"cannot be exported.*initial_c.*projections") as caught:
        glprune.run(folder / "recipe.yaml", folder / "model.pt", folder / "out", on_event=told.append)
    assert "\n" not in str(caught.value)
    assert not any(isinstance(e, Stage) and e.name.startswith("path") for e in told)
    assert [p.name for p in folder.iterdir() if p.name.startswith("out")] == []
    assert "ONNXRuntimeError" not in capfd.readouterr().err  # it is said once, by whoever catches the error
