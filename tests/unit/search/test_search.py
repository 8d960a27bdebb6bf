"""What the user asks for is what the shipped network has: sizes counted anew from the bundle's own files."""

import re

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import glprune
from glprune import pipeline
from glprune.data.splits import first_rows
from glprune.errors import TargetError
from glprune.runtime.events import silent
from glprune.schema.recipe import resolve_budget
from glprune.schema.recipe_loading import load_recipe
from glprune.search import refit, search
from glprune.search.budget import (
    MEASURES,
    SizeTarget,
    filled,
    full_support,
    size_of_support,
    uniform_support,
    unit_costs,
)
from glprune.search.prepare import prepare

NETWORK = """
from torch import nn
def build():
    layers = [nn.Linear(10, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 1)]
    return nn.Sequential(*layers)
"""
RECIPE = """
task: regression
model: {factory: "network.py:build"}
data: {file: data.parquet, target: y}
penalty: {inputs: {strength: 1.0}, hidden: {strength: 1.0}, input_strengths: [1.0]}
target: {max_features: 3}
search: path
train: {epochs: 2, n_stages: 3, n_lambdas: 4, full_batch_steps: 5}
refit: {epochs: 15}
export: {exporter: torchscript}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten columns, of which the target reads three, and a trained network."""
    folder = tmp_path_factory.mktemp("search")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 10)).astype(np.float32)
    y = np.sin(x[:, 0]) + x[:, 1] * x[:, 2] + 0.1 * rng.normal(size=500).astype(np.float32)
    pq.write_table(
        pa.table({f"x{i}": x[:, i] for i in range(10)} | {"y": y.astype(np.float32)}), folder / "data.parquet"
    )
    (folder / "network.py").write_text(NETWORK)
    (folder / "recipe.yaml").write_text(RECIPE)
    torch.manual_seed(0)
    scope: dict = {}
    exec(NETWORK, scope)
    network = scope["build"]().train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    inputs, target = torch.tensor(x[:300]), torch.tensor(y[:300])
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(network(inputs)[:, 0], target).backward()
        optimizer.step()
    torch.save(network.state_dict(), folder / "model.pt")
    return folder


def run(folder, name, *changes):
    recipe = load_recipe(folder / "recipe.yaml", list(changes))
    return glprune.run(recipe, folder / "model.pt", folder / name)


def widths(result):
    """(inputs, outputs) of every matrix of the shipped file, from the file itself."""
    model = onnx.load(result.bundle / "model.onnx")
    shapes = [tuple(i.dims) for i in model.graph.initializer if len(i.dims) == 2]
    return [sorted(s) for s in shapes]


def macs_of(result):
    return sum(a * b for a, b in widths(result))


def test_stages_lead_to_the_planted_features_and_each_is_recorded(folder):
    report = run(folder, "features").report
    assert [f.name for f in report.features if f.status == "kept"] == ["x0", "x1", "x2"]
    counts = [s.features for s in report.stages]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 3
    assert [s.number for s in report.stages] == list(range(1, len(counts) + 1))
    exits = {f.stage_exit for f in report.features if f.status == "removed"}
    assert exits <= set(range(1, len(counts) + 1))
    assert len({p.stage for p in report.path if p.selected}) == len(counts)
    assert all(p.norms[0] > 0 for p in report.path)
    assert any("hidden units were removed along the same path" in s for s in report.not_measured)


@pytest.mark.parametrize("target", ["macs", "parameters"])
def test_a_budget_of_hidden_units_is_used_up_as_far_as_one_unit_allows(folder, target):
    changes = (f'target={{{target}: "41%"}}', "penalty.inputs=null", "train.n_stages=1")
    result = run(folder, f"used-{target}", *changes)
    size, dearest = result.report.size, {"macs": 10 + 16, "parameters": 10 + 1 + 2 + 16}[target]
    before, after = (getattr(size, f"{target}_{when}") for when in ("before", "after"))
    assert 0.41 * before - dearest <= after <= 0.41 * before
    assert all(p.kkt_zero <= 0.02 for p in result.report.path if p.selected)


