"""Plugins by entry points: the example package end to end, penalties held to numbers, one-line refusals."""

import sqlite3
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import glprune
from glprune._imports import load_callable
from glprune._plugins import PluginError, load_plugin
from glprune.audit.verify import VerificationOptions, verify
from glprune.cli.main import main
from glprune.errors import RecipeError, UsageError
from glprune.export.plugin_hooks import run_reporters
from glprune.schema.recipe_loading import load_recipe
from glprune.training.penalties import GroupLasso, GroupMCP, SparseGroupLasso, mcp_thresholds
from glprune.training.penalty_check import violations
from tests.bundle_fixtures import copied
from tests.paths import ROOT

EXAMPLE = ROOT / "examples" / "plugin"
RECIPE = """
task: binary
model: {factory: "network.py:build", loader: numpy}
data:
  source: sqlite
  features: [a, b, c, d, e]
  arguments: {file: FILE, table: rows, features: [a, b, c, d, e], target: y}
penalty: {kind: plugin, plugin: group_elastic_net, arguments: {ridge: 0.2}}
target: {max_features: 2}
search: path
train: {epochs: 3, n_lambdas: 4, full_batch_steps: 3, n_stages: 1, lr: 0.02, lambda_min_ratio: 0.05}
refit: {epochs: 2}
export: {plugins: [columns], exporter: torchscript}
"""
NETWORK = """
from torch import nn
def build():
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 1))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The example package, installed into a folder of its own from a copy of its source."""
    place = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source")
    for file in ("pyproject.toml", "glprune_example_plugin.py"):
        (source / file).write_bytes((EXAMPLE / file).read_bytes())
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--no-index", "--target", str(place), str(source)], check=True)
    return place


@pytest.fixture
def plugged(installed, monkeypatch):
    monkeypatch.syspath_prepend(str(installed))


@pytest.fixture
def problem(tmp_path):
    """A table whose label depends on a and b, a network as an .npz file, and a recipe of plugins."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5))
    y = (x[:, 0] + x[:, 1] > 0).astype(int)
    splits = ["train"] * 120 + ["valid"] * 40 + ["test"] * 40
    with sqlite3.connect(tmp_path / "rows.db") as connection:
        connection.execute("CREATE TABLE rows (a, b, c, d, e, y, split)")
        rows = [(*map(float, r), int(t), s) for r, t, s in zip(x, y, splits, strict=True)]
        connection.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    connection.close()
    (tmp_path / "network.py").write_text(NETWORK)
    torch.manual_seed(0)
    network = load_callable("network.py:build", tmp_path, "test")()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    inputs, target = torch.tensor(x, dtype=torch.float32), torch.tensor(y).float()
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(network(inputs)[:, 0], target).backward()
        optimizer.step()
    np.savez(tmp_path / "model.npz", **{k: v.numpy() for k, v in network.state_dict().items()})
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("FILE", str(tmp_path / "rows.db")))
    return tmp_path


def write_plugin(folder, name, group, code, entry="plug", target=None):
    """A package with one entry point, as an installer would leave it."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-2.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry} = {target or name + ':plug'}\n")


