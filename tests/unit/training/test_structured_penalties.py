"""Tree and latent group LASSO against generic solvers that share nothing with them."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import nn

from glprune.model.task import Task
from glprune.pruning.groups import hidden_groups, input_groups, penalty_weights
from glprune.pruning.planner import plan_units
from glprune.schema.recipe import PenaltySpec, TrainSpec
from glprune.training.blocks import ParameterGroup, ParameterGroups
from glprune.training.objective import Objective, lambda_max
from glprune.training.overlap import latent_scales
from glprune.training.penalties import GroupLasso
from glprune.training.penalty_check import violations
from glprune.training.proximal import BoundedPenalty, ProximalAdam, ProximalProblem
from glprune.training.solver import PointSolver
from glprune.training.structured_penalties import LatentGroupLasso, TreeGroupLasso
from tests.networks import split

COUNT, ROWS = 8, 3
TREES = {
    "one level": [[0, 1, 2], [3, 4]],
    "two levels": [[0, 1, 2], [3, 4], [0, 1, 2, 3, 4, 5]],
    "a chain": [[2], [2, 3], [2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6, 7]],
    "the same twice": [[0, 1], [0, 1], [5, 6]],
}
OVERLAPS = {
    "a chain": [[0, 1, 2], [2, 3, 4], [4, 5]],
    "one inside another": [[0, 1, 2, 3], [1, 2], [3, 4]],
    "the same twice": [[0, 1], [0, 1], [1, 2]],
    "a star": [[0, k] for k in range(1, 8)],
    "disjoint": [[0, 1], [2, 3, 4]],
}
CASES = [("tree", name) for name in TREES] + [("latent", name) for name in OVERLAPS]


def columns(values, gradient=None):
    """A matrix whose columns are groups, in double precision."""
    parameter = nn.Parameter(torch.as_tensor(values).double().clone())
    if gradient is not None:
        parameter.grad = torch.as_tensor(gradient).double()
    return ParameterGroups([ParameterGroup(parameter, 1, torch.arange(COUNT))], COUNT)


def nodes_of(kind, name):
    return [torch.tensor(n) for n in (TREES if kind == "tree" else OVERLAPS)[name]]


def made(kind, name, weights, sizes=None):
    """The penalty of a case on columns of ROWS weights each."""
    sizes = torch.full((COUNT,), float(ROWS)) if sizes is None else sizes
    return {"tree": TreeGroupLasso, "latent": LatentGroupLasso}[kind].of(weights, sizes, nodes_of(kind, name))


def node_weights(weights, nodes):
    """The rule of the docs, feature by feature: root of the size over the root mean square of importances."""
    found = []
    for node in nodes:
        size = ROWS * len(node)
        squares = [ROWS * (ROWS**0.5 / float(weights[g])) ** 2 for g in node]
        found.append(size**0.5 / (sum(squares) / size) ** 0.5)
    return found


def terms(kind, name, weights):
    """All (groups, weight) whose norms the penalty adds up: groups on their own and nodes."""
    nodes = nodes_of(kind, name)
    inside = set() if kind == "tree" else set(itertools.chain(*(n.tolist() for n in nodes)))
    alone = [([g], float(weights[g])) for g in range(COUNT) if g not in inside]
    own = node_weights(weights, nodes)
    return alone + [(n.tolist(), w) for n, w in zip(nodes, own, strict=True)]


def tree_prox(v, terms, strength, rounds=4000):
    """Projected gradient on the dual: v minus a sum of vectors, each on its term and inside its ball."""
    duals = [np.zeros_like(v) for _ in terms]
    depth = max(sum(g in groups for groups, _ in terms) for g in range(COUNT))
    for _ in range(rounds):
        rest = v - sum(duals)
        for dual, (groups, weight) in zip(duals, terms, strict=True):
            dual[:, groups] += rest[:, groups] / depth
            dual *= min(1.0, strength * weight / max(np.linalg.norm(dual), 1e-300))
    return v - sum(duals)


def latent_prox(v, terms, strength, rounds=4000):
    """v minus its projection on an intersection of cylinders, by Dykstra's algorithm."""
    x, corrections = v.copy(), [np.zeros_like(v) for _ in terms]
    for _ in range(rounds):
        for n, (groups, weight) in enumerate(terms):
            y = x + corrections[n]
            x = y.copy()
            x[:, groups] *= min(1.0, strength * weight / max(np.linalg.norm(y[:, groups]), 1e-300))
            corrections[n] = y - x
    return v - x


