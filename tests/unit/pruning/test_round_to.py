"""Hidden widths rounded up to multiples: what is kept, what is counted, and what the clock decides."""

import onnx
import pytest
import torch
from torch import nn

import glprune
from glprune import pipeline
from glprune.audit.checks.figures.consistency import check_consistency
from glprune.audit.verify import verify
from glprune.errors import RecipeError
from glprune.export.latency import OnnxLatencyMeter
from glprune.pruning.groups import hidden_groups, input_groups, support, zero_units_
from glprune.pruning.planner import plan_units
from glprune.pruning.removal import _step, cut_uncertified, kept_units, remove
from glprune.pruning.units import TensorAxis, UnitSet
from glprune.runtime.events import Stage
from glprune.schema.recipe_loading import load_recipe
from glprune.schema.report import Latency
from tests.bundle_fixtures import write_problem

HIDDEN = ["target.max_features=null", "penalty.inputs=null", "penalty.hidden.strength=1.0"]


def perceptron():
    return nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 13), nn.Tanh(), nn.Linear(13, 2))


def images():
    return nn.Sequential(
        nn.Conv1d(3, 12, 3),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 9),
        nn.ReLU(),
        nn.Linear(9, 2),
    )


class Sequences(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = (
            nn.LSTM(6, 10, num_layers=2, batch_first=True, bidirectional=True),
            nn.Linear(20, 1),
        )

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


CASES = {
    "perceptron": (perceptron, (10,), 1),
    "images": (images, (3, 8), 1),
    "sequences": (Sequences, (5, 6), 2),
}


def thinned(name, kept=3):
    """A network all but a few of whose units have zero weights behind them, its groups and rows."""
    build, row, axis = CASES[name]
    torch.manual_seed(0)
    network, x = build().eval(), torch.randn(16, *row)
    units = [u for u in plan_units(network, (x,), [axis], ["x"]) if not u.refused]
    features = [(str(c), [c]) for c in range(row[axis - 1])]
    groups = [input_groups(u, features) if u.kind == "input" else hidden_groups(u) for u in units]
    for g in groups:
        marked = torch.ones(g.units.count, dtype=torch.bool)
        marked[torch.randperm(g.units.count)[: 2 if g.kind == "input" else kept]] = False
        zero_units_(network.state_dict(), g.units, marked)
    return network, groups, x, axis


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("multiple", [1, 4, 8])
def test_widths_are_multiples_or_whole_inputs_are_gone_and_outputs_stay(name, multiple):
    network, groups, x, axis = thinned(name)
    removed = remove(network, groups, (x,), (axis,), multiple=multiple)
    assert not removed.refused
    assert len(removed.columns[0]) == 2
    assert removed.difference <= 1e-5
    cut = {c.name: c.units for c in removed.cuts}
    for g in groups:
        if g.kind == "hidden":
            left = g.units.count - cut.get(g.name, 0)
            assert left == min(g.units.count, -(-3 // multiple) * multiple)


@pytest.mark.parametrize("name", CASES)
def test_what_is_counted_is_what_a_removal_keeps(name):
    network, groups, x, axis = thinned(name, kept=5)
    alive = [support(network.state_dict(), g) for g in groups]
    slim, _, selection = cut_uncertified(network, groups, alive, (x,), (axis,), 4)
    removed = remove(network, groups, (x,), (axis,), multiple=4)
    assert [p.shape for p in slim.parameters()] == [p.shape for p in removed.network.parameters()]
    assert torch.equal(selection.columns[0], removed.columns[0])
    counted = sum(len(k) for u, k in kept_units(groups, alive, 4) if u.kind == "hidden")
    assert counted == sum(min(8, g.units.count) for g in groups if g.kind == "hidden")


def test_the_zero_units_that_stay_have_zero_weights_behind_them():
    network, groups, x, axis = thinned("perceptron")
    slim = remove(network, groups, (x,), (axis,), multiple=4).network
    assert slim[2].weight.shape == (4, 4)
    assert int((slim[2].weight != 0).any(0).sum()) == 3


def test_heads_are_counted_by_the_width_they_add():
    heads = UnitSet(
        "heads", "hidden", 4, (TensorAxis("w", 0, torch.arange(4).repeat_interleave(6), "carrier"),)
    )
    assert [_step(heads, m) for m in (1, 4, 6, 8)] == [1, 2, 1, 4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("multiples")
    write_problem(folder)
    return folder


def run(folder, name, *changes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "LATENCY_BATCHES", (1,))
        return glprune.run(
            load_recipe(folder / "plain.yaml", list(changes)), folder / "plain.pt", folder / name
        )


def matrices(bundle):
    return [tuple(i.dims) for i in onnx.load(bundle / "model.onnx").graph.initializer if len(i.dims) == 2]


def test_a_run_ships_multiples_within_its_budget_and_is_verified(folder):
    result = run(folder, "four", *HIDDEN, "target.max_hidden=8", "target.round_to=4")
    report = result.report
    assert [h.after % 4 == 0 or h.after == h.before for h in report.hidden] == [True, True]
    assert sum(h.after for h in report.hidden) <= 8
    assert {n for shape in matrices(result.bundle) for n in shape} <= {8, 4, 1}
    assert report.widths is None
    assert verify(result.bundle, isolated=False).exit_code == 0


def fixed_clock(speedup):
    def against(self, first, second):
        assert sum(p.numel() for p in first.network.parameters()) < sum(
            p.numel() for p in second.network.parameters()
        )
        return Latency(batch=self.batch, runs=3, threads=1, original_ms=speedup, original_p95_ms=speedup, slim_ms=1.0,
                       slim_p95_ms=1.0, speedup=speedup)  # fmt: skip

    return against


@pytest.mark.parametrize(("speedup", "multiple"), [(1.2, 8), (1.01, 1)])
def test_auto_keeps_the_widths_that_are_faster_and_says_by_how_much(folder, monkeypatch, speedup, multiple):
    monkeypatch.setattr(OnnxLatencyMeter, "against", fixed_clock(speedup))
    changes = [*HIDDEN, "target={lambda: 0.008, round_to: auto, batch: 7}", "train.n_stages=1"]
    result = run(folder, f"auto{multiple}", *changes)
    widths = result.report.widths
    assert (widths.round_to, widths.batch, widths.speedup) == (multiple, 7, speedup)
    first = result.report.hidden[0]
    assert first.before == 12
    assert first.after < 12
    assert (first.after == 8) == (multiple == 8)
    said = (result.bundle / "report.md").read_text()
    assert ("were rounded up to multiples of 8" in said) == (multiple == 8)
    assert f"{speedup:.2f} times as fast at batch size 7" in said
    assert verify(result.bundle, isolated=False).exit_code == 0
    wrong = result.report.model_copy(update={"widths": widths.model_copy(update={"round_to": 9 - multiple})})
    assert any(f.where == "/widths/round_to" for f in check_consistency(wrong, None, {}))


@pytest.mark.parametrize("stop", ["refit 1", "export"])
def test_a_run_that_goes_on_keeps_the_widths_the_clock_chose(folder, tmp_path, monkeypatch, stop):
    """Right after the clock was read, and once the stage is done; another time the clock says something else."""

    def listen(event):
        if isinstance(event, Stage) and event.name == stop:
            raise KeyboardInterrupt

    changes = [*HIDDEN, "target={lambda: 0.008, round_to: auto}", "train.n_stages=1"]
    arguments = load_recipe(folder / "plain.yaml", changes), folder / "plain.pt", tmp_path / "out"
    monkeypatch.setattr(pipeline, "LATENCY_BATCHES", (1,))
    monkeypatch.setattr(OnnxLatencyMeter, "against", fixed_clock(1.2))
    with pytest.raises(KeyboardInterrupt):
        glprune.run(*arguments, on_event=listen)
    monkeypatch.setattr(OnnxLatencyMeter, "against", fixed_clock(0.8))
    report = glprune.run(*arguments, resume=True).report
    assert (report.widths.round_to, report.widths.speedup) == (8, 1.2)
    assert report.hidden[0].after == 8


def test_the_clock_runs_both_files_in_turn(folder):
    result = run(folder, "clock", "target.round_to=auto", "train.n_stages=1")
    widths = result.report.widths
    assert widths is None or (widths.runs > 1 and min(widths.exact_ms, widths.rounded_ms) > 0)


def test_a_batch_without_a_clock_is_refused(folder):
    with pytest.raises(RecipeError, match="batch belongs to latency and round_to: auto"):
        load_recipe(folder / "plain.yaml", ["target.batch=8", "target.round_to=8"])
