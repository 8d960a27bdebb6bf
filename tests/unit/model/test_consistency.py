"""Rows are computed alone; forwards that write into their inputs get copies."""

import itertools

import pytest
import torch
from torch import nn

from glprune.errors import ModelError
from glprune.model.consistency import (
    check_batch,
    check_consistency,
    check_rows,
    in_other_batches,
    keep_inputs_,
    repeat_rows,
)

ROWS = (torch.randn(20, 6, generator=torch.Generator().manual_seed(0)),)


class Forward(nn.Sequential):
    """A perceptron with another forward."""

    def __init__(self, forward):
        super().__init__(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))
        self.change = forward

    def forward(self, x):
        return self.change(super().forward, x)


def network(forward=lambda run, x: run(x)):
    torch.manual_seed(0)
    return Forward(forward).eval()


@pytest.mark.parametrize(
    "forward",
    [
        lambda run, x: run(x),
        lambda run, x: run(x) if len(x) == 1 else torch.cat([run(x[:1]), run(x[1:])]),
        lambda run, x: run(x.reshape(-1, 6)),
        lambda run, x: run(x.view(-1, 2, 3).flatten(1)) * 1e-6,
        lambda run, x: run(x * 1e4) * 1e6,
    ],
)
def test_networks_that_compute_each_row_alone_pass(forward):
    for rows in (ROWS, (ROWS[0][:2],), (ROWS[0][:1],)):
        check_consistency(network(forward), rows)


def test_round_off_of_a_deep_network_is_not_a_difference():
    torch.manual_seed(0)
    layers = [m for _ in range(60) for m in (nn.Linear(64, 64), nn.LayerNorm(64), nn.Tanh())]
    check_consistency(nn.Sequential(nn.Linear(6, 64), *layers, nn.Linear(64, 1)).eval(), ROWS)


@pytest.mark.parametrize("share", [1.0, 1e-2, 1e-3])
def test_rows_that_mix_a_little_are_found(share):
    with pytest.raises(ModelError, match="mixes the rows of a batch"):
        check_consistency(network(lambda run, x: run(x - share * x.mean(0))), ROWS)


def test_outputs_of_any_scale_are_compared_by_it():
    with pytest.raises(ModelError, match="mixes the rows of a batch"):
        check_consistency(network(lambda run, x: run(x - 0.1 * x.mean(0)) * 1e-9), ROWS)


def test_a_state_that_changes_results_slowly_is_found_and_named():
    net = network(lambda run, x: run(x - net.mean))
    net.register_buffer("mean", torch.zeros(6))
    net.register_forward_pre_hook(lambda m, x: setattr(m, "mean", 0.9999 * m.mean + 1e-4 * x[0].mean(0)))
    with pytest.raises(ModelError, match=r"keeps a state from call to call \('mean' changes\)"):
        check_consistency(net, ROWS)


def test_a_counter_that_no_result_depends_on_is_allowed():
    net = network()
    net.register_buffer("calls", torch.zeros(()))
    net.register_forward_pre_hook(lambda m, x: setattr(m, "calls", m.calls + 1))
    check_consistency(net, ROWS)
    assert net.calls > 2


def test_the_check_draws_no_random_number_of_the_caller():
    torch.manual_seed(3)
    expected = torch.rand(2)
    net = network()
    torch.manual_seed(3)
    check_consistency(net, ROWS)
    assert torch.equal(torch.rand(2), expected)


def test_a_branch_at_a_large_batch_is_found_where_a_split_has_one():
    net = network(lambda run, x: run(x) * (2 if len(x) > 150 else 1))
    check_consistency(net, ROWS)
    many = repeat_rows(ROWS, 200)
    with pytest.raises(
        ModelError, match=r"for 8 rows differ by .* from those for the same among 200: its forward depends"
    ):
        check_batch(net, many, [net(*many)])


@pytest.mark.parametrize("write", [lambda x: x.mul_(2), lambda x: torch.relu_(x), lambda x: x[:, 0].zero_()])
def test_a_forward_that_writes_into_its_inputs_writes_into_copies(write):
    net = network(lambda run, x: (write(x), run(x))[1])
    rows = (ROWS[0].clone(),)
    keep_inputs_(net, rows)
    first, second = net(*rows), net(*rows)
    assert torch.equal(rows[0], ROWS[0])
    assert torch.equal(first, second)
    check_consistency(net, rows)