@pytest.mark.parametrize(("kind", "name"), CASES)
@pytest.mark.parametrize("strength", [0.05, 0.4])
def test_the_proximal_operator_is_that_of_a_generic_solver(kind, name, strength):
    rng = np.random.default_rng(len(name))
    v = rng.normal(size=(ROWS, COUNT)) * rng.uniform(0.05, 1.0, COUNT)
    weights = torch.tensor(rng.uniform(0.5, 2.0, COUNT))
    penalty, blocks = made(kind, name, weights), columns(v)
    factors = penalty.prox_(blocks, torch.full((COUNT,), strength).double())
    reference = (tree_prox if kind == "tree" else latent_prox)(v, terms(kind, name, weights), strength)
    found = blocks.values[0].numpy()
    np.testing.assert_allclose(found, reference, atol=2e-5)
    np.testing.assert_allclose(found, v * factors.numpy(), atol=1e-12)
    clearly = np.linalg.norm(reference, axis=0) < 1e-6
    assert (found[:, clearly] == 0).all()


@pytest.mark.parametrize("name", OVERLAPS)
def test_the_value_of_the_latent_penalty_is_that_of_its_dual(name):
    """The largest inner product with a vector whose norm on no node exceeds the weight."""
    rng = np.random.default_rng(1)
    weights = torch.tensor(rng.uniform(0.5, 2.0, COUNT))
    v = rng.normal(size=(ROWS, COUNT)) * (rng.random(COUNT) < 0.7)
    norms = np.linalg.norm(v, axis=0)
    limits = [
        {"type": "ineq", "fun": lambda y, g=groups, w=weight: w**2 - (y[g] ** 2).sum()}
        for groups, weight in terms("latent", name, weights)
    ]
    start = np.full(COUNT, 1e-2)
    dual = minimize(lambda y: -norms @ y, start, constraints=limits, method="SLSQP", options={"ftol": 1e-13})
    assert made("latent", name, weights).value(columns(v), 1.0) == pytest.approx(-dual.fun, rel=1e-6)


@pytest.mark.parametrize("name", TREES)
def test_the_value_of_the_tree_penalty_is_the_sum_over_groups_and_nodes(name):
    rng = np.random.default_rng(2)
    weights, v = torch.tensor(rng.uniform(0.5, 2.0, COUNT)), rng.normal(size=(ROWS, COUNT))
    total = sum(weight * np.linalg.norm(v[:, groups]) for groups, weight in terms("tree", name, weights))
    assert made("tree", name, weights).value(columns(v), 0.3) == pytest.approx(0.3 * total)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_both_pass_what_a_plugin_must(kind, name):
    assert violations(lambda w, b: _of(kind)(w, b.sizes, nodes_of(kind, name))) == []


def _of(kind):
    return TreeGroupLasso.of if kind == "tree" else LatentGroupLasso.of


def test_the_check_of_plugins_finds_a_tree_that_goes_from_the_root_to_the_leaves():
    class Upside(TreeGroupLasso):
        def shrink(self, norms, strength):
            for level in reversed(self.levels):
                norms = level.shrink(norms, strength * level.of_groups(level.weights, 0.0))
            return (norms - strength * self.weights).clamp(min=0)

    nodes = nodes_of("tree", "two levels")
    assert violations(lambda w, b: Upside.of(w, b.sizes, nodes)) != []


@pytest.mark.parametrize("kind", ["tree", "latent"])
def test_without_nodes_both_are_the_group_lasso(kind):
    rng = np.random.default_rng(3)
    v, g = rng.normal(size=(2, ROWS, COUNT))
    v[:, :3] = 0
    weights = torch.tensor(rng.uniform(0.5, 2.0, COUNT))
    plain, penalty = GroupLasso(weights), _of(kind)(weights, torch.full((COUNT,), 3.0), [])
    assert penalty.value(columns(v), 0.2) == pytest.approx(plain.value(columns(v), 0.2))
    assert penalty.residuals(columns(v, g), 0.2) == pytest.approx(plain.residuals(columns(v, g), 0.2))
    torch.testing.assert_close(penalty.zero_lambda(columns(v, g)), plain.zero_lambda(columns(v, g)))


@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize("first", range(0, 1000, 250))
def test_the_scales_meet_the_optimality_conditions_on_random_nodes(first, strength):
    """Nodes of any overlap, nested and equal ones too; norms of a problem differ by up to six orders."""
    for seed in range(first, first + 250):
        rng = np.random.default_rng(seed)
        count, groups = rng.integers(1, 7), rng.integers(1, 9)
        member = rng.random((count, groups)) < rng.uniform(0.2, 0.9)
        member[rng.integers(count), ~member.any(0)] = True
        member = member[member.any(1)].astype(float)
        norms = 10.0 ** (rng.uniform(-rng.integers(0, 7), 0, groups) + rng.uniform(-6, 6))
        norms[rng.integers(groups)] *= rng.random() < 0.8
        t = np.full(groups, strength * norms.max() * 10.0 ** rng.uniform(-6, 2))
        weights = 10.0 ** rng.uniform(-1, 1, len(member))
        scales = latent_scales(*map(torch.from_numpy, (norms, t, member, weights))).numpy()
        total = t + scales @ member
        held = norms > 0
        pulls = member[:, held] @ (norms[held] / total[held]) ** 2 / weights**2
        assert (pulls <= 1 + 1e-9).all(), seed
        np.testing.assert_allclose(pulls[scales > 0], 1, atol=1e-9, err_msg=str(seed))


