"""Whole runs on networks beyond perceptrons: recipe in, slim ONNX file and reloadable weights out."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import onnxruntime as ort
import pytest
import torch

import glprune
from glprune.schema.recipe_loading import load_recipe

NETWORKS = '''
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Codes(nn.Module):
    """Numbers and codes, each code with a table of its own: the forward holds the columns fixed."""

    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(5, 3) for _ in range(4))
        self.body = nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 1))

    def forward(self, numbers, codes):
        parts = [table(codes[:, i]) for i, table in enumerate(self.tables)]
        return self.body(torch.cat([numbers, *parts], dim=1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(5, 8, num_layers=2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(16, 1)

    def forward(self, x):
        return self.out(self.rnn(x)[0].mean(1))


class Attention(nn.Module):
    def __init__(self, width=16, heads=4):
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(b, n, self.num_heads * self.head_dim))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.entry, self.attention = nn.Linear(5, 16), Attention()
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(2))
        self.ffn = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
        self.out = nn.Linear(16, 1)

    def forward(self, x):
        x = self.entry(x)
        x = x + self.attention(self.norms[0](x))
        x = x + self.ffn(self.norms[1](x))
        return self.out(x.mean(1))


def codes(): return Codes()
def recurrent(): return Recurrent()
def transformer(): return Transformer()


def sequences(split):
    """Channels 0 and 3 of five decide the target."""
    seed = {"train": 0, "valid": 1, "test": 2}[split]
    x = torch.randn(160, 6, 5, generator=torch.Generator().manual_seed(seed))
    y = x[:, :, 0].mean(1) + (x[:, :, 3] ** 2).mean(1)
    return DataLoader(TensorDataset(x, y), batch_size=80)


def tables(split):
    """Numbers 1 and codes 2 of four each decide the target."""
    g = torch.Generator().manual_seed({"train": 0, "valid": 1, "test": 2}[split])
    numbers = torch.randn(300, 4, generator=g)
    codes = torch.randint(0, 5, (300, 4), generator=g)
    y = numbers[:, 1] + (codes[:, 2] % 2).float()
    return DataLoader([(dict(numbers=n, codes=c), t) for n, c, t in zip(numbers, codes, y)], batch_size=100)
'''

RECIPE = """
task: regression
model: {{factory: "networks.py:{factory}", inputs: {inputs}}}
data: {{loader: "networks.py:{loader}"}}
penalty: {{inputs: {{strength: 1.0}}, hidden: {{strength: {hidden}}}}}
target: {{max_features: {features}}}
search: path
train: {{epochs: 8, n_lambdas: 10, batch_size: all, lambda_min_ratio: 0.05, full_batch_steps: 5, lr: 0.01}}
refit: {{epochs: 10}}
seed: 0
"""
CASES = {
    "codes": dict(
        inputs="[{name: numbers}, {name: codes, dtype: int}]", loader="tables", hidden=0.2, features=3
    ),
    "recurrent": dict(inputs="[{name: x, axis: 2}]", loader="sequences", hidden=1.0, features=3),
    "transformer": dict(inputs="[{name: x, axis: 2}]", loader="sequences", hidden=1.0, features=3),
}


def module_at(path):
    spec = importlib.util.spec_from_file_location("networks_of_test", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "networks.py").write_text(NETWORKS)
    module = module_at(folder / "networks.py")
    for name, case in CASES.items():
        torch.manual_seed(0)
        network = getattr(module, name)()
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        for _ in range(40):
            for inputs, target in getattr(module, case["loader"])("train"):
                optimizer.zero_grad()
                given = inputs.values() if isinstance(inputs, dict) else [inputs]
                torch.nn.functional.mse_loss(network(*given)[:, 0], target).backward()
                optimizer.step()
        torch.save(network.state_dict(), folder / f"{name}.pt")
        (folder / f"{name}.yaml").write_text(RECIPE.format(factory=name, **case))
    return folder


def run(folder, name, changes=(), suffix=""):
    recipe = load_recipe(folder / f"{name}.yaml", changes)
    return glprune.run(recipe, folder / f"{name}.pt", folder / f"out-{name}{suffix}")


def kept(report):
    return {f.name for f in report.features if f.status == "kept"}


def check_reload(folder, name, result, rows):
    """The reloaded network, the ONNX file and fresh rows at batch 1 and 7 agree."""
    network = glprune.load(result.bundle, getattr(module_at(folder / "networks.py"), name))
    session = ort.InferenceSession(result.bundle / "model.onnx")
    for batch in (1, 7):
        given = [x[:batch] for x in rows]
        feed = {i.name: x.numpy() for i, x in zip(session.get_inputs(), given, strict=True)}
        with torch.no_grad():
            np.testing.assert_allclose(network(*given).numpy(), session.run(None, feed)[0], atol=1e-5)


@pytest.mark.slow
def test_codes_behind_tables_of_their_own_leave_the_file_and_a_constant_takes_their_place(folder):
    result = run(folder, "codes")
    report = result.report
    assert {"numbers.1", "codes.2"} <= kept(report)
    cut = {c.name: c for c in report.removal.cuts}
    assert cut["codes"].removal == "constant"
    assert report.removal.difference <= 1e-5
    shipped = {i.name: i for i in report.export.inputs}
    assert shipped["codes"].dtype == "int64"
    assert set(shipped["numbers"].columns) | set(shipped["codes"].columns) == kept(report)
    plan = json.loads((result.bundle / "plan.json").read_text())
    assert plan["inputs"][1]["constants"] is not None
    widths = [len(i.columns) for i in report.export.inputs]
    check_reload(folder, "codes", result, (torch.randn(7, widths[0]), torch.randint(0, 5, (7, widths[1]))))


@pytest.mark.slow
def test_the_wide_file_ignores_removed_codes_and_numbers(folder):
    result = run(folder, "codes", ["export.signature=original"], "-wide")
    session = ort.InferenceSession(result.bundle / "model.onnx")
    numbers, codes = (
        np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32),
        np.zeros((9, 4), np.int64),
    )
    before = session.run(None, {"numbers": numbers, "codes": codes})[0]
    gone = {f.name for f in result.report.features if f.status == "removed"}
    for name, array, poison in (("numbers", numbers, np.nan), ("codes", codes, 10**6)):
        for column in range(4):
            if f"{name}.{column}" in gone:
                array[:, column] = poison
    np.testing.assert_array_equal(session.run(None, {"numbers": numbers, "codes": codes})[0], before)


@pytest.mark.slow
def test_a_bidirectional_lstm_of_two_layers_loses_channels_and_units_in_one_width(folder):
    result = run(folder, "recurrent")
    report = result.report
    assert {"x0", "x3"} <= kept(report)
    widths = {h.name: h.after for h in report.hidden}
    assert set(widths) == {"rnn.l0", "rnn.l0_reverse", "rnn.l1", "rnn.l1_reverse"}
    assert len(set(widths.values())) == 1
    assert report.removal.difference <= 1e-5
    check_reload(folder, "recurrent", result, (torch.randn(7, 6, len(kept(report))),))


@pytest.mark.slow
def test_a_fused_attention_loses_whole_heads_and_its_head_count_follows(folder):
    result = run(
        folder,
        "transformer",
        ["penalty.inputs=null", "target={max_hidden: 14}", "penalty.hidden.layers={attention.qkv: 0.5}"],
        "-heads",
    )
    report = result.report
    after = {h.name: h.after for h in report.hidden}
    assert after["attention.qkv"] + after["ffn.0"] <= 14
    assert report.removal.difference <= 1e-5
    assert "LayerNorm" in next(r.reason for r in report.removal.refused if r.name == "entry")
    network = glprune.load(result.bundle, module_at(folder / "networks.py").transformer)
    assert network.attention.num_heads == after["attention.qkv"]
    check_reload(folder, "transformer", result, (torch.randn(7, 6, 5),))


@pytest.mark.slow
def test_units_under_layernorm_are_cut_where_the_recipe_allows_it_and_the_change_is_shown(folder):
    changes = [
        "allow_inexact=true",
        "penalty.inputs=null",
        "penalty.hidden.layers={ffn.0: 0, attention.qkv: 0}",
        "target={max_hidden: 38}",
    ]
    report = run(folder, "transformer", changes, "-inexact").report
    cut = next(c for c in report.removal.cuts if c.name == "entry")
    assert "LayerNorm" in cut.inexact
    assert cut.difference > 0
    assert any("LayerNorm" in w and "changes outputs" in w for w in report.warnings)
