"""The proximal optimisers against independent solvers of the linear group LASSO."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from glprune.groups import input_groups, penalty_weights
from glprune.objective import Objective, lambda_max
from glprune.planning import plan_units
from glprune.recipe import TrainSpec
from glprune.task import Task
from glprune.train import PointSolver
from tests.networks import split

FIELDS = [(f"f{i}", range(3 * i, 3 * i + 3)) for i in range(10)]
WEIGHT = np.sqrt(3)
EXACT = TrainSpec(optimizer="sgd", lr=1e-2, epochs=3000, polish=0, batch_size="all")
OPTIMIZERS = {
    "sgd": {"optimizer": "sgd", "lr": 1e-2, "epochs": 3000, "polish": 0},
    "sgd without momentum": {"optimizer": "sgd", "momentum": 0.0, "lr": 5e-2, "epochs": 3000, "polish": 0},
    "adam": {"optimizer": "adam", "lr": 1e-2, "epochs": 4000, "polish": 0},
    "adam in batches, polished": {
        "optimizer": "adam",
        "lr": 1e-2,
        "epochs": 50,
        "polish": 100,
        "batch_size": 32,
    },
}


def weighted(network, groups, **options):
    return groups, penalty_weights(network.state_dict(), groups, 1.0, **options)


def problem(kind):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 30))
    x[:, 1] = 0.8 * x[:, 0] + 0.2 * x[:, 1]
    beta = np.zeros(30)
    beta[:9] = rng.normal(size=9)
    z = x @ beta + 0.5 * rng.normal(size=200)
    return x, z if kind == "regression" else (z > 0).astype(float)


def objective_value(kind, x, y, lam, beta, intercept):
    z = x @ beta + intercept
    loss = np.mean((y - z) ** 2) if kind == "regression" else np.mean(np.logaddexp(0, -(2 * y - 1) * z))
    return loss + lam * WEIGHT * sum(np.linalg.norm(beta[list(c)]) for _, c in FIELDS)


def reference(kind, x, y, lam):
    """skglm's block coordinate descent; its squared loss is half of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from skglm.datafits import LogisticGroup, QuadraticGroup
        from skglm.penalties import WeightedGroupL2
        from skglm.solvers import GroupBCD, GroupProxNewton
        from skglm.utils.data import grp_converter

        indices, pointers = grp_converter([list(c) for _, c in FIELDS], 30)
        weights = np.full(10, WEIGHT)
        if kind == "regression":
            solver = GroupBCD(tol=1e-12, max_iter=10_000, fit_intercept=True)
            penalty = WeightedGroupL2(lam / 2, weights, pointers, indices)
            found = solver.solve(x, y, QuadraticGroup(pointers, indices), penalty)[0]
        else:
            solver = GroupProxNewton(tol=1e-12, max_iter=1000, fit_intercept=True)
            penalty = WeightedGroupL2(lam, weights, pointers, indices)
            found = solver.solve(x, 2 * y - 1, LogisticGroup(pointers, indices), penalty)[0]
    return found[:30], found[30]


def linear_objective(kind, x, y):
    torch.manual_seed(0)
    network = nn.Linear(30, 1)
    rows = torch.tensor(x, dtype=torch.float32)
    target = torch.tensor(y, dtype=torch.float32 if kind == "regression" else torch.int64)
    units = plan_units(network, (rows[:4],), (-1,), ("x",))[0]
    groups = input_groups(units, FIELDS)
    return network, Objective(
        network, Task(kind, "logits", 2), split(rows, target), [weighted(network, groups)]
    )


def supported(beta):
    return [name for name, c in FIELDS if np.linalg.norm(beta[list(c)]) > 1e-10]


