"""Bundles to be audited: made by short runs once, then copied, changed and sealed again."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock

import glprune
from glprune import pipeline
from glprune.audit import signing
from glprune.report.html import render_html
from glprune.report.markdown import render_markdown
from glprune.schema import bundle as bundles
from glprune.schema.manifest import make_manifest
from glprune.schema.recipe_loading import load_recipe
from glprune.schema.report import Report
from tests.networks import fit_binary

NETWORKS = """
import torch
from torch import nn
def plain():
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 1))
class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(5, 3), nn.Embedding(4, 3)])
        self.first = nn.Linear(8 + 6, 8)
        self.out = nn.Linear(8, 1)
    def forward(self, numbers, codes):
        parts = [table(codes[:, i]) for i, table in enumerate(self.tables)]
        return self.out(torch.relu(self.first(torch.cat([numbers, *parts], dim=1))))
class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 1)
    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])
def sequences(split):
    g = torch.Generator().manual_seed({"train": 0, "valid": 1, "test": 2}[split])
    x = torch.randn(60, 5, 4, generator=g)
    return [(x, x[:, :, 0].mean(1))]
"""
FAST = """
train: {epochs: 3, n_lambdas: 4, batch_size: all, lambda_min_ratio: 0.05, full_batch_steps: 3, n_stages: 2, lr: 0.01}
refit: {epochs: 3}
seed: 3
"""
PLAIN = """
task: binary
model: {factory: "networks.py:plain"}
data: {file: data.parquet, target: y, features: ["?"], exclude: [y], feature_groups: {pair: ["a", "b"]},
       standardize: train}
penalty: {inputs: {strength: 1.0}, hidden: {strength: 0.3}}
target: {max_features: 3}
export: {exporter: torchscript}
"""
RULED = (
    PLAIN
    + """
policy:
  must_drop: [h]
  derived_from: {g: h}
  must_keep: [d]
  protected: [h, kind]
  min_segment_rows: 5
  adverse: ["no"]
  reason_codes: {h: Too much of h, g: Too much of g or d, d: Too much of g or d, pair: Not enough of the pair}
  proxies: true
"""
)
MIXED = """
task: binary
model:
  factory: "networks.py:Mixed"
  inputs:
  - {name: numbers, columns: ["?"]}
  - {name: codes, columns: [kind, place], dtype: int}
data: {file: data.parquet, target: y}
penalty: {inputs: {strength: 1.0}}
target: {max_features: 4}
export: {signature: original}
"""
RECURRENT = """
task: regression
model: {factory: "networks.py:Recurrent", inputs: [{name: x, axis: 2}]}
data: {loader: "networks.py:sequences"}
penalty: {inputs: {strength: 1.0}, hidden: {strength: 1.0}}
target: {max_features: 2}
"""
NAMES = ["a", "b", "c", "d", "e", "f", "g", "h"]


def write_problem(folder):
    """A data set whose target depends on a, b and c, and networks trained a little on it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(240, 8)) * np.arange(1, 9) + 5
    z = (x[:, 0] - 5) + (x[:, 1] - 5) / 2 + (x[:, 2] - 5)
    columns = {n: pa.array(x[:, i]) for i, n in enumerate(NAMES)}
    columns |= {"kind": pa.array(rng.integers(0, 5, 240)), "place": pa.array(rng.integers(0, 4, 240))}
    columns["y"] = pa.array(np.where(z > 0, "yes", "no"))
    pq.write_table(pa.table(columns), folder / "data.parquet")
    (folder / "networks.py").write_text(NETWORKS)
    scope: dict = {}
    exec(NETWORKS, scope)
    inputs = torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32)
    codes = torch.stack([torch.tensor(columns[n].to_numpy()) for n in ("kind", "place")], dim=1)
    target = torch.tensor(z > 0).float()
    for name, given in (("plain", (inputs,)), ("Mixed", (inputs, codes)), ("Recurrent", None)):
        torch.manual_seed(0)
        network = scope[name]()
        if given:
            fit_binary(network, given, target, 60)
        torch.save(network.state_dict(), folder / f"{name}.pt")
    for name, text in (
        ("plain", PLAIN),
        ("ruled", RULED),
        ("Mixed", MIXED),
        ("Recurrent", RECURRENT),
    ):
        (folder / f"{name}.yaml").write_text(text + FAST)