def test_other_networks_get_no_hook():
    net = network()
    keep_inputs_(net, ROWS)
    assert not net._forward_pre_hooks


@pytest.mark.parametrize("every", [40, 400])
def test_a_counter_that_changes_the_outputs_now_and_then_is_found(every):
    net = network(lambda run, x: run(x * (2 if count() % every == 0 else 1)))
    net.calls = 0

    def count():
        net.calls += 1
        return net.calls

    with pytest.raises(ModelError, match=r"keeps a state from call to call \('calls' changes\)"):
        check_consistency(net, ROWS)


def test_a_counter_outside_of_the_network_is_found():
    calls = itertools.count(1)
    net = network(lambda run, x: run(x * (2 if next(calls) % 40 == 0 else 1)))
    with pytest.raises(ModelError, match="keeps a state from call to call"):
        check_consistency(net, ROWS)


def test_a_state_that_changes_while_rows_are_compared_is_named_as_such():
    calls = iter([1, 2])
    net = network(lambda run, x: run(x * next(calls, 1)))
    with pytest.raises(
        ModelError, match="again on the same rows: its forward keeps a state from call to call"
    ):
        check_rows(net, ROWS, [net(*ROWS)])


RARE = torch.zeros(300, 6)
RARE[123, 0] = 9.0
RARE += ROWS[0].repeat(15, 1) * 0.5


@pytest.mark.parametrize(
    "mix",
    [
        lambda y: y.roll(1, 0),
        lambda y: y.flip(0),
        lambda y: y - y.mean(0),
        lambda y: y.sort(0).values,
        lambda y: y.cumsum(0),
        lambda y: y.softmax(0),
        lambda y: y / y.norm(),
    ],
)
def test_rows_that_mix_only_where_a_rare_row_is_are_found(mix):
    net = network(lambda run, x: torch.where(x[:, :1] > 4, mix(run(x)), run(x)))
    check_consistency(net, (RARE[:100],))
    with pytest.raises(ModelError, match="mixes the rows of a batch"):
        check_rows(net, (RARE,), [net(RARE)])


@pytest.mark.parametrize("rows", [1, 2, 3, 300])
def test_rows_in_other_batches_give_the_same_in_their_order(rows):
    net = network()
    inputs = (RARE[:rows],)
    check_rows(net, inputs, [net(*inputs)])
    torch.testing.assert_close(in_other_batches(lambda x: (net(*x),), inputs)[0], net(*inputs))
    mixed = network(lambda run, x: run(x - x.mean(0)))
    if rows > 2:
        assert not torch.allclose(in_other_batches(lambda x: (mixed(*x),), inputs)[0], mixed(*inputs))


@pytest.mark.parametrize(
    "noise",
    [
        lambda: torch.randn(6),
        lambda: torch.empty(6).normal_(),
        lambda: torch.rand(6),
        lambda: torch.randperm(6).float(),
        lambda: torch.bernoulli(torch.full((6,), 0.5)) + torch.randint(9, (6,)),
        lambda: torch.randn(6, generator=torch.Generator().manual_seed(1)),
        lambda: torch.dropout(torch.ones(6), 0.5, True),
        lambda: torch.multinomial(torch.ones(6), 6).float(),
    ],
)
def test_random_numbers_of_the_forwards_own_seed_are_named(noise):
    net = network(lambda run, x: (torch.manual_seed(0), run(x + noise()))[1])
    with pytest.raises(ModelError, match=r"draws random numbers \(torch\.\w+\) with a seed of its own"):
        check_consistency(net, ROWS)


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: torch.manual_seed(0),  # and draws nothing
        lambda x: torch.randn(6),  # and uses none
        lambda x: torch.nn.functional.dropout(x, 0.5, training=False),
        lambda x: torch.nn.functional.scaled_dot_product_attention(x[None], x[None], x[None]),
    ],
)
def test_random_numbers_that_no_output_depends_on_are_allowed(draw):
    check_consistency(network(lambda run, x: (draw(x), run(x))[1]), ROWS)
