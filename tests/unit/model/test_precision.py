"""Mixed precision: bfloat16 within forward passes, float32 in everything that is kept."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import glprune
from glprune import pipeline
from glprune.model.precision import forward
from glprune.model.task import Task
from glprune.pruning.groups import hidden_groups, input_groups, penalty_weights
from glprune.pruning.planner import plan_units
from glprune.schema.recipe import TrainSpec
from glprune.schema.recipe_loading import load_recipe
from glprune.training import objective as objective_module
from glprune.training import refit as refit_module
from glprune.training.objective import Objective, lambda_max
from glprune.training.solver import PointSolver
from tests.bundle_fixtures import write_problem
from tests.networks import convolution, mlp, split

SUBJECTS = {"MLP": (lambda: mlp(), (6,)), "ConvNet": (convolution, (3, 8))}


def first(outputs):
    return outputs[0] if isinstance(outputs, tuple) else outputs


def objective(name):
    """A network that fits its own first outputs, read from the first half of its input columns."""
    build, row = SUBJECTS[name]
    torch.manual_seed(0)
    network, x = build(), torch.randn(256, *row)
    y = x[:, : row[0] // 2 + 1].reshape(256, -1).sum(1)
    if name == "ConvNet":
        network = nn.Sequential(*network[:-1], nn.Linear(30, 1)).eval()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.mse_loss(network(x)[:, 0], y).backward()
        optimizer.step()
    units = [u for u in plan_units(network, (x[:8],), [1], ["x"]) if not u.refused]
    features = [(str(c), [c]) for c in range(row[0])]
    groups = [input_groups(u, features) if u.kind == "input" else hidden_groups(u) for u in units]
    weighted = [(g, penalty_weights(network.state_dict(), g, 1.0)) for g in groups]
    return Objective(network, Task("regression", "logits", 1), split(x, y), weighted)


def alive(found):
    return found.blocks.norms() > 0


@pytest.mark.parametrize("name", SUBJECTS)
def test_parameters_and_gradients_stay_float32_while_products_are_bfloat16(name):
    found = objective(name)
    kinds = set()
    handles = [
        module.register_forward_hook(lambda _, __, y: kinds.add(y.dtype))
        for module in found.network.modules()
        if isinstance(module, nn.Linear | nn.Conv1d)
    ]
    inputs, target = next(iter(found.split.batches(64, None)))
    loss = found.batch_loss(inputs, target, "bf16")
    assert kinds == {torch.bfloat16}
    assert loss.dtype == torch.float32
    loss.backward()
    for handle in handles:
        handle.remove()
    assert {p.dtype for p in found.network.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in found.network.parameters()} == {torch.float32}
    exact = found.batch_loss(inputs, target).detach()
    assert float(loss.detach()) == pytest.approx(float(exact), rel=0.05, abs=0.01)


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_point_of_the_path_has_about_the_same_support(name):
    supports, losses = [], []
    for precision in ("float32", "bf16"):
        found = objective(name)
        lam = 0.05 * lambda_max(found)
        spec = TrainSpec(
            epochs=40, batch_size=64, lr=3e-3, full_batch_steps=10, tolerance=0.0, precision=precision
        )
        PointSolver(found, spec, 0).solve(lam)
        supports.append(alive(found))
        losses.append(found.optimality(lam))
    assert 0 < int(supports[0].sum()) < len(supports[0])
    assert int((supports[0] != supports[1]).sum()) <= 2
    assert losses[1][0] == pytest.approx(losses[0][0], rel=0.1, abs=0.01)


def test_full_batch_steps_and_residuals_multiply_in_float32():
    found = objective("MLP")
    kinds = set()
    found.network[0].register_forward_hook(lambda _, __, y: kinds.add(y.dtype))
    solver = PointSolver(found, TrainSpec(full_batch_steps=2, precision="bf16"), 0)
    lam = 0.1 * lambda_max(found)
    solver.polish(lam)
    found.optimality(lam)
    assert kinds == {torch.float32}
    solver.solve(lam, polish=False)
    assert kinds == {torch.float32, torch.bfloat16}


def test_outputs_that_are_no_bfloat16_pass_as_they_are():
    x = torch.randn(3, 2)
    assert torch.equal(forward(lambda a: a.double(), (x,), first, "bf16"), x.double())


def test_a_run_records_its_precision_and_refits_in_it(tmp_path, monkeypatch):
    asked = set()
    for module in (objective_module, refit_module):

        def watched(network, inputs, view, precision, module=module):
            asked.add((module.__name__, precision))
            return forward(network, inputs, view, precision)

        monkeypatch.setattr(module, "forward", watched)
    monkeypatch.setattr(pipeline, "LATENCY_BATCHES", (1,))
    write_problem(tmp_path)
    recipe = load_recipe(tmp_path / "plain.yaml", ["train.precision=bf16", "train.n_stages=1"])
    result = glprune.run(recipe, tmp_path / "plain.pt", tmp_path / "out")
    assert {("glprune.training.refit", "bf16"), ("glprune.training.objective", "bf16")} <= asked
    assert ("glprune.training.refit", "float32") not in asked  # the refit's steps
    assert ("glprune.training.objective", "float32") in asked  # full batches
    assert "precision: bf16" in (result.bundle / "recipe.resolved.yaml").read_text()
    weights = load_file(result.bundle / "model.safetensors")
    assert {t.dtype for t in weights.values()} == {torch.float32}