@pytest.mark.slow
def test_a_refit_follows_the_original_network_only_where_that_reads_no_more(folder):
    features = run(folder, "reads-less", "refit.epochs=1", "train.n_stages=1").report
    hidden = run(
        folder,
        "reads-all",
        "target={max_hidden: 20}",
        "penalty.inputs=null",
        "refit.epochs=1",
        "train.n_stages=1",
    ).report
    asked = run(
        folder, "asked", "target={max_hidden: 20}", "penalty.inputs=null", "refit={epochs: 1, distill: 0}"
    ).report
    assert (features.refit.distill, hidden.refit.distill, asked.refit.distill) == (0.0, 0.5, 0.0)


@pytest.mark.slow
def test_what_lost_too_much_is_not_refitted_again(folder, monkeypatch):
    seen = []

    def refitted(job, removed, spec=None):
        if spec is None:
            seen.append(tuple(removed.columns[0].tolist()))
        return refit.refit_or_resume(job, removed, spec)

    monkeypatch.setattr(search, "refit_or_resume", refitted)
    with pytest.raises(glprune.TargetError, match="no network tried keeps"):
        run(
            folder,
            "strict",
            "target={max_drop: {metric: r2, amount: 0}}",
            "penalty.hidden=null",
            "refit.lr=1e-9",
        )
    assert len(seen) == len(set(seen)) > 0


@pytest.mark.parametrize("budget", ["40%", 200])
def test_a_budget_of_macs_is_kept_by_the_file(folder, budget):
    result = run(folder, f"macs{budget}".strip("%"), f"target={{macs: {budget}}}")
    limit = resolve_budget(budget, 10 * 24 + 24 * 16 + 16)
    assert result.report.size.macs_after == macs_of(result) <= limit
    assert macs_of(result) > 0.5 * limit


def test_a_budget_of_parameters_is_kept_by_the_slim_network(folder):
    result = run(folder, "parameters", 'target={parameters: "50%"}')
    size = result.report.size
    assert size.parameters_before == 10 * 24 + 24 + 48 + 24 * 16 + 16 + 16 + 1
    assert size.parameters_after <= size.parameters_before / 2
    network = glprune.load(result.bundle, _builder())
    assert sum(p.numel() for p in network.parameters()) == size.parameters_after


def _builder():
    scope: dict = {}
    exec(NETWORK, scope)
    return scope["build"]


def test_of_several_balances_the_best_on_the_validation_split_goes_on(folder):
    seen = []
    recipe = load_recipe(
        folder / "recipe.yaml",
        ['target={macs: "40%"}', "penalty.input_strengths=[0.2, 5]", "train.n_stages=1"],
    )
    result = glprune.run(recipe, folder / "model.pt", folder / "balance", on_event=seen.append)
    paths = [e for e in seen if isinstance(e, glprune.runtime.events.Stage) and e.name.startswith("path")]
    tried = [e for e in paths if "removed groups back" not in e.detail]
    assert len(tried) == 2 * len(result.report.stages)
    assert all(s.input_strength in (0.2, 5) for s in result.report.stages)


def test_max_drop_finds_the_smallest_network_that_holds(folder):
    report = run(
        folder, "drop", "target={max_drop: {metric: r2, amount: 0.05}}", "penalty.hidden=null"
    ).report
    assert report.refit.metric >= report.selection.reference - 0.05
    assert {f.name for f in report.features if f.status == "kept"} >= {"x1", "x2"}
    assert sum(f.status == "kept" for f in report.features) <= 4
    assert report.stages[-1].metric == report.refit.metric


def test_a_latency_that_no_width_reaches_is_refused_before_training(folder):
    seen = []
    recipe = load_recipe(folder / "recipe.yaml", ["target={latency: 1.0e-7}"])
    with pytest.raises(glprune.TargetError, match="with one unit in every layer") as caught:
        glprune.run(recipe, folder / "model.pt", folder / "fast", on_event=seen.append)
    assert caught.value.exit_code == 5
    assert not any(isinstance(e, glprune.runtime.events.PointDone) for e in seen)
    assert not (folder / "fast").exists()