RUNS = {
    "slim": ("plain", [], "dynamo"),
    "ruled": ("ruled", [], "torchscript"),
    "wide": ("plain", ["export.signature=original"], "dynamo"),
    "digested": ("plain", ["export.signature=original", "export.names=digest"], "torchscript"),
    "other": ("plain", ["seed=4", "target.max_features=2", "report.domain=insurance"], "torchscript"),
    "mixed": ("Mixed", [], "torchscript"),
    "recurrent": ("Recurrent", [], "torchscript"),
    "kept": (
        "ruled",
        ["export.keep_original=true", "export.quantize=int8", "policy.proxies=false", "search=path"],
        "torchscript",
    ),
}


class Bundles(dict):
    """Base bundles by name, each made when it is first asked for, by one of the test processes for all."""

    def __init__(self, folder):
        self.folder = folder
        with FileLock(folder / "problem.lock"):
            if not (folder / "problem").exists():
                write_problem(folder)
                (folder / "problem").touch()

    def __missing__(self, name):
        with FileLock(self.folder / f"{name}.lock"):
            if not (self.folder / name).exists():
                with mock.patch.object(pipeline, "LATENCY_BATCHES", (1,)):
                    make_bundle(self.folder, name)
        self[name] = self.folder / name
        return self[name]


def make_bundle(folder, name):
    recipe_name, changes, exporter = RUNS[name]
    network = {"ruled": "plain"}.get(recipe_name, recipe_name)
    recipe = load_recipe(folder / f"{recipe_name}.yaml", [*changes, f"export.exporter={exporter}"])
    trained = recipe_name in (
        "plain",
        "ruled",
    )  # Mixed gets its columns in other units, Recurrent is as built
    return glprune.run(recipe, folder / f"{network}.pt", folder / name, accept_original=not trained).bundle


@dataclass(frozen=True)
class Copy:
    """A bundle to be changed."""

    folder: Path

    def __truediv__(self, name):
        return self.folder / name

    def json(self, name=bundles.REPORT):
        return json.loads((self.folder / name).read_text())

    def write(self, value, name=bundles.REPORT):
        bundles.write_json(self.folder / name, value)

    def edit(self, change, name=bundles.REPORT):
        value = self.json(name)
        change(value)
        self.write(value, name)

    def model(self, name=bundles.ONNX):
        return onnx.load_from_string((self.folder / name).read_bytes())

    def put(self, model, name=bundles.ONNX):
        (self.folder / name).write_bytes(model.SerializeToString(deterministic=True))

    def removed(self):
        """Positions of the columns of the wide file that nothing may read."""
        kept = self.json(bundles.PLAN)["inputs"][0]["kept"]
        return [c for c in range(8) if c not in kept]


def copied(bundle, place):
    shutil.copytree(bundle, place, symlinks=True)
    return Copy(place)


def follow(copy):
    """Bring report and page up to date with the other files, as a dishonest producer would."""
    try:
        report = copy.json()
        for name in report["digests"]["outputs"]:
            if (copy / name).exists():
                report["digests"]["outputs"][name] = bundles.digest(copy / name)
        report["digests"]["recipe_resolved"] = report["digests"]["outputs"][bundles.RECIPE]
        report["size"]["onnx_bytes_after"] = (copy / bundles.ONNX).stat().st_size
        copy.write(report)
        page = render_html(Report.model_validate(report), pictures=False)
        (copy / bundles.PAGE).write_text(page)
        (copy / bundles.SUMMARY).write_text(render_markdown(Report.model_validate(report)))
    except (ValueError, KeyError, OSError):
        return


def seal(copy, key):
    """Write a manifest of whatever is there and sign it."""
    write_list(copy)
    resign(copy, key)


def write_list(copy):
    """Write a manifest of whatever is there."""
    files = {
        p.relative_to(copy.folder).as_posix(): p.read_bytes()
        for p in copy.folder.rglob("*")
        if p.is_file() and p.name != bundles.MANIFEST and bundles.SIGNATURES not in p.parts
    }
    copy.write(make_manifest(files), bundles.MANIFEST)


def resign(copy, key):
    signing.sign(copy.folder, (copy / bundles.MANIFEST).read_bytes(), key)
