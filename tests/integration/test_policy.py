"""Rules on features, and what the report says by segment, against readings made without glprune."""

import json

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, roc_auc_score

import glprune
from glprune.data import load_data
from glprune.errors import DataError, ModelError, RecipeError
from glprune.evaluation.proxies import auc, cross_validated, logistic, ridge
from glprune.metrics.segments import decide
from glprune.model.task import Task
from glprune.pruning.groups import input_groups
from glprune.pruning.units import TensorAxis, UnitSet
from glprune.report.html import render_html
from glprune.schema import bundle as bundles
from glprune.schema.recipe import PenaltySpec
from glprune.schema.recipe_loading import load_recipe
from glprune.search.policy import resolve
from glprune.tables.protected import Attribute, segmented
from glprune.training.objective import Objective, lambda_max
from tests.networks import fit_binary, mlp, split

FEATURES = ["title", "a", "b", "c", "d", "e", "noise"]
NETWORK = """
from torch import nn
def build(first=None):
    return nn.Sequential(*([first] if first else []), nn.Linear(7, 10), nn.ReLU(), nn.Linear(10, 1))
"""
POLICY = """
policy:
  must_drop: [sex]
  derived_from: {title: [form_of_address], form_of_address: sex}
  must_keep: [noise]
  protected: [sex, age, region, d]
  bins: {age: [30, 50]}
  adverse: ["no"]
  threshold: 0.6
  reason_codes: {title: [R1, R2], a: [R2, R3], noise: R3}
  proxies: true
"""
RECIPE = """
task: binary
model: {factory: "network.py:build"}
data:
  file: data.parquet
  target: y
  split: {column: part}
  exclude: [sex, age, region]
  feature_groups: {pair: ["a", "b"]}
penalty: {inputs: {strength: 1.0}}
target: {max_features: 3}
train: {epochs: 3, n_lambdas: 4, batch_size: all, full_batch_steps: 10, n_stages: 2}
refit: {epochs: 10}
seed: 3
export: {exporter: torchscript}
"""


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread):
    """Tiny networks: a second thread only waits."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """'title' gives sex away and decides most of y; 'c' is a weaker proxy of sex; 'noise' matters for nothing."""
    folder = tmp_path_factory.mktemp("policy")
    rng = np.random.default_rng(0)
    rows = 500
    sex = rng.integers(0, 2, rows)
    x = rng.normal(size=(rows, 7))
    x[:, 0] = sex + 0.3 * x[:, 0]
    x[:, 3] += 2 * sex
    x[:, 4] = rng.integers(0, 3, rows)
    z = 2 * (x[:, 0] - 0.5) + x[:, 1] * x[:, 2] + x[:, 3] - 1
    columns = {name: x[:, n] for n, name in enumerate(FEATURES)}
    columns |= {
        "sex": np.where(sex == 1, "f", "m"),
        "age": rng.integers(18, 80, rows).astype(float),
        "region": np.where(np.arange(rows) % 50 == 0, "south", "north"),
        "part": rng.choice(["train", "valid", "test"], rows, p=[0.5, 0.2, 0.3]),
        "y": np.where(z + rng.normal(size=rows) > 0, "yes", "no"),
    }
    pq.write_table(pa.table(columns), folder / "data.parquet")
    (folder / "network.py").write_text(NETWORK)
    (folder / "recipe.yaml").write_text(RECIPE + POLICY)
    torch.manual_seed(0)
    network = build()
    train = columns["part"] == "train"
    inputs = torch.tensor(x[train], dtype=torch.float32)
    target = torch.tensor(columns["y"][train] == "yes").float()
    fit_binary(network, (inputs,), target, 150)
    torch.save(network.state_dict(), folder / "model.pt")
    return folder


@pytest.fixture(scope="module")
def result(folder):
    return glprune.run(folder / "recipe.yaml", folder / "model.pt", folder / "out")


def build(*arguments):
    scope: dict = {}
    exec(NETWORK, scope)
    return scope["build"](*arguments)


def feature(result, name):
    return next(f for f in result.report.features if f.name == name)


def rows_of_test(folder):
    """The columns of the test rows."""
    table = pq.read_table(folder / "data.parquet")
    part = np.array(table["part"].to_pylist())
    return {name: np.array(table[name].to_pylist())[part == "test"] for name in table.column_names}


def matrix(rows, names):
    return np.stack([rows[name] for name in names], axis=1).astype(np.float32)


def probabilities(result, folder):
    """Of class 'yes' for the test rows: by the original network, and by the shipped file."""
    rows = rows_of_test(folder)
    network = build()
    network.load_state_dict(torch.load(folder / "model.pt"))
    with torch.no_grad():
        before = network(torch.tensor(matrix(rows, FEATURES)))[:, 0].numpy()
    session = ort.InferenceSession(result.bundle / "model.onnx")
    (only,) = result.report.export.inputs
    after = session.run(None, {only.name: matrix(rows, only.columns)})[0][:, 0]
    return [1 / (1 + np.exp(-z.astype(np.float64))) for z in (before, after)]


def masks(folder):
    """The rows of every segment, as the policy describes them."""
    rows = rows_of_test(folder)
    return {
        "sex": {"f": rows["sex"] == "f", "m": rows["sex"] == "m"},
        "age": {
            "below 30": rows["age"] < 30,
            "30 to below 50": (rows["age"] >= 30) & (rows["age"] < 50),
            "50 and above": rows["age"] >= 50,
        },
        "region": {"north": rows["region"] == "north", "south": rows["region"] == "south"},
        "d": {"0": rows["d"] == 0, "1": rows["d"] == 1, "2": rows["d"] == 2},
    }


def test_what_must_go_takes_along_what_is_derived_from_it(result):
    title = feature(result, "title")
    assert (title.status, title.reason) == ("removed", "derived_from sex")
    assert (title.norm_selected, title.stage_exit) == (0.0, None)
    assert title.norm_original > 0.5
    (only,) = result.report.export.inputs
    assert "title" not in only.columns
    assert result.report.policy.derived_from == {"title": ["form_of_address"], "form_of_address": ["sex"]}


def test_its_removal_is_certified_before_any_path(result):
    first = result.report.removal.cuts[0]
    assert (first.kind, first.units) == ("input", 1)
    assert first.difference <= 1e-6
    number = [f.name for f in result.report.features].index("title")
    assert {p.norms[number] for p in result.report.path} == {0.0}


def test_what_must_stay_is_not_penalised(result):
    noise = feature(result, "noise")
    assert (noise.status, noise.reason, noise.penalty_weight) == ("kept", "must_keep", 0.0)
    kept = [f for f in result.report.features if f.status == "kept"]
    assert len(kept) <= 3
    assert {f.reason for f in result.report.features if f.status == "removed"} == {
        "derived_from sex",
        "penalty",
    }


def test_without_the_policy_the_penalty_decides_otherwise(folder):
    (folder / "bare.yaml").write_text(RECIPE.replace("stages: 2", "stages: 1"))
    bare = glprune.run(folder / "bare.yaml", folder / "model.pt", folder / "bare")
    assert feature(bare, "title").status == "kept"
    assert feature(bare, "noise").status == "removed"
    assert bare.report.policy is bare.report.segments is bare.report.proxies is None


def calibration_error(y, p):
    bins = np.minimum((p.astype(np.float64) * 15).astype(int), 14)
    return sum(abs((p - y)[bins == b].sum()) for b in range(15)) / len(y)


def test_segment_metrics_are_those_of_both_files(result, folder):
    before, after = probabilities(result, folder)
    target = rows_of_test(folder)["y"] == "yes"
    measured = {a.name: {s.value: s for s in a.segments} for a in result.report.segments.attributes}
    scores = {
        "auroc": roc_auc_score,
        "accuracy": lambda y, p: accuracy_score(y, p >= 0.5),
        "log_loss": log_loss,
        "brier_score": brier_score_loss,
        "calibration_error": calibration_error,
    }
    expected = masks(folder)
    assert list(measured) == list(expected)
    for name, parts in expected.items():
        assert list(measured[name]) == list(parts)
        for value, mask in parts.items():
            segment = measured[name][value]
            assert segment.rows == mask.sum()
            assert segment.suppressed == (mask.sum() < 20)
            for metric in segment.metrics:
                old, new = (scores[metric.name](target[mask], p[mask]) for p in (before, after))
                assert metric.original == pytest.approx(old, abs=1e-5)
                assert metric.final == pytest.approx(new, abs=1e-5)
                assert metric.difference == pytest.approx(new - old, abs=1e-5)


def test_small_segments_have_no_figures(result):
    region = next(a for a in result.report.segments.attributes if a.name == "region")
    small = next(s for s in region.segments if s.value == "south")
    assert small.suppressed
    assert small.rows > 0
    assert small.metrics == []
    assert small.decisions is None


def test_flipped_decisions_are_those_of_both_files(result, folder):
    before, after = (p >= 0.6 for p in probabilities(result, folder))
    everyone = np.ones(len(before), dtype=bool)
    records = [(everyone, result.report.segments.decisions)]
    expected = masks(folder)
    for attribute in result.report.segments.attributes:
        records += [
            (expected[attribute.name][s.value], s.decisions) for s in attribute.segments if not s.suppressed
        ]
    assert len(records) == 10
    for mask, found in records:
        old, new = before[mask], after[mask]
        assert found.flipped == (old != new).sum()
        assert found.to_adverse == (old & ~new).sum()  # 'no' is adverse
        assert found.to_favourable == (~old & new).sum()
        assert (found.adverse_original, found.adverse_final) == ((~old).sum(), (~new).sum())
    assert records[0][1].flipped > 0


def test_reasons_are_retired_where_all_their_features_are_gone(result):
    codes = result.report.reason_codes
    gone = feature(result, "pair").status == "removed"
    assert [c.code for c in codes.retired] == ["R1", *(["R2"] if gone else [])]
    assert [c.code for c in codes.to_review] == (["R3"] if gone else ["R2"])


def test_attributes_are_inside_or_outside_the_network(result):
    status = {a.name: a.status for a in result.report.segments.attributes}
    assert status == {
        "sex": "outside",
        "age": "outside",
        "region": "outside",
        "d": feature(result, "d").status,
    }


def test_proxies_are_in_a_file_of_their_own(result):
    assert result.report.proxies.digest == bundles.digest(result.bundle / "proxy.json")
    analysis = json.loads((result.bundle / "proxy.json").read_text())
    assert analysis["model"] == result.report.digests.outputs["model.onnx"]
    by_name = {a["name"]: {p["source"]: p for p in a["predictions"]} for a in analysis["attributes"]}
    removed = by_name["sex"]["removed inputs"]
    assert removed["value"] > 0.95  # title gives it away
    assert 0.4 < removed["shuffled"] < 0.6
    assert by_name["age"]["kept inputs"]["value"] < 0.1
    assert by_name["region"]["score"]["reason"] is not None
    assert '"value": 0.9' not in (result.bundle / "report.json").read_text()


def test_the_page_tells_of_the_policy(result):
    page = (result.bundle / "report.html").read_text()
    for text in ("derived from sex", "can no longer occur", "By region", "suppressed", "proxy.json"):
        assert text in page
    assert "compliant with" not in page.lower()
    assert page == render_html(result.report)


@pytest.mark.slow
def test_stability_baselines_and_drop_costs_follow_the_policy(folder, monkeypatch):
    monkeypatch.setattr("glprune.evaluation.baselines.RANDOM_DRAWS", 1)
    extra = "stability: {n_resamples: 2, drop_cost: true}\nworkers: {engine: local, processes: 1}\nreport: {baselines: true}\n"
    text = (
        (RECIPE + POLICY).replace("stages: 2", "stages: 1").replace("epochs: 10", "epochs: 2, distill: 0.5")
    )
    (folder / "firm.yaml").write_text(text.replace("proxies: true", "proxies: false") + extra)
    report = glprune.run(folder / "firm.yaml", folder / "model.pt", folder / "firm").report
    names = [f.name for f in report.features]
    title, noise = names.index("title"), names.index("noise")
    for resample in report.stability.resamples:
        assert (resample.kept[title], resample.kept[noise]) == ("0", "1")
    assert (report.stability.removable[title], report.stability.removable[noise]) == ("0", "0")
    for baseline in report.baselines.results:
        for run in baseline.runs:
            assert "title" not in run.kept
            assert "noise" in run.kept
    costs = {c.feature: c for c in report.drop_costs.features}
    assert costs["noise"].reason == "policy.must_keep lists it"
    assert "title" not in costs
    assert report.proxies.performed is False
    assert any(
        "predictions (refit.distill: 0.5), which depend on features that must be dropped: title" in w
        for w in report.warnings
    )


@pytest.mark.parametrize("kind", ["group_lasso", "sparse_group_lasso", "group_mcp"])
def test_lambda_max_leaves_out_what_is_not_penalised(kind):
    torch.manual_seed(0)
    network, x = mlp(inputs=4), torch.randn(60, 4)
    data = split(x, x[:, 0] - 2 * x[:, 1])
    units = UnitSet("x", "input", 4, (TensorAxis("0.weight", 1, torch.arange(4), "reader"),), None)
    groups = input_groups(units, [(str(n), [n]) for n in range(4)])
    weights = torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    task = Task("regression", "logits", 0)
    objective = Objective(network, task, data, [(groups, weights)], spec=PenaltySpec(kind=kind))
    found = lambda_max(objective)
    with torch.no_grad():
        network[0].weight[:, 1:] = 0.0  # what is not penalised stays as it is
    torch.nn.functional.mse_loss(network(x)[:, 0], data.target).backward()
    norms = network[0].weight.grad[:, 1:].double().norm(dim=0)
    if kind == "sparse_group_lasso":  # weights of one element: a soft threshold within, then the norm
        share, gradient = PenaltySpec().l1_share, network[0].weight.grad[:, 1:].double().abs()
        left = (gradient - found * share / 7**0.5).clamp(min=0).norm(dim=0)
        assert float(left.max()) == pytest.approx(found * (1 - share), rel=1e-4)
    else:
        assert found == pytest.approx(float(norms.max()), rel=1e-4)


BAD = [
    ("must_drop: [sex]", "must_drop: [sez]", ":18: policy.must_drop: no feature or column 'sez'. Did you mean 'sex'?"),
    ("must_keep: [noise]", "must_keep: [noize]", "policy.must_keep: no feature or column 'noize'. Did you mean 'noise'?"),
    ("must_keep: [noise]", "must_keep: [sex]", "policy.must_keep: no feature or column 'sex'"),
    ("must_drop: [sex]", "must_drop: [sex, noise]", "policy.must_keep: 'noise' is in must_drop too"),
    ("must_keep: [noise]", "must_keep: [title]", "policy.must_keep: 'title' is derived from sex, in must_drop"),
    ("form_of_address: sex", "form_of_address: title", "policy.derived_from.title: title <- form_of_address <- title"),
    ("form_of_address: sex", "form_of_address: sexx", "no feature or column 'sexx'. Did you mean 'sex'?"),
    ("[R2, R3]", "[R2, R3], agee: R4", "policy.reason_codes: no feature or column 'agee'"),
    ("protected: [sex, age,", "protected: [sex, age, agee,", "policy.protected: no column or feature 'agee'. Did you mean 'age'?"),
    ("bins: {age: [30, 50]}", "bins: {age: [50, 30]}", "policy: bins: the edges of 'age' must be in ascending order"),
    ("bins: {age: [30, 50]}", "bins: {c: [1]}", "bins: 'c' is not in protected"),
    ("bins: {age: [30, 50]}", "bins: {sex: [1]}", "policy.bins.sex: its values are text"),
    ('adverse: ["no"]', "adverse: [maybe]", "policy.adverse: no class 'maybe'; the classes are no, yes"),
    ('adverse: ["no"]', 'adverse: ["no", "yes"]', "policy.adverse lists every class"),
    ("threshold: 0.6", "threshold: 1.5", "policy.threshold should be below 1"),
    ("must_drop: [sex]", "must_dropp: [sex]", "policy.must_dropp is not a key. Did you mean 'must_drop'?"),
    ("must_drop: [sex]", "must_drop: [sex, sex]", "must_drop lists 'sex' twice"),
    ("must_keep: [noise]", "must_keep: [noise, a, c, d]", "policy.must_keep lists 4 features, more than target.max_features: 3"),
    ("must_drop: [sex]", "must_drop: [sex, a, c, d, e, noise]\n  must_keep: []", "every feature of input 'features' goes"),
    ("must_keep: [noise]", "must_keep: [noise, pair, c]\n  x: 1", "policy.x is not a key"),
]  # fmt: skip


def rules_of(path):
    recipe = load_recipe(path)
    return resolve(recipe, load_data(recipe))


@pytest.mark.parametrize(("old", "new", "message"), BAD)
def test_a_wrong_policy_is_one_line_with_the_mend(folder, tmp_path, old, new, message):
    policy = POLICY.replace("  must_keep: [noise]\n", "") if "must_keep: []" in new else POLICY
    text = (RECIPE + policy).replace("network.py", str(folder / "network.py"))
    text = text.replace("data.parquet", str(folder / "data.parquet")).replace(old, new)
    assert new in text
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        rules_of(tmp_path / "recipe.yaml")
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "recipe.yaml:"))
    assert "\n" not in str(caught.value)


def test_rules_that_decide_every_feature_leave_nothing_to_search(folder):
    text = (
        (RECIPE + POLICY).replace("[noise]", "[noise, pair, c, d, e]").replace("max_features: 3", "lambda: 1")
    )
    (folder / "decided.yaml").write_text(text)
    with pytest.raises(RecipeError, match="every feature is decided"):
        glprune.inspect(folder / "decided.yaml", folder / "model.pt")


def test_protected_needs_a_file(tmp_path):
    text = RECIPE.replace(
        "file: data.parquet\n  target: y\n  split: {column: part}\n  exclude: [sex, age, region]",
        "loader: a.py:b",
    )
    (tmp_path / "recipe.yaml").write_text(text + POLICY)
    with pytest.raises(RecipeError, match=r"policy\.protected needs a file"):
        load_recipe(tmp_path / "recipe.yaml")


def test_a_feature_that_is_not_one_hot_is_no_attribute(folder):
    text = (RECIPE + POLICY).replace("protected: [sex,", "protected: [pair, sex,")
    (folder / "dense.yaml").write_text(text)
    with pytest.raises(DataError, match="feature 'pair' is not one-hot: row 1 has several columns"):
        load_data(load_recipe(folder / "dense.yaml"))


def test_one_hot_features_and_files_of_their_own_splits_give_attributes(folder, tmp_path):
    table = pq.read_table(folder / "data.parquet")
    d, part = (np.array(table[name].to_pylist()) for name in ("d", "part"))
    table = table.append_column("kind=x", pa.array((d == 0) * 1.0)).append_column(
        "kind=y", pa.array((d == 1) * 1.0)
    )
    for name in ("train", "valid", "test"):
        pq.write_table(table.filter(pa.array(part == name)), tmp_path / f"{name}.parquet")
    text = (RECIPE + POLICY).replace(
        "file: data.parquet", "train: train.parquet\n  valid: valid.parquet\n  test: test.parquet"
    )
    text = text.replace("  split: {column: part}\n", "").replace("exclude: [", "exclude: [part, ")
    text = text.replace('["a", "b"]}', '["a", "b"], kind: "kind=*"}').replace(
        "protected: [", "protected: [kind, "
    )
    (tmp_path / "recipe.yaml").write_text(text)
    kind = load_data(load_recipe(tmp_path / "recipe.yaml")).protected[0]
    expected = np.array(["x", "y", "none of its columns"])[d[part == "test"].astype(int)]
    assert [kind.labels[n] for n in kind.values["test"].tolist()] == expected.tolist()


def test_a_feature_that_cannot_be_cut_is_an_error_when_it_must_go(folder):
    (folder / "normed.py").write_text(NETWORK.replace("first=None", "first=nn.LayerNorm(7)"))
    (folder / "normed.yaml").write_text((RECIPE + POLICY).replace("network.py", "normed.py"))
    torch.save(build(torch.nn.LayerNorm(7)).state_dict(), folder / "normed.pt")
    with pytest.raises(
        ModelError, match=r"policy.must_drop: 'title' cannot be cut out of the network \(.*LayerNorm"
    ):
        glprune.run(folder / "normed.yaml", folder / "normed.pt", folder / "normed")
    assert not (folder / "normed").exists()


def test_a_feature_the_network_does_not_read_cannot_be_kept(folder):
    state = torch.load(folder / "model.pt")
    state["0.weight"][:, 6] = 0.0
    torch.save(state, folder / "blind.pt")
    with pytest.raises(ModelError, match="the trained network does not read 'noise'"):
        glprune.run(folder / "recipe.yaml", folder / "blind.pt", folder / "blind")


def test_a_policy_survives_the_round_trip(result, folder):
    recipe = load_recipe(folder / "recipe.yaml")
    again = load_recipe(result.bundle / "recipe.resolved.yaml")
    assert again.policy == recipe.policy


def attribute(values, train=None):
    values = np.array(values)
    return Attribute("x", {"train": values if train is None else np.array(train), "test": values}, ("x",))


def test_many_numbers_are_divided_at_the_quartiles_of_the_training_rows():
    train = np.arange(101.0)
    parts = segmented(attribute([-5.0, 24.0, 25.0, 75.0, 500.0, np.nan], train), None)
    assert parts.labels == ("below 25", "25 to below 50", "50 to below 75", "75 and above", "missing")
    assert parts.number["test"].tolist() == [0, 0, 1, 3, 3, 4]
    assert parts.by == "quartiles of the training rows"


def test_segments_of_large_numbers_have_names_of_their_own():
    parts = segmented(attribute([20210101.0, 20210102.0]), None)
    assert parts.labels == ("20210101", "20210102")
    parts = segmented(attribute([0.12345671, 0.12345672, 3.0]), None)
    assert parts.labels == ("0.12345671", "0.12345672", "3.0")
    edges = segmented(attribute([1.0]), [2.5, 1234567.0])
    assert edges.labels == ("below 2.5", "2.5 to below 1234567", "1234567 and above")


def test_identities_too_large_for_numbers_are_no_segments(folder):
    table = pq.read_table(folder / "data.parquet")
    identity = pa.array([2**53 + n % 2 for n in range(len(table))])
    pq.write_table(table.append_column("identity", identity), folder / "identities.parquet")
    text = RECIPE.replace("data.parquet", "identities.parquet").replace("region]", "region, identity]")
    (folder / "identities.yaml").write_text(text + "policy: {protected: [identity]}\n")
    with pytest.raises(
        DataError, match=r"'identity' holds 9007199254740993 in row 2; .*; write them as text"
    ):
        load_data(load_recipe(folder / "identities.yaml"))


def test_few_numbers_are_their_own_segments():
    parts = segmented(attribute([2.0, 0.0, 1.0, 2.0]), None)
    assert parts.labels == ("0", "1", "2")
    assert parts.number["test"].tolist() == [2, 0, 1, 2]


def test_binary_decisions_go_by_the_threshold_and_others_by_the_largest_probability():
    logits = torch.logit(torch.tensor([0.59, 0.61, 0.2]))[:, None]
    assert decide(Task("binary", "logits", 2).scorer, logits, 0.6).tolist() == [0, 1, 0]
    two = torch.tensor([[0.41, 0.59], [0.3, 0.7]])
    assert decide(Task("binary", "probabilities", 2, width=2).scorer, two, 0.6).tolist() == [0, 1]
    three = torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.35, 0.25]]).log()
    assert decide(Task("multiclass", "logits", 3).scorer, three, 0.6).tolist() == [1, 0]


def test_proxy_estimators_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6))
    x -= x.mean(0)
    y = x @ rng.normal(size=6) + rng.normal(size=200)
    new = rng.normal(size=(50, 6))
    np.testing.assert_allclose(ridge(x, y, new), Ridge(alpha=1.0).fit(x, y).predict(new), atol=1e-10)
    theirs = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000).fit(x, y > 0).decision_function(new)
    np.testing.assert_allclose(logistic(x, (y > 0) * 1.0, new), theirs, atol=2e-3)
    ties = np.round(theirs)
    assert auc(ties, new[:, 0] > 0) == pytest.approx(roc_auc_score(new[:, 0] > 0, ties))


def test_cross_validation_is_the_same_every_time_and_near_chance_for_noise():
    rng = np.random.default_rng(1)
    x, classes = rng.normal(size=(300, 5)), rng.integers(0, 3, 300).astype(float)
    found = cross_validated(x, classes, True, 7)
    assert found.tolist() == cross_validated(x, classes, True, 7).tolist()
    assert 0.4 < found.mean() < 0.6
    assert cross_validated(x, x[:, 0] + 0.1 * x[:, 1], False, 7).mean() > 0.99