@pytest.fixture
def site(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_a_third_partys_package_takes_part_from_the_loader_to_the_reporter(plugged, problem, monkeypatch):
    monkeypatch.setenv("RUNS", str(problem / "runs.txt"))
    out = problem / "out"
    arguments = [str(problem / "recipe.yaml"), str(problem / "model.npz"), "--out", str(out), "--quiet"]
    allowed = ["--allow-factory", "network.py", "--allow-factory", "glprune_example_plugin"]
    main(["run", *arguments, *allowed, "--reporter", "one_line"])
    report = glprune.Result.load(out).report
    kept = [f.name for f in report.features if f.status == "kept"]
    assert kept == ["a", "b"]
    assert report.penalty.plugin == "group_elastic_net"
    assert max(p.kkt_zero for p in report.path if p.selected) < 0.05
    package = "glprune-example-plugin 1.0"
    names = ["loaders:numpy", "data:sqlite", "penalties:group_elastic_net", "exporters:columns"]
    assert report.run.plugins == {f"glprune.{name}": package for name in names}
    assert report.data.source == f"sqlite ({package})"
    assert "group_elastic_net" in (out / "report.html").read_text()
    assert (problem / "out.columns" / "columns.txt").read_text().split() == kept
    assert (problem / "runs.txt").read_text() == "recipe: removed c, d, e\n"
    assert verify(out, VerificationOptions()).exit_code in (0, 3)


def test_a_plugin_is_held_to_what_allow_factory_names(plugged, problem):
    with pytest.raises(
        RecipeError, match=r"export\.plugins: .*'glprune_example_plugin', which is not listed by --allow"
    ):
        glprune.inspect(problem / "recipe.yaml", problem / "model.npz", allow_factory=["network.py"])


def test_an_unknown_name_is_refused_with_a_guess_before_anything_is_read(plugged, problem):
    recipe = load_recipe(problem / "recipe.yaml", ["penalty.plugin=group_elastic"])
    with pytest.raises(RecipeError, match=r"yaml:8: penalty\.plugin: .*Did you mean 'group_elastic_net'\?"):
        glprune.run(recipe, problem / "model.npz", problem / "out")
    with pytest.raises(RecipeError, match=r"--reporter: no glprune\.reporters plugin 'two'"):
        glprune.run(recipe, problem / "model.npz", problem / "out", reporters=["two"])
    with pytest.raises(UsageError, match="twice"):
        glprune.run(recipe, problem / "model.npz", problem / "out", reporters=["one_line", "one_line"])
    assert not (problem / "out").exists()


def test_nothing_is_imported_before_its_name_is_said(site):
    write_plugin(site, "eager", "glprune.data", "raise RuntimeError('imported')")
    with pytest.raises(RecipeError, match="no glprune"):
        load_plugin("glprune.data", "other", "data.source")
    with pytest.raises(
        RecipeError, match=r"importing plugin 'plug' of eager 2\.0 failed \(RuntimeError: imp"
    ):
        load_plugin("glprune.data", "plug", "data.source")


def test_two_packages_of_one_name_are_refused(site):
    write_plugin(site, "first", "glprune.data", "def plug(split): pass")
    write_plugin(site, "second", "glprune.data", "def plug(split): pass")
    with pytest.raises(RecipeError, match=r"first 2\.0 and second 2\.0 both offer"):
        load_plugin("glprune.data", "plug", "data.source")


def test_what_is_no_function_and_what_hides_another_module_is_refused(site):
    write_plugin(site, "number", "glprune.data", "plug = 3")
    with pytest.raises(RecipeError, match="is not a function"):
        load_plugin("glprune.data", "plug", "data.source")
    write_plugin(site, "hidden", "glprune.reporters", "from urllib.request import urlopen as plug")
    with pytest.raises(RecipeError, match=r"'urllib\.request', which is not listed by --allow-factory"):
        load_plugin("glprune.reporters", "plug", "--reporter", ["hidden"])


@pytest.mark.parametrize("code", ["raise ValueError('two\\nlines')", "raise SystemExit(9)"])
def test_a_plugin_that_raises_is_named_in_one_line(site, code):
    write_plugin(site, "angry", "glprune.reporters", f"def plug(result):\n    {code}\n")
    plugin = load_plugin("glprune.reporters", "plug", "--reporter")
    with pytest.raises(PluginError, match=r"plugin 'plug' of angry 2\.0 failed") as caught:
        plugin(None)
    assert "\n" not in str(caught.value)


def test_a_reporter_that_changes_the_bundle_is_told(audited, site, tmp_path):
    code = "def plug(result):\n    (result.bundle / 'report.md').write_text('all is well')\n"
    write_plugin(site, "liar", "glprune.reporters", code)
    result = glprune.Result.load(copied(audited["slim"], tmp_path / "copy").folder)
    with pytest.raises(PluginError, match=r"liar 2\.0 changed the bundle \(report\.md"):
        run_reporters([load_plugin("glprune.reporters", "plug", "--reporter")], result)


@pytest.mark.parametrize(
    "make",
    [
        lambda w, b: GroupLasso(w),
        lambda w, b: SparseGroupLasso(w, 0.05, b.sizes),
        lambda w, b: SparseGroupLasso(w, 0.95, b.sizes),
        lambda w, b: GroupMCP(w, mcp_thresholds(b.norms(), [8], 1.2)),
    ],
    ids=["group LASSO", "sparse", "nearly LASSO", "MCP"],
)
def test_our_own_penalties_pass_what_a_plugin_must(make):
    assert violations(make) == []


@dataclass(frozen=True)
class WrongThreshold(GroupLasso):
    def prox_(self, blocks, strength, radius=None):
        return super().prox_(blocks, 0.9 * strength, radius)


@dataclass(frozen=True)
class HardThreshold(GroupLasso):
    def prox_(self, blocks, strength, radius=None):
        norms = blocks.norms()
        kept = ((norms > strength * self.weights) & (norms > 0)).float() + 0 * norms
        blocks.scale_(kept)
        return kept


@dataclass(frozen=True)
class NoZeros(GroupLasso):
    def prox_(self, blocks, strength, radius=None):
        norms = blocks.norms()
        factors = (1 / (1 + strength * self.weights / norms.clamp(min=1e-9))).clamp(max=1) + 0 * norms
        blocks.scale_(factors)
        return factors


@dataclass(frozen=True)
class Squared(GroupLasso):
    def value_of_norms(self, norms):
        return self.weights * norms.square()


@dataclass(frozen=True)
class Content(GroupLasso):
    def residuals(self, blocks, lam):
        return 0.0, 0.0


@dataclass(frozen=True)
class Never(GroupLasso):
    def residuals(self, blocks, lam):
        return 1.0, 1.0


@dataclass(frozen=True)
class Unbounded(GroupLasso):
    def prox_(self, blocks, strength, radius=None):
        return super().prox_(blocks, strength, None)


@dataclass(frozen=True)
class PullsAll(GroupLasso):
    @property
    def group_weights(self):
        return self.weights + 1


@dataclass(frozen=True)
class HalfLambda(GroupLasso):
    def zero_lambda(self, blocks):
        return super().zero_lambda(blocks) / 2


@dataclass(frozen=True)
class WrongSmooth(GroupMCP):
    def add_smooth_gradient_(self, blocks, lam):
        super().add_smooth_gradient_(blocks, 2 * lam)


@dataclass(frozen=True)
class HidesNan(GroupLasso):
    def prox_(self, blocks, strength, radius=None):
        return super().prox_(blocks, strength, radius).nan_to_num(0.0)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (WrongThreshold, "is not the proximal operator"),
        (HardThreshold, "is not the proximal operator"),
        (NoZeros, "is not the proximal operator"),
        (Squared, "is not the proximal operator"),
        (Content, "should be 0.5"),
        (Never, "at a solution"),
        (Unbounded, "outside its ball"),
        (PullsAll, "whose weight is 0"),
        (HalfLambda, "zero_lambda"),
        (HidesNan, "not return NaN"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_penalty_whose_zeros_could_not_be_certified_is_refused(kind, said):
    found = violations(lambda weights, blocks: kind(weights))
    assert found
    assert said in found[0]


def test_a_wrong_smooth_part_and_what_is_no_penalty_are_refused():
    assert violations(lambda w, b: WrongSmooth(w, mcp_thresholds(b.norms(), [8], 1.2)))
    assert "not a glprune.training.penalties.Penalty" in violations(lambda w, b: "penalty")[0]
    assert "weights" in violations(lambda w, b: GroupLasso(2 * w))[0]


def test_a_wrong_penalty_of_a_plugin_stops_a_run_before_the_data_is_read(plugged, problem, site):
    code = (
        "from glprune.training.penalties import GroupLasso\n"
        "class Wrong(GroupLasso):\n"
        "    def prox_(self, blocks, strength, radius=None):\n"
        "        return super().prox_(blocks, strength * 0.9, radius)\n"
        "def plug(weights, blocks):\n"
        "    return Wrong(weights)\n"
    )
    write_plugin(site, "wrong", "glprune.penalties", code)
    changes = ["penalty.plugin=plug", "penalty.arguments={}", "data.arguments.file=absent.db"]
    recipe = load_recipe(problem / "recipe.yaml", changes)
    with pytest.raises(PluginError, match=r"wrong 2\.0 is refused, since its zeros could not be certified"):
        glprune.run(recipe, problem / "model.npz", problem / "out")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("penalty.kind=group_lasso", "belong together"),
        ("data.loader=x.py:f", "exactly one of file"),
        ("data.target=y", "target contradicts loader"),
    ],
)
def test_keys_of_plugins_that_contradict_others_are_refused(problem, change, said):
    with pytest.raises(RecipeError, match=said):
        load_recipe(problem / "recipe.yaml", [change])