@pytest.mark.slow
def test_a_latency_every_network_has_is_met_and_named(folder):
    report = run(folder, "slow", "target={latency: 1000}", "train.n_stages=1").report
    assert report.selection.rule == "latency at batch 1 at most 1000 ms"
    assert report.latency[0].slim_ms < 1000


@pytest.mark.parametrize("slower", [1.0, 1.3])
def test_a_latency_is_met_by_the_clock_that_is_read(folder, monkeypatch, slower):
    """The clock counts products; on trained networks it may be slower than widths alone had promised."""
    read = []

    class Clock:
        def __init__(self, job, batch, folder):
            self.job, self.whole, self.calls = job, self.count(job.network, first_rows(job.data.test, 1)), 0

        def count(self, network, inputs):
            return MEASURES["macs"](network, inputs)

        def __call__(self, network, selection):
            self.calls += 1
            inputs = selection(first_rows(self.job.data.test, 1))
            share = self.count(network, inputs) / self.whole
            if self.calls > search._LATENCY_BISECTIONS + 1:
                share *= slower
                read.append(share)
            return 1e3 * share, share

    monkeypatch.setattr(pipeline, "OnnxLatencyMeter", Clock)
    result = run(
        folder, f"clock{slower}", 'target={latency: "40%"}', "train.n_stages=1", "penalty.inputs=null"
    )
    assert 0.25 < read[-1] <= 0.4
    assert [share <= 0.4 for share in read] == [False] * (len(read) - 1) + [True]
    assert len(read) == (1 if slower == 1 else 2)
    assert macs_of(result) == pytest.approx(read[-1] / slower * (10 * 24 + 24 * 16 + 16))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("{macs: 50%, max_features: 3}", "exactly one"),
        ("{macs: 120%}", "target.macs should be a share above 0 such as 30% or a number"),
        ("{macs: 100.5%}", "target.macs"),
        ("{parameters: 0%}", "target.parameters should be a share above 0"),
        ("{latency: 0.0 %}", "target.latency should be a share above 0"),
        ("{macs: 0}", "target.macs"),
        ("{macs: 50%, max_hidden: 3}", "counts hidden units too"),
        ("{max_features: 3, batch: 8}", "batch belongs to latency"),
        ("{latency: -1}", "target.latency"),
    ],
)
def test_targets_that_contradict_are_refused(folder, target, message):
    with pytest.raises(glprune.RecipeError, match=message):
        load_recipe(folder / "recipe.yaml", [f"target={target}"])


def test_costs_are_those_of_cutting_one_unit(folder):
    from glprune.runtime.events import silent
    from glprune.search.prepare import prepare

    job = prepare(load_recipe(folder / "recipe.yaml"), folder / "model.pt", False, silent)
    costs = unit_costs(job, MEASURES["macs"])
    # a column saves 24 products for 24 weights; a unit of the first layer 10 + 16 for 16, of the second 24 + 1 for 1
    found = np.array([costs[g.name] for g in job.groups])
    assert found / found[0] == pytest.approx([1.0, 26 / 16, 25.0])
    assert found.mean() == pytest.approx(1.0)
    alive = [torch.arange(len(g.labels)) < 2 for g in job.groups]
    assert size_of_support(job, alive, MEASURES["macs"]) == 2 * 2 + 2 * 2 + 2


def test_batchnorm_statistics_are_means_over_the_training_rows_after_a_refit(folder):
    """Re-estimated statistics are the mean over batches, whatever the running ones had become."""
    from glprune.data import TensorSplit
    from glprune.schema.recipe import RefitSpec
    from glprune.training.refit import update_batchnorm

    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    split = TensorSplit((x,), torch.zeros(64))
    fresh = update_batchnorm(network, lambda inputs: inputs, split, RefitSpec(batch_size=16))
    batches = network[0](x).detach().split(16)
    torch.testing.assert_close(fresh[1].running_mean, torch.stack([b.mean(0) for b in batches]).mean(0))
    torch.testing.assert_close(fresh[1].running_var, torch.stack([b.var(0) for b in batches]).mean(0))
    assert fresh[1].momentum == 0.1
    assert torch.equal(network[1].running_mean, torch.zeros(4))
    assert not fresh.training