@settings(deadline=None, max_examples=25)
@example(seed=175, scale=1.0, strength=2.0)
@given(seed=st.integers(0, 2**31), scale=st.floats(-6, 6), strength=st.floats(1e-4, 2))
def test_the_latent_operator_is_homogeneous_and_zero_groups_are_exact(seed, scale, strength):
    """``prox(c * v, c * t) = c * prox(v, t)`` over twelve orders of magnitude, with the same zeros."""
    rng = np.random.default_rng(seed)
    v = rng.normal(size=(ROWS, COUNT)) * 10.0 ** rng.uniform(-3, 0, COUNT)
    penalty = made("latent", "one inside another", torch.ones(COUNT).double())
    one, other = columns(v), columns(10.0**scale * v)
    penalty.prox_(one, torch.full((COUNT,), strength).double())
    penalty.prox_(other, torch.full((COUNT,), 10.0**scale * strength).double())
    np.testing.assert_allclose(other.values[0].numpy() / 10.0**scale, one.values[0].numpy(), atol=1e-7)
    assert ((one.values[0] == 0) == (other.values[0] == 0)).all()


def test_a_group_that_must_stay_is_in_no_node():
    weights = torch.ones(COUNT).double()
    weights[1] = 0.0
    v = np.full((ROWS, COUNT), 0.01)
    for kind, name in (("tree", "two levels"), ("latent", "a chain")):
        blocks = columns(v)
        made(kind, name, weights).prox_(blocks, torch.ones(COUNT).double())
        assert (blocks.norms() > 0).tolist() == [n == 1 for n in range(COUNT)]


@pytest.mark.parametrize(("kind", "name"), [("tree", "two levels"), ("latent", "a chain")])
def test_adam_steps_coupled_groups_alike_and_ends_at_the_minimum(kind, name):
    rng = np.random.default_rng(4)
    start = torch.tensor(rng.normal(size=(ROWS, COUNT)) * rng.uniform(0.1, 1, COUNT))
    penalty, blocks = made(kind, name, torch.full((COUNT,), ROWS**0.5).double()), columns(start)
    optimizer = ProximalAdam(ProximalProblem(blocks, [], BoundedPenalty(penalty, None), 0.15), 1e-2)
    (weights,) = blocks.parameters
    for step in range(900):
        optimizer.lr = 3e-2 * 0.1 ** (step / 300)
        weights.grad = weights.detach() - start
        optimizer.step()
    exact = columns(start)
    penalty.prox_(exact, torch.full((COUNT,), 0.15).double())
    np.testing.assert_allclose(weights.detach().numpy(), exact.values[0].numpy(), atol=1e-3)
    assert ((blocks.norms() == 0) == (exact.norms() == 0)).all()
    sizes = optimizer._descend()
    for node in nodes_of(kind, name):
        assert len(set(sizes[node].tolist())) == 1


# ------------------------------------------------------------------ whole problems

FIELDS = [(f"f{i}", range(3 * i, 3 * i + 3)) for i in range(10)]
TREE = {"left": ["f0", "f1", "f2"], "right": ["f3", "f4"], "top": ["right", "f5"], "noise": "f[6-9]"}
LATENT = {"a": ["f0", "f1"], "b": ["f1", "f2", "f3"], "c": ["f3", "f4", "f5"], "noise": "f[6-9]"}
SPECS = {
    "tree": PenaltySpec(kind="tree_group_lasso", groups=TREE),
    "latent": PenaltySpec(kind="latent_group_lasso", groups=LATENT),
}
NODES = {
    "tree": [[0, 1, 2], [3, 4], [3, 4, 5], [6, 7, 8, 9]] + [[n] for n in range(10)],
    "latent": [[0, 1], [1, 2, 3], [3, 4, 5], [6, 7, 8, 9]],
}


def problem():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 30))
    x[:, 1] = 0.8 * x[:, 0] + 0.2 * x[:, 1]
    beta = np.zeros(30)
    beta[3:12] = rng.normal(size=9)
    y = x @ beta + 0.5 * rng.normal(size=200)
    return x - x.mean(0), y - y.mean()


def objective_of(kind, x, y):
    torch.manual_seed(0)
    network = nn.Linear(30, 1, bias=False)
    rows, target = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    groups = input_groups(plan_units(network, (rows[:4],), (-1,), ("x",))[0], FIELDS)
    penalised = [(groups, penalty_weights(network.state_dict(), groups, 1.0))]
    task = Task("regression", "logits", 0)
    return network, Objective(network, task, split(rows, target), penalised, spec=SPECS[kind])


