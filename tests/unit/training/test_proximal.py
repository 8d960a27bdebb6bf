"""The proximal optimisers against independent solvers of penalised linear problems."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from glprune.model.task import Task
from glprune.pruning.groups import input_groups, penalty_weights
from glprune.pruning.planner import plan_units
from glprune.runtime.checkpoint import CheckpointLog
from glprune.schema.recipe import PenaltySpec, TrainSpec
from glprune.search.path import RegularisationPath
from glprune.search.targets import PointSearch, SizeRange
from glprune.training.objective import Objective, lambda_max
from glprune.training.solver import PointSolver
from tests.integration_packages import need
from tests.networks import split

FIELDS = [(f"f{i}", range(3 * i, 3 * i + 3)) for i in range(10)]
WEIGHT = np.sqrt(3)


def to_the_end(**options):
    """Every epoch, also where the last one changed little."""
    return TrainSpec(**({"tolerance": 0.0} | options))


EXACT = to_the_end(optimizer="sgd", lr=1e-2, epochs=150, full_batch_steps=0, batch_size="all")
OPTIMIZERS = {
    "sgd": {"optimizer": "sgd", "lr": 1e-2, "epochs": 150, "full_batch_steps": 0},
    "sgd without momentum": {
        "optimizer": "sgd",
        "momentum": 0.0,
        "lr": 5e-2,
        "epochs": 150,
        "full_batch_steps": 0,
    },
    "adam": {"optimizer": "adam", "lr": 1e-2, "epochs": 200, "full_batch_steps": 0},
    "adam in batches, polished": {
        "optimizer": "adam",
        "lr": 1e-2,
        "epochs": 50,
        "full_batch_steps": 100,
        "batch_size": 32,
    },
}

KINDS = {
    "group_lasso": PenaltySpec(),
    "sparse_group_lasso": PenaltySpec(kind="sparse_group_lasso", l1_ratio=0.3),
    "group_mcp": PenaltySpec(kind="group_mcp", gamma=20.0),
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
        need("skglm")
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


def linear_objective(kind, x, y, spec=KINDS["group_lasso"], norm=None):
    """A linear network, its groups of the given norm, if any, when it is handed over as trained."""
    torch.manual_seed(0)
    network = nn.Linear(30, 1)
    if norm is not None:
        nn.init.constant_(network.weight, norm / WEIGHT)
    rows = torch.tensor(x, dtype=torch.float32)
    target = torch.tensor(y, dtype=torch.float32 if kind == "regression" else torch.int64)
    units = plan_units(network, (rows[:4],), (-1,), ("x",))[0]
    groups = input_groups(units, FIELDS)
    penalised, task = [weighted(network, groups)], Task(kind, "logits", 2)
    return network, Objective(network, task, split(rows, target), penalised, spec=spec)


def supported(beta):
    return [name for name, c in FIELDS if np.linalg.norm(beta[list(c)]) > 1e-10]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["regression", "binary"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_reaches_the_objective_and_support_of_skglm(name, kind):
    x, y = problem(kind)
    lam = 0.1 if kind == "regression" else 0.03
    beta, intercept = reference(kind, x, y, lam)
    best = objective_value(kind, x, y, lam, beta, intercept)
    network, objective = linear_objective(kind, x, y)
    PointSolver(objective, to_the_end(**({"batch_size": "all"} | OPTIMIZERS[name])), seed=0).solve(lam)
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
        need("group_lasso")
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


@pytest.mark.parametrize("penalty", KINDS)
@pytest.mark.parametrize("kind", ["regression", "binary"])
def test_all_groups_are_zero_at_lambda_max_and_not_just_below(kind, penalty):
    x, y = problem(kind)
    network, objective = linear_objective(kind, x, y, KINDS[penalty])
    spec = to_the_end(epochs=5, full_batch_steps=300, batch_size="all")
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
        PointSolver(objective, to_the_end(epochs=30, full_batch_steps=10), seed=0).solve(0.02)
        after = network[2].weight.norm().item()
        assert (after <= before * (1 + 1e-5)) is bound


def orthonormal():
    """A design with X^T X / n = 1, whose penalised problem is one proximal step from its solution."""
    rng = np.random.default_rng(1)
    x = np.linalg.qr(np.column_stack([np.ones(200), rng.normal(size=(200, 30))]))[0][:, 1:] * 200**0.5
    beta = np.repeat(np.linspace(0.0, 0.9, 10), 3) * np.tile([1.0, -0.5, 0.1], 10)
    return x, x @ beta, beta


# the curvature is 2 in every direction: few steps suffice
SHORT = {
    "sgd": {"optimizer": "sgd", "lr": 2e-2, "epochs": 400, "full_batch_steps": 0},
    "sgd without momentum": {
        "optimizer": "sgd",
        "momentum": 0.0,
        "lr": 0.1,
        "epochs": 150,
        "full_batch_steps": 0,
    },
    "adam": {"optimizer": "adam", "lr": 1e-2, "epochs": 1000, "full_batch_steps": 0},
    "accelerated steps": {"epochs": 0, "full_batch_steps": 60},
}


def sparse(share):
    return PenaltySpec(kind="sparse_group_lasso", l1_ratio=share)


def group_by_group(beta, solve):
    return np.concatenate([solve(beta[list(c)]) for _, c in FIELDS])


def shrunk(values, norm):
    old = np.linalg.norm(values)
    return values * (norm / old) if old > 0 else values


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "adam" else n for n in SHORT]
)
def test_sparse_group_lasso_on_an_orthonormal_design_is_its_closed_form(name):
    x, y, beta = orthonormal()
    lam, share = 0.4, 0.33

    def solve(values):
        soft = np.sign(values) * np.maximum(np.abs(values) - lam / 2 * share, 0)
        return shrunk(soft, max(np.linalg.norm(soft) - lam / 2 * (1 - share) * WEIGHT, 0))

    network, objective = linear_objective("regression", x, y, sparse(share))
    PointSolver(objective, to_the_end(batch_size="all", **SHORT[name]), seed=0).solve(lam)
    ours, exact = network.weight.detach().numpy().ravel(), group_by_group(beta, solve)
    np.testing.assert_allclose(ours, exact, atol=2e-3)
    assert ((ours == 0) == (exact == 0)).all()
    assert 0 < np.count_nonzero(exact) < 3 * len(supported(exact)) < 30


@pytest.mark.parametrize(
    "name", [pytest.param("adam", marks=pytest.mark.slow), *(n for n in SHORT if n != "adam")]
)
def test_group_mcp_on_an_orthonormal_design_is_firm_thresholding(name):
    x, y, beta = orthonormal()
    lam, knot = 0.4, 0.8
    spec = PenaltySpec(kind="group_mcp", gamma=4.0)
    network, objective = linear_objective("regression", x, y, spec, norm=0.2)

    def solve(values):
        norm, threshold = np.linalg.norm(values), lam / 2 * WEIGHT
        return shrunk(
            values, min(norm, max(norm - threshold, 0) / (1 - threshold / knot)) if norm <= knot else norm
        )

    PointSolver(objective, to_the_end(batch_size="all", **SHORT[name]), seed=0).solve(lam)
    ours, exact = network.weight.detach().numpy().ravel(), group_by_group(beta, solve)
    np.testing.assert_allclose(ours, exact, atol=2e-3)
    assert supported(ours) == supported(exact)
    free = [list(c) for _, c in FIELDS if np.linalg.norm(beta[list(c)]) > knot]
    assert 0 < len(free) < len(supported(exact)) < 10
    np.testing.assert_allclose(ours[np.concatenate(free)], beta[np.concatenate(free)], atol=2e-3)


@pytest.mark.slow
def test_skglm_agrees_on_the_sparse_group_lasso():
    x, y = problem("regression")
    x, y = x - x.mean(axis=0), y - y.mean()  # its value takes no intercept
    share, lam = 0.4, 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        need("skglm")
        from skglm.datafits import QuadraticGroup
        from skglm.penalties import WeightedL1GroupL2
        from skglm.solvers import GroupBCD
        from skglm.utils.data import grp_converter

        indices, pointers = grp_converter([list(c) for _, c in FIELDS], 30)
        weights = (np.full(10, (1 - share) * WEIGHT), np.full(30, share))
        penalty = WeightedL1GroupL2(lam / 2, *weights, pointers, indices)
        solver = GroupBCD(tol=1e-10, max_iter=20_000, ws_strategy="fixpoint")
        found = solver.solve(x, y, QuadraticGroup(pointers, indices), penalty)[0]
    network, objective = linear_objective("regression", x, y, sparse(share))
    PointSolver(objective, to_the_end(epochs=0, full_batch_steps=500), seed=0).solve(lam)
    ours = network.weight.detach().numpy().ravel()
    np.testing.assert_allclose(ours, found, atol=1e-3)
    assert ((ours != 0) == (np.abs(found) > 1e-10)).all()
    assert 0 < np.count_nonzero(ours) < 3 * len(supported(ours))
    assert max(objective.optimality(lam)[1:]) < 0.02


@pytest.mark.slow
def test_skglm_agrees_on_the_group_mcp():
    """Its block MCP has a row of a coefficient matrix for a group: one column read by three outputs."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 10))
    x -= x.mean(axis=0)
    x[:, 1] = 0.5 * x[:, 0] + 0.5 * x[:, 1]
    beta = (
        np.concatenate([rng.normal(size=(4, 3)), np.zeros((6, 3))]) * np.array([[1, 1, 0.3, 0.3] + 6 * [1]]).T
    )
    y = x @ beta + 0.5 * rng.normal(size=(200, 3))
    lam, knot = 0.15, 1.5
    alpha = 1.5 * lam * WEIGHT  # our loss is a mean over outputs too, and not halved
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        need("skglm")
        from skglm.datafits import QuadraticMultiTask
        from skglm.penalties import BlockMCPenalty
        from skglm.solvers import MultiTaskBCD

        solver = MultiTaskBCD(tol=1e-10, max_iter=1000, fit_intercept=False)
        reference = BlockMCPenalty(alpha, knot / alpha)
        found = solver.solve(x, np.asfortranarray(y), QuadraticMultiTask(), reference)[0]
    network = nn.Linear(10, 3, bias=False)
    with torch.no_grad():
        network.weight.fill_(0.5 / WEIGHT)  # norms of 0.5
    rows, target = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    units = plan_units(network, (rows[:4],), (-1,), ("x",))[0]
    groups = input_groups(units, [(str(i), (i,)) for i in range(10)])
    objective = Objective(
        network,
        Task("distillation", "logits", 0, scales=(1.0,)),
        split(rows, target),
        [weighted(network, groups)],
        spec=PenaltySpec(kind="group_mcp", gamma=knot / 0.5),
    )
    PointSolver(objective, to_the_end(epochs=0, full_batch_steps=500), seed=0).solve(lam)
    ours = network.weight.detach().numpy().T
    np.testing.assert_allclose(ours, found, atol=1e-3)
    alive = np.linalg.norm(found, axis=1)
    assert ((np.linalg.norm(ours, axis=1) > 0) == (alive > 0)).all()
    assert 0 < np.count_nonzero(alive > knot) < np.count_nonzero(alive) < 10
    assert max(objective.optimality(lam)[1:]) < 0.02