@pytest.mark.parametrize("kind", ["regression", "binary"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_reaches_the_objective_and_support_of_skglm(name, kind):
    x, y = problem(kind)
    lam = 0.1 if kind == "regression" else 0.03
    beta, intercept = reference(kind, x, y, lam)
    best = objective_value(kind, x, y, lam, beta, intercept)
    network, objective = linear_objective(kind, x, y)
    PointSolver(objective, TrainSpec(**({"batch_size": "all"} | OPTIMIZERS[name])), seed=0).solve(lam)
    ours = network.weight.detach().numpy().ravel().astype(float)
    value = objective_value(kind, x, y, lam, ours, network.bias.item())
    assert value == pytest.approx(best, rel=1e-4)
    assert value >= best * (1 - 1e-6)
    assert supported(ours) == supported(beta) != [n for n, _ in FIELDS]
    assert np.all(ours[ours == 0].size == 30 - 3 * len(supported(beta)))
    assert objective.optimality(lam)[1] == 0.0


def test_group_lasso_package_agrees_on_the_squared_loss():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from group_lasso import GroupLasso

        x, y = problem("regression")
        lam = 0.3
        groups = np.repeat(np.arange(10), 3)
        # it halves the squared loss twice over; the root of the size is its own
        model = GroupLasso(groups, group_reg=lam / 4, l1_reg=0, n_iter=20_000, tol=1e-9, supress_warning=True)
        model.fit(x, y[:, None])
    beta, intercept = model.coef_.ravel(), float(np.ravel(model.intercept_)[0])
    network, objective = linear_objective("regression", x, y)
    PointSolver(objective, EXACT, seed=0).solve(lam)
    ours = network.weight.detach().numpy().ravel().astype(float)
    theirs = objective_value("regression", x, y, lam, beta, intercept)
    assert objective_value("regression", x, y, lam, ours, network.bias.item()) == pytest.approx(
        theirs, rel=1e-4
    )
    assert supported(ours) == supported(beta)


@pytest.mark.parametrize("kind", ["regression", "binary"])
def test_all_groups_are_zero_at_lambda_max_and_not_just_below(kind):
    x, y = problem(kind)
    network, objective = linear_objective(kind, x, y)
    spec = TrainSpec(epochs=5, polish=300, batch_size="all")
    PointSolver(objective, spec, seed=0).solve(1.0 if kind == "regression" else 0.3)
    # with the intercept fitted at zero weights, lambda_max is the exact threshold
    largest = lambda_max(objective)
    solver = PointSolver(objective, spec, seed=0)
    solver.solve(largest * 1.02)
    assert int(network.weight.count_nonzero()) == 0
    solver.solve(largest * 0.9)
    assert int(network.weight.count_nonzero()) > 0


def test_groups_of_size_one_give_the_lasso_of_scikit_learn():
    from sklearn.linear_model import Lasso

    x, y = problem("regression")
    lam = 0.2
    model = Lasso(alpha=lam / 2, tol=1e-12, max_iter=100_000).fit(x, y)
    network = nn.Linear(30, 1)
    rows, target = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    units = plan_units(network, (rows[:4],), (-1,), ("x",))[0]
    groups = input_groups(units, [(str(i), (i,)) for i in range(30)])
    objective = Objective(
        network, Task("regression", "logits", 0), split(rows, target), [weighted(network, groups)]
    )
    PointSolver(objective, EXACT, seed=0).solve(lam)
    ours = network.weight.detach().numpy().ravel()
    np.testing.assert_allclose(ours, model.coef_, atol=1e-4)
    assert ((ours != 0) == (model.coef_ != 0)).all()


def test_weights_outside_the_groups_stay_inside_their_ball():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(30, 8), nn.Tanh(), nn.Linear(8, 1))
    x, y = problem("regression")
    rows, target = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    units = plan_units(network, (rows[:4],), (-1,), ("x",))[0]
    before = network[2].weight.norm().item()
    for bound in (True, False):
        objective = Objective(
            network,
            Task("regression", "logits", 0),
            split(rows, target),
            [weighted(network, input_groups(units, FIELDS))],
            bound,
        )
        PointSolver(objective, TrainSpec(epochs=30, polish=10), seed=0).solve(0.02)
        after = network[2].weight.norm().item()
        assert (after <= before * (1 + 1e-5)) is bound
