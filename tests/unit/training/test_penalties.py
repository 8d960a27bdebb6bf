"""Proximal operators and optimality conditions against brute force and closed forms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from glprune.pruning.groups import input_groups, penalty_weights, root_mean_squares
from glprune.pruning.units import TensorAxis, UnitSet
from glprune.training.blocks import ParameterGroup, ParameterGroups
from glprune.training.penalties import (
    GroupLasso,
    GroupMCP,
    SparseGroupLasso,
    block_soft_threshold,
    mcp_thresholds,
)

floats = st.floats(0, 10, allow_nan=False, width=32)
vectors = st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=6)
INFINITE = torch.tensor([torch.inf])


def one_group(values):
    """A single group, in double precision."""
    parameter = nn.Parameter(torch.tensor(values, dtype=torch.float64)[:, None])
    return ParameterGroups([ParameterGroup(parameter, 1, torch.zeros(1, dtype=torch.int64))], 1)


def columns(values, gradient=None):
    """A matrix whose columns are groups, in double precision."""
    parameter = nn.Parameter(torch.as_tensor(values).double().clone())
    if gradient is not None:
        parameter.grad = torch.as_tensor(gradient).double()
    return ParameterGroups(
        [ParameterGroup(parameter, 1, torch.arange(parameter.shape[1]))], parameter.shape[1]
    )


def penalties(weight, size, knot=2.0, share=0.3, count=1):
    """One penalty of each kind."""
    weights = torch.full((count,), weight, dtype=torch.float64)
    return {
        "group_lasso": GroupLasso(weights),
        "group_mcp": GroupMCP(weights, torch.full((count,), knot, dtype=torch.float64)),
        "sparse_group_lasso": SparseGroupLasso(
            weights, share, torch.full((count,), float(size), dtype=torch.float64)
        ),
    }


KINDS = list(penalties(1.0, 1))


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(values=vectors, strength=st.floats(0, 4), share=st.floats(0.01, 0.99), seed=st.integers(0, 2**31))
def test_no_random_point_scores_lower_than_the_proximal_one(kind, values, strength, share, seed):
    start = torch.tensor(values, dtype=torch.float64)
    blocks = one_group(values)
    penalty = penalties(1.3, len(values), share=share)[kind]

    def score(vector):
        at = one_group(vector.tolist())
        convex = penalty.value(at, strength) - penalty.smooth_value(at, strength)
        return 0.5 * float((vector - start).square().sum()) + convex

    penalty.prox_(blocks, torch.tensor([strength], dtype=torch.float64), INFINITE)
    best = blocks.parameters[0].detach()[:, 0]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(4, len(values), generator=generator, dtype=torch.float64)
    nearby = [best + scale * n for scale, n in zip((1e-4, 1e-2, 1.0, 3.0), noise, strict=True)]
    along = [t * start for t in torch.linspace(0, 1, 9, dtype=torch.float64)]
    assert all(score(best) <= score(other) + 1e-9 for other in (*nearby, *along))


def test_the_smooth_part_and_its_gradient_are_what_the_mcp_is_less_than_the_lasso():
    values = torch.tensor([[0.5, 3.0, 0.0], [-0.2, 1.0, 0.0]])
    weights, knots_ = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([2.0, 1.0, 0.5])
    penalty, blocks = GroupMCP(weights.double(), knots_.double()), columns(values)

    def rest(x):
        norms = x.norm(dim=0)
        inside = torch.minimum(norms, knots_)
        return 0.7 * (weights * (inside - inside**2 / (2 * knots_) - norms)).sum()

    x = values.double().requires_grad_()
    (exact,) = torch.autograd.grad(rest(x), x)
    assert penalty.smooth_value(blocks, 0.7) == pytest.approx(rest(x).item())
    penalty.add_smooth_gradient_(blocks, 0.7)
    torch.testing.assert_close(blocks.parameters[0].grad, exact.nan_to_num())
    penalty.add_smooth_gradient_(blocks, 0.7)
    torch.testing.assert_close(blocks.parameters[0].grad, 2 * exact.nan_to_num())


@settings(deadline=None)
@given(norm=st.floats(0.01, 10), lam=st.floats(0.01, 1.2), knot=st.floats(1.3, 6))
def test_steps_on_the_mcp_end_in_its_firm_threshold(norm, lam, knot):
    """Breheny and Huang (2015): the minimiser of ``0.5 * (u - z)**2`` plus the MCP."""
    blocks = one_group([norm])
    penalty = GroupMCP(*(torch.tensor([v], dtype=torch.float64) for v in (1.0, knot)))
    for _ in range(400):
        (u,) = blocks.parameters
        u.grad = u.detach() - norm
        penalty.add_smooth_gradient_(blocks, lam)
        u.data.sub_(0.9 * u.grad)
        penalty.prox_(blocks, torch.tensor([0.9 * lam], dtype=torch.float64), INFINITE)
    exact = max(norm - lam, 0) / (1 - lam / knot) if norm <= knot else norm
    assert blocks.norms().item() == pytest.approx(exact, abs=1e-6)


def proximal(penalty, values, strength):
    blocks = one_group(values)
    penalty.prox_(blocks, torch.tensor([strength], dtype=torch.float64), INFINITE)
    return blocks.parameters[0].detach()[:, 0]


@settings(deadline=None)
@given(values=vectors, strength=st.floats(0, 4))
def test_the_sparse_group_lasso_lies_between_group_lasso_and_lasso(values, strength):
    x = torch.tensor(values, dtype=torch.float64)
    group, lasso = (
        penalties(1.0, len(values), share=share)["sparse_group_lasso"] for share in (1e-9, 1 - 1e-9)
    )
    whole = proximal(penalties(1.0, len(values))["group_lasso"], values, strength)
    torch.testing.assert_close(proximal(group, values, strength), whole, atol=1e-6, rtol=0)
    soft = x.sign() * (x.abs() - strength / len(values) ** 0.5).clamp(min=0)
    torch.testing.assert_close(proximal(lasso, values, strength), soft, atol=1e-6, rtol=0)


@pytest.mark.parametrize("knot", [1e9, float("inf")])
def test_an_endless_knot_is_the_group_lasso(knot):
    values, gradient = [[0.5, 3.0, 0.0], [-0.2, 1.0, 0.0]], [[0.1, -0.7, 0.3], [0.2, 0.1, -0.2]]
    weights = torch.tensor([1.0, 2.0, 1.0]).double()
    lasso, mcp = GroupLasso(weights), GroupMCP(weights, torch.full_like(weights, knot))
    blocks = columns(values, gradient)
    assert mcp.value(blocks, 0.3) == pytest.approx(lasso.value(blocks, 0.3))
    assert mcp.residuals(blocks, 0.3) == pytest.approx(lasso.residuals(blocks, 0.3))
    assert torch.equal(mcp.zero_lambda(blocks), lasso.zero_lambda(blocks))
    mcp.add_smooth_gradient_(blocks, 0.3)
    torch.testing.assert_close(blocks.parameters[0].grad, torch.tensor(gradient).double(), atol=1e-8, rtol=0)


@given(value=st.floats(-5, 5, width=32), strength=st.floats(0, 4), share=st.floats(0.01, 0.99))
@settings(deadline=None)
def test_the_sparse_group_lasso_of_one_weight_is_the_lasso(value, strength, share):
    new = proximal(penalties(1.0, 1, share=share)["sparse_group_lasso"], [value], strength)
    assert new.item() == pytest.approx(math.copysign(max(abs(value) - strength, 0), value), abs=1e-12)


def test_the_sparse_group_lasso_zeroes_single_weights_exactly():
    new = proximal(penalties(1.0, 4, share=0.5)["sparse_group_lasso"], [3.0, -0.2, 0.25, 0.0], 1.0)
    assert new[0] == pytest.approx(3.0 - 0.25 - 0.5)
    assert new[1:].tolist() == [0.0, 0.0, 0.0]


def test_groups_of_size_one_are_soft_thresholding():
    x = torch.tensor([-3.0, -0.5, 0.0, 0.5, 2.0])
    new = block_soft_threshold(x.abs(), torch.full((5,), 1.0)) * x.sign()
    assert new.tolist() == [-2.0, 0.0, 0.0, 0.0, 1.0]


def test_a_group_at_or_below_the_threshold_is_exactly_zero():
    norms = torch.tensor([1.0, 0.999, 0.0])
    assert block_soft_threshold(norms, torch.ones(3)).tolist() == [0.0, 0.0, 0.0]


@settings(deadline=None)
@given(st.lists(floats, min_size=1, max_size=5))
def test_threshold_zero_is_the_identity(norms):
    x = torch.tensor(norms)
    assert torch.equal(block_soft_threshold(x, torch.zeros_like(x)), x)


@settings(deadline=None)
@given(floats, floats, floats)
def test_the_soft_threshold_never_expands_distances(a, b, threshold):
    pair = block_soft_threshold(torch.tensor([a, b]), torch.tensor([threshold, threshold]))
    assert abs(pair[0] - pair[1]) <= abs(a - b) + 1e-5


def test_values_are_those_of_the_formulas():
    blocks = columns([[3.0, 0.6], [4.0, 0.8]])
    weights, sizes = torch.tensor([1.0, 2.0]).double(), torch.tensor([2.0, 2.0]).double()
    assert GroupLasso(weights).value(blocks, 0.5) == pytest.approx(0.5 * (5 + 2))
    mcp = GroupMCP(weights, torch.tensor([4.0, 2.0]).double())
    assert mcp.value(blocks, 0.5) == pytest.approx(0.5 * (2 + 2 * (1 - 1 / 4)))
    sparse = SparseGroupLasso(weights, 0.25, sizes)
    lasso = (7 + 2 * 1.4) / 2**0.5
    assert sparse.value(blocks, 0.5) == pytest.approx(0.5 * (0.25 * lasso + 0.75 * 7))


@pytest.mark.parametrize("kind", KINDS)
def test_the_point_steps_end_in_is_optimal_and_its_neighbours_are_not(kind):
    """Loss 0.5 * ||w - z||^2; the step 1 of the convex kinds ends at once."""
    start = torch.tensor([[3.0, 0.1, 1.2], [-0.4, 0.2, 1.0], [0.05, 0.0, -0.9]]).double()
    penalty, blocks = penalties(1.0, 3, count=3)[kind], columns(start)
    (weights,) = blocks.parameters
    for _ in range(100 if kind == "group_mcp" else 1):
        weights.grad = weights.detach() - start
        penalty.add_smooth_gradient_(blocks, 1.0)
        weights.data.sub_(weights.grad)
        penalty.prox_(blocks, torch.ones(3).double(), INFINITE)
    weights.grad = weights.detach() - start
    assert ((blocks.norms() > 0) == torch.tensor([True, False, True])).all()
    assert penalty.residuals(blocks, 1.0) == pytest.approx((0.0, 0.0), abs=1e-9)
    weights.data[0, 0] += 0.3
    weights.grad = weights.detach() - start
    assert penalty.residuals(blocks, 1.0)[1] > 0.1
    weights.data.zero_()
    weights.grad = -start
    assert penalty.residuals(blocks, 1.0)[0] > 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_zero_is_optimal_from_the_lambda_that_is_said_and_not_below(kind):
    gradient = torch.tensor([[3.0, 0.1], [-0.4, 0.2], [0.05, 0.0]])
    blocks = columns(torch.zeros(3, 2), gradient)
    penalty = penalties(1.7, 3, count=2)[kind]
    largest = float(penalty.zero_lambda(blocks).max())
    assert penalty.residuals(blocks, largest * (1 + 1e-9))[0] < 1e-8
    assert penalty.residuals(blocks, largest * 0.99)[0] > 1e-3


def test_a_zero_group_is_optimal_up_to_its_weight_and_no_further():
    penalty = GroupLasso(torch.tensor([1.0, 2.0]))
    assert penalty.residuals(columns(torch.zeros(1, 2), [[0.5, 1.0]]), 0.5) == (0.0, 0.0)
    zero, _ = penalty.residuals(columns(torch.zeros(1, 2), [[0.75, 1.0]]), 0.5)
    assert zero == pytest.approx(0.5)


def test_a_group_beyond_its_knot_is_optimal_where_its_gradient_is_zero():
    penalty = GroupMCP(torch.ones(2), torch.tensor([1.0, 4.0]))
    gradient = [[0.0, -0.5 * 0.75], [0.0, 0.0]]
    assert penalty.residuals(columns([[2.0, 1.0], [0.0, 0.0]], gradient), 0.5) == (0.0, 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_at_lambda_zero_the_residual_is_the_gradient(kind):
    blocks = columns([[0.0, 1.0]], [[2.0, 3.0]])
    assert penalties(1.0, 1, count=2)[kind].residuals(blocks, 0.0) == (2.0, 3.0)


def test_groups_of_weight_zero_have_no_residual_and_are_projected_only():
    weights = torch.tensor([0.0, 0.0])
    for penalty in (GroupLasso(weights), GroupMCP(weights, torch.full((2,), torch.inf))):
        blocks = columns([[3.0, 0.5]], [[1.0, 1.0]])
        assert penalty.residuals(blocks, 1.0) == (0.0, 0.0)
        penalty.prox_(blocks, torch.ones(2).double(), torch.tensor([2.0, 2.0]).double())
        assert blocks.parameters[0].tolist() == [[2.0, 0.5]]


def test_knots_are_multiples_of_the_trained_norms():
    norms = torch.tensor([1.0, 3.0, 0.0, 0.0, 0.0, 7.0])
    assert mcp_thresholds(norms, [3, 2], 2.0)[:2].tolist() == [2.0, 6.0]
    assert mcp_thresholds(norms, [3, 2], 2.0)[2].item() == pytest.approx(2 * 0.1 * 4 / 3)
    assert torch.isinf(mcp_thresholds(norms, [3, 2], 2.0)[3:]).all()


def test_adaptive_weights_are_the_size_over_the_trained_norm():
    """Wang and Leng (2008): a group's weight is inverse to its size in the trained network."""
    network = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([1.0, 2.0, 4.0, 0.0]).expand(3, 4))
    units = UnitSet("x", "input", 4, (TensorAxis("weight", 1, torch.arange(4), "reader"),), source=0)
    groups = input_groups(units, [(str(i), (i,)) for i in range(4)])
    plain = penalty_weights(network.state_dict(), groups, 2.0)
    adaptive = penalty_weights(
        network.state_dict(), groups, 2.0, root_mean_squares(network.state_dict(), groups)
    )
    torch.testing.assert_close(plain, torch.full((4,), 2.0 * 3**0.5, dtype=torch.float64))
    torch.testing.assert_close(adaptive[:3], plain[:3] / torch.tensor([1.0, 2.0, 4.0]).double())
    assert torch.isfinite(adaptive).all()