@pytest.mark.parametrize("penalty", KINDS)
def test_the_residual_is_small_at_the_solution_and_large_off_it(penalty):
    x, y = problem("regression")
    network, objective = linear_objective("regression", x, y, KINDS[penalty])
    PointSolver(objective, to_the_end(epochs=20, full_batch_steps=500, batch_size="all"), seed=0).solve(0.2)
    assert max(objective.optimality(0.2)[1:]) < 1e-2
    assert network.weight.count_nonzero() > 0
    with torch.no_grad():
        network.weight.mul_(1.1)
    assert objective.optimality(0.2)[2] > 0.1
    with torch.no_grad():
        network.weight.zero_()
    assert objective.optimality(0.2)[1] > 0.1


def polished(steps, lam=0.02, enough=None):
    """A linear network after full-batch steps."""
    network, objective = linear_objective("regression", *problem("regression"))
    PointSolver(objective, to_the_end(full_batch_steps=steps), 0).polish(lam, enough and enough(objective))
    return network.weight


def test_full_batch_steps_are_asked_every_fifth_time_and_measuring_between_them_changes_none():
    asked = []

    def measured(objective):
        return lambda: asked.append(objective.optimality(0.02)) or len(asked) == 3

    assert torch.equal(polished(23, enough=measured), polished(15))
    assert len(asked) == 3
    assert torch.equal(polished(13, enough=measured), polished(13))
    assert len(asked) == 5
    assert not torch.equal(polished(15), polished(13))


