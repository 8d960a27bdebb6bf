import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from glprune.groups import input_groups, penalty_weights
from glprune.penalty import block_soft_threshold, kkt_residuals, penalty_value
from glprune.units import Slot, UnitSet

floats = st.floats(0, 10, allow_nan=False, width=32)


def prox_of_vector(vector: torch.Tensor, threshold: float) -> torch.Tensor:
    norm = vector.norm()[None]
    new = block_soft_threshold(norm, torch.tensor([threshold]))
    return vector * (new / norm) if norm > 0 else vector


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=6), st.floats(0, 4), st.integers(0, 2**31))
def test_no_random_nearby_point_scores_lower(values, threshold, seed):
    vector = torch.tensor(values, dtype=torch.float64)

    def score(u):
        return 0.5 * (u - vector).square().sum() + threshold * u.norm()

    best = prox_of_vector(vector, threshold)
    generator = torch.Generator().manual_seed(seed)
    for scale in (1e-4, 1e-2, 1.0):
        nearby = best + scale * torch.randn(vector.shape, generator=generator, dtype=torch.float64)
        assert score(best) <= score(nearby) + 1e-9


def test_groups_of_size_one_are_soft_thresholding():
    x = torch.tensor([-3.0, -0.5, 0.0, 0.5, 2.0])
    new = block_soft_threshold(x.abs(), torch.full((5,), 1.0)) * x.sign()
    assert new.tolist() == [-2.0, 0.0, 0.0, 0.0, 1.0]


def test_a_group_at_or_below_the_threshold_is_exactly_zero():
    norms = torch.tensor([1.0, 0.999, 0.0])
    assert block_soft_threshold(norms, torch.ones(3)).tolist() == [0.0, 0.0, 0.0]


@given(st.lists(floats, min_size=1, max_size=5))
def test_threshold_zero_is_the_identity(norms):
    x = torch.tensor(norms)
    assert torch.equal(block_soft_threshold(x, torch.zeros_like(x)), x)


@given(floats, floats, floats)
def test_the_operator_never_expands_distances(a, b, threshold):
    pair = block_soft_threshold(torch.tensor([a, b]), torch.tensor([threshold, threshold]))
    assert abs(pair[0] - pair[1]) <= abs(a - b) + 1e-5


def test_penalty_is_lambda_times_weighted_norms():
    assert penalty_value(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0]), 0.5) == pytest.approx(5.5)


def test_a_zero_group_is_optimal_up_to_its_weight_and_no_further():
    norms, inner = torch.zeros(2), torch.zeros(2)
    weights = torch.tensor([1.0, 2.0])
    assert kkt_residuals(norms, torch.tensor([0.5, 1.0]), inner, weights, 0.5) == (0.0, 0.0)
    zero, _ = kkt_residuals(norms, torch.tensor([0.75, 1.0]), inner, weights, 0.5)
    assert zero == pytest.approx(0.5)


def test_an_active_group_is_optimal_where_its_gradient_cancels_the_penalty():
    w = torch.tensor([3.0, 4.0], dtype=torch.float64)
    gradient = -0.1 * 2.0 * w / w.norm()
    residual = kkt_residuals(
        w.norm()[None], gradient.norm()[None], (gradient @ w)[None], torch.tensor([2.0]), 0.1
    )
    assert residual == pytest.approx((0.0, 0.0), abs=1e-7)
    moved = gradient + torch.tensor([0.2, 0.0])
    _, active = kkt_residuals(w.norm()[None], moved.norm()[None], (moved @ w)[None], torch.tensor([2.0]), 0.1)
    assert active == pytest.approx(1.0, rel=1e-5)


def test_at_lambda_zero_the_residual_is_the_gradient():
    zero, active = kkt_residuals(
        torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0]), torch.tensor([0.0, 3.0]), torch.ones(2), 0.0
    )
    assert (zero, active) == (2.0, 3.0)


def test_adaptive_weights_are_the_size_over_the_trained_norm():
    """Wang and Leng (2008): a group's weight is inverse to its size in the trained network."""
    network = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([1.0, 2.0, 4.0, 0.0]).expand(3, 4))
    units = UnitSet("x", "input", 4, (Slot("weight", 1, torch.arange(4), "reader"),), source=0)
    groups = input_groups(units, [(str(i), (i,)) for i in range(4)])
    plain = penalty_weights(network.state_dict(), groups, 2.0)
    adaptive = penalty_weights(network.state_dict(), groups, 2.0, adaptive=True)
    torch.testing.assert_close(plain, torch.full((4,), 2.0 * 3**0.5, dtype=torch.float64))
    torch.testing.assert_close(adaptive[:3], plain[:3] / torch.tensor([1.0, 2.0, 4.0]).double())
    assert torch.isfinite(adaptive).all()