def reference(kind, x, y, lam):
    """L-BFGS on vectors of each node whose sum is w (latent) or on w (tree), with norms smoothed less and less."""
    nodes = [np.concatenate([np.arange(3 * g, 3 * g + 3) for g in node]) for node in NODES[kind]]
    weights = [len(node) ** 0.5 for node in nodes]
    ends = np.cumsum([len(node) for node in nodes])
    scatter = np.zeros((30, ends[-1]))
    for node, end in zip(nodes, ends, strict=True):
        scatter[node, np.arange(end - len(node), end)] = 1
    design = x @ scatter if kind == "latent" else x
    parts = [slice(e - len(n), e) for n, e in zip(nodes, ends, strict=True)] if kind == "latent" else nodes

    def smoothed(v, epsilon):
        rest = design @ v - y
        norms = [np.sqrt(v[p] @ v[p] + epsilon**2) for p in parts]
        slope = 2 * design.T @ rest / len(y)
        for p, n, w in zip(parts, norms, weights, strict=True):
            slope[p] += lam * w * v[p] / n
        return np.mean(rest**2) + lam * np.dot(weights, norms), slope

    v = np.zeros(design.shape[1])
    for epsilon in 10.0 ** -np.arange(1, 7):
        v = minimize(smoothed, v, args=(epsilon,), jac=True, options={"maxiter": 5000, "gtol": 1e-9}).x
    return smoothed(v, 0.0)[0], (scatter @ v if kind == "latent" else v)


@pytest.mark.parametrize("kind", SPECS)
def test_a_generic_solver_finds_the_same_minimum_and_support(kind):
    x, y = problem()
    lam = 0.12
    network, objective = objective_of(kind, x, y)
    PointSolver(objective, TrainSpec(epochs=0, full_batch_steps=400), seed=0).solve(lam)
    ours = network.weight.detach().numpy().ravel()
    best, beta = reference(kind, x, y, lam)
    assert objective.loss() + objective.penalty(lam) == pytest.approx(best, rel=1e-5)
    np.testing.assert_allclose(ours, beta, atol=2e-3)
    support = [bool(ours[list(c)].any()) for _, c in FIELDS]
    assert support == [bool(np.linalg.norm(beta[list(c)]) > 1e-4) for _, c in FIELDS]
    assert support[6:] == [False] * 4
    assert max(objective.optimality(lam)[1:]) < 0.01
    with torch.no_grad():
        network.weight[0, 3] += 0.3
    assert objective.optimality(lam)[2] > 0.1
    with torch.no_grad():
        network.weight.zero_()
    assert objective.optimality(lam)[1] > 0.1


@pytest.mark.parametrize("kind", SPECS)
def test_everything_is_zero_at_lambda_max_and_not_just_below(kind):
    x, y = problem()
    network, objective = objective_of(kind, x, y)
    largest = lambda_max(objective)
    solver = PointSolver(objective, TrainSpec(epochs=0, full_batch_steps=300), seed=0)
    solver.solve(largest * 1.01)
    assert int(network.weight.count_nonzero()) == 0
    assert objective.optimality(largest * 1.01)[1] == 0.0
    assert objective.optimality(largest * 0.97)[1] > 0.0
    solver.solve(largest * 0.97)
    assert int(network.weight.count_nonzero()) > 0


@pytest.mark.parametrize("kind", SPECS)
def test_hidden_units_under_the_same_penalty_are_groups_of_their_own(kind):
    torch.manual_seed(0)
    x, y = problem()
    network = nn.Sequential(nn.Linear(30, 6), nn.Tanh(), nn.Linear(6, 1))
    rows, target = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    inputs, hidden = plan_units(network, (rows[:4],), (-1,), ("x",))
    sets = [hidden_groups(hidden), input_groups(inputs, FIELDS)]
    penalised = [
        (groups, penalty_weights(network.state_dict(), groups, strength))
        for groups, strength in zip(sets, (2.0, 1.0), strict=True)
    ]
    task = Task("regression", "logits", 0)
    objective = Objective(network, task, split(rows, target), penalised, spec=SPECS[kind])
    component = objective.regulariser.penalty.components
    assert component[:6].tolist() == list(range(6))
    assert len(component[12:16].unique()) == 1
    PointSolver(objective, TrainSpec(epochs=30, lr=1e-2, full_batch_steps=300), seed=0).solve(0.1)
    norms = objective.blocks.norms()
    assert 0 < int((norms[:6] == 0).sum()) < 6
    assert len(set((norms[12:16] > 0).tolist())) == 1  # one node, of which no feature stays alone
    assert max(objective.optimality(0.1)[1:]) < 0.2