@pytest.mark.parametrize("share", ["15%", "35%", "60%"])
def test_what_a_path_leaves_of_a_budget_is_filled_until_nothing_fits(folder, share):
    recipe = load_recipe(folder / "recipe.yaml", [f"target={{macs: {share}}}", "penalty.inputs=null"])
    job = prepare(recipe, folder / "model.pt", False, silent)
    limit = resolve_budget(share, size_of_support(job, full_support(job.groups), MEASURES["macs"]))
    goal = SizeTarget("macs", limit, ("hidden",), "target.macs", slack=0.02)
    alive = uniform_support(job, 0.0, ("hidden",))
    marks = filled(job, alive, goal)

    def size(changed):
        return size_of_support(job, changed, MEASURES["macs"])

    assert all(bool((after | ~before).all()) for before, after in zip(alive, marks, strict=True))
    assert size(marks) <= limit
    assert torch.equal(marks[0], alive[0])  # inputs are not under the budget's penalty
    for number in (1, 2):
        for unit in torch.nonzero(~marks[number]).flatten().tolist():
            more = [m.clone() for m in marks]
            more[number][unit] = True
            assert size(more) > limit
    assert size(marks) >= 0.9 * limit


def test_units_that_come_back_are_those_of_the_least_penalty(folder):
    recipe = load_recipe(folder / "recipe.yaml", ["target={macs: 30%}", "penalty.inputs=null"])
    job = prepare(recipe, folder / "model.pt", False, silent)
    goal = SizeTarget("macs", 200, ("hidden",), "target.macs")
    marks = filled(job, uniform_support(job, 0.0, ("hidden",)), goal)
    for number in (1, 2):
        weights, kept = job.weights(job.groups[number]), marks[number].clone()
        kept[0] = False  # was never removed
        removed = ~marks[number]
        if bool(kept.any()) and bool(removed.any()):
            assert float(weights[kept].max()) <= float(weights[removed].min())


@pytest.mark.parametrize("target", ["macs", "parameters"])
def test_no_layer_starves_and_a_budget_that_is_not_used_is_explained(folder, target):
    result = run(folder, f"even-{target}", f'target={{{target}: "30%"}}', "penalty.inputs=null")
    report = result.report
    used = getattr(report.size, f"{target}_after") / (0.3 * getattr(report.size, f"{target}_before"))
    assert used <= 1
    assert any(f"of target.{target}" in w for w in report.warnings) == (used < 0.97)
    shares = [layer.after / layer.before for layer in report.hidden]
    assert max(shares) <= 4 * min(shares)


@pytest.mark.parametrize("target", ["macs", "parameters"])
def test_a_joint_budget_does_not_starve_the_inputs(folder, target):
    result = run(folder, f"joint-{target}", f'target={{{target}: "20%"}}', "penalty.input_strengths=[3.0]")
    report = result.report
    used = getattr(report.size, f"{target}_after") / getattr(report.size, f"{target}_before")
    assert 0.15 < used <= 0.2
    kept = [feature.name for feature in report.features if feature.status == "kept"]
    assert len(kept) >= 2
    assert all(stage.metric > 0.3 for stage in report.stages)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("macs: 1000", "target.macs: 1,000: the network has only 640 multiply-accumulates; ask for less"),
        (
            "parameters: 1%",
            "target.parameters: 1% cannot be met: with one group left in every penalised layer",
        ),
    ],
)
def test_a_budget_that_is_met_already_or_cannot_be_is_refused_before_training(folder, target, message):
    with pytest.raises(TargetError, match=re.escape(message)):
        run(folder, "no", f"target={{{target}}}")
    assert not (folder / "no").exists()