def test_more_steps_for_zero_groups_that_are_not_optimal_end_as_soon_as_they_are(monkeypatch):
    network, objective = linear_objective("regression", *problem("regression"))
    spec = to_the_end(optimizer="sgd", lr=1e-2, epochs=20, full_batch_steps=50, batch_size="all")
    solver = PointSolver(objective, spec, 0)
    path = RegularisationPath(solver, objective.sets, float, lambda _: None, CheckpointLog())
    point = path.solve(0.1 * path.largest)
    passes, measured = [], []
    gradient, optimality = objective.gradient, objective.optimality

    def first_seems_not_optimal(lam):
        measured.append(lam)
        loss, zero, active = optimality(lam)
        return loss, 1.0 if len(measured) == 1 else zero, active

    monkeypatch.setattr(objective, "gradient", lambda *a: passes.append(a) or gradient(*a))
    monkeypatch.setattr(objective, "optimality", first_seems_not_optimal)
    search = PointSearch(path, lambda p: p.features)
    settled = search.polish(point, SizeRange(1, 9))
    assert len(passes) == 50 + 1 + 5 + 1  # all steps and a look, then five and a look
    assert path.points == [settled]
    assert settled.kkt_zero <= 0.02
    assert 1 <= settled.features <= 9
    assert all(torch.equal(network.state_dict()[name], t) for name, t in settled.state.items())
    again = search.polish(settled, SizeRange(10, 10))  # of these data one of the ten is noise
    assert again is settled
    assert path.points == [settled]
