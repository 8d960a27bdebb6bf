import copy

import pytest
import torch
from torch import nn

from glprune.pruning.groups import hidden_groups, input_groups, zero_units_
from glprune.pruning.planner import plan_units
from glprune.pruning.removal import remove
from glprune.pruning.surgery import slice_
from glprune.pruning.units import UnitSet
from glprune.pruning.verification import TOLERANCE, EquivalenceChecker, difference, outputs
from tests.networks import ResidualNorm, WideAndDeep, convolution, mlp


def planned(network, example, axis):
    return plan_units(network, (example,), (axis,), ("x",))


def failure_of(network, units, x):
    return EquivalenceChecker(network, (x,), (-1,)).check_each([units])


def readers_of(sets, name):
    return {slot.tensor: slot.unit.tolist() for s in sets if s.name == name for slot in s.readers}


def grouped(sets):
    return [
        input_groups(s, [(str(i), (i,)) for i in range(s.count)]) if s.kind == "input" else hidden_groups(s)
        for s in sets
    ]


def zeroed(network, sets, seed):
    """A copy with a random part of every set zeroed."""
    generator = torch.Generator().manual_seed(seed)
    twin = copy.deepcopy(network)
    for s in sets:
        marked = torch.rand(s.count, generator=generator) < 0.5
        marked[0] = False
        zero_units_(dict(twin.state_dict()), s, marked)
    return twin


NETWORKS = {
    "relu": (lambda: mlp(nn.ReLU), (9, 6), -1),
    "tanh": (lambda: mlp(nn.Tanh), (9, 6), -1),
    "sigmoid": (lambda: mlp(nn.Sigmoid), (9, 6), -1),
    "gelu": (lambda: mlp(nn.GELU), (9, 6), -1),
    "batchnorm": (lambda: mlp(nn.Sigmoid, norm=True), (9, 6), -1),
    "wide and deep": (WideAndDeep, (9, 6), -1),
    "convolution": (convolution, (9, 3, 8), 1),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NETWORKS)
def test_slim_equals_zeroed_dense(name, seed):
    build, shape, axis = NETWORKS[name]
    torch.manual_seed(seed)
    network, x = build().eval(), torch.randn(shape)
    sets = planned(network, x, axis)
    assert not any(s.refused for s in sets)
    dense = zeroed(network, sets, seed)
    removed = remove(dense, grouped(sets), (x,), (axis,))
    fresh = torch.randn((5, *shape[1:]))
    slim_input = fresh.index_select(axis, removed.columns[0])
    assert difference(outputs(dense, (fresh,)), outputs(removed.network, (slim_input,))) < TOLERANCE
    cut = sum(c.units for c in removed.cuts)
    assert cut > 0
    assert sum(p.numel() for p in removed.network.parameters()) < sum(p.numel() for p in dense.parameters())
    assert removed.difference < TOLERANCE


def test_the_zeroed_network_itself_is_left_alone():
    network, x = mlp(), torch.randn(9, 6)
    sets = planned(network, x, -1)
    dense = zeroed(network, sets, 0)
    before = copy.deepcopy(dense.state_dict())
    remove(dense, grouped(sets), (x,), (-1,))
    assert all(torch.equal(before[k], v) for k, v in dense.state_dict().items())


def test_units_under_layernorm_stay_and_the_operation_is_named():
    network, x = ResidualNorm().eval(), torch.randn(9, 6)
    sets = {s.name: s for s in planned(network, x, -1)}
    assert "LayerNorm 'norm'" in (sets["entry"].refused or "")
    assert sets["x"].refused is None


def test_a_plan_that_gives_a_column_to_the_wrong_unit_is_caught():
    network, x = mlp(), torch.randn(9, 6)
    good = planned(network, x, -1)[1]
    swapped = []
    for slot in good.slots:
        unit = slot.unit.clone()
        if slot.role == "reader":
            unit[[2, 5]] = unit[[5, 2]]
        swapped.append(type(slot)(slot.tensor, slot.dim, unit, slot.role))
    bad = UnitSet(good.name, good.kind, good.count, tuple(swapped))
    assert failure_of(network, good, x) is None
    assert failure_of(network, bad, x) is not None


def test_a_plan_that_misses_a_reader_is_caught():
    network, x = WideAndDeep().eval(), torch.randn(9, 6)
    good = planned(network, x, -1)[0]
    left = tuple(s for s in good.slots if s.tensor != "wide.weight")
    bad = UnitSet(good.name, good.kind, good.count, left, source=0)
    assert failure_of(network, good, x) is None
    assert failure_of(network, bad, x) is not None


def test_a_layer_applied_to_reshaped_units_and_flattened_is_cut_right_or_refused():
    class Fields(nn.Module):
        def __init__(self):
            super().__init__()
            self.entry = nn.Linear(6, 12)
            self.embed = nn.Linear(4, 4)
            self.out = nn.Linear(12, 1)

        def forward(self, x):
            return self.out(self.embed(self.entry(x).reshape(-1, 3, 4)).flatten(1))

    network, x = Fields().eval(), torch.randn(9, 6)
    for s in planned(network, x, -1):
        if s.refused:
            continue
        dense = zeroed(network, [s], 1)
        removed = remove(dense, grouped([s]), (x,), (-1,))
        assert removed.difference < TOLERANCE
    assert readers_of(planned(network, x, -1), "embed") == {"out.weight": [0, 1, 2, 3] * 3}


def test_a_layer_with_nothing_left_keeps_one_unit():
    network, x = mlp(), torch.randn(9, 6)
    sets = planned(network, x, -1)
    dense = copy.deepcopy(network)
    zero_units_(dict(dense.state_dict()), sets[1], torch.ones(sets[1].count, dtype=torch.bool))
    removed = remove(dense, grouped(sets), (x,), (-1,))
    assert removed.network[0].out_features == 1
    assert removed.difference < TOLERANCE


def test_tied_weights_stay_tied_and_sizes_follow():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 3)
            self.b = nn.Linear(4, 3)
            self.b.weight = self.a.weight

    network = Tied()
    slice_(network, {("a.weight", 1): torch.tensor([0, 2])})
    assert network.a.weight is network.b.weight
    assert network.a.in_features == network.b.in_features == 2


def test_frozen_parameters_stay_frozen_after_a_cut():
    layer = nn.Linear(4, 3)
    layer.weight.requires_grad_(False)
    slice_(layer, {("weight", 1): torch.tensor([0, 2])})
    assert layer.weight.requires_grad is False


def test_difference_is_infinite_for_nan_and_for_other_shapes():
    one = [torch.ones(2, 2)]
    assert difference(one, [torch.full((2, 2), float("nan"))]) == float("inf")
    assert difference(one, [torch.ones(2, 3)]) == float("inf")


class Fixed(nn.Module):
    """Eight columns, and a forward that fixes a width at some numbers of rows."""

    def __init__(self, forward):
        super().__init__()
        self.entry, self.out, self.change = nn.Linear(8, 6), nn.Linear(6, 1), forward

    def forward(self, x):
        return self.change(self, x)

    def plain(self, x):
        return self.out(torch.relu(self.entry(x)))


@pytest.mark.parametrize("rows", [2, 8, 16, 24])
@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: net.plain(x.view(-1, 8, 1).view(len(x), -1)),
        lambda net, x: net.plain(x.reshape(-1, 4, 2).reshape(x.shape[0], -1)),
        lambda net, x: net.plain(x.reshape(-1, 2).reshape(x.shape[0], -1)),
    ],
)
def test_a_width_fixed_in_a_view_is_found_whatever_the_number_of_rows(forward, rows):
    torch.manual_seed(0)
    (units, *_) = planned(Fixed(forward).eval(), torch.randn(rows, 8), 1)
    assert units.removal == "constant"
    assert units.refused is None


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_width_fixed_for_a_small_batch_alone_is_found(rows):
    def forward(net, x):
        return net.plain(x.view(rows, 8) if len(x) == rows else x)

    torch.manual_seed(0)
    (units, *_) = planned(Fixed(forward).eval(), torch.randn(16, 8), 1)
    assert units.removal == "constant"


@pytest.mark.parametrize("fault", ["raises", "exits", "differs"])
def test_a_cut_that_fails_in_a_small_batch_is_refused_and_removal_goes_on(fault):
    def forward(net, x):
        if len(x) == 2 and x.shape[1] < 8:
            if fault == "raises":
                raise ValueError("too narrow")
            if fault == "exits":
                raise SystemExit(0)
            return net.plain(x) + 1
        return net.plain(x)

    torch.manual_seed(0)
    network = Fixed(Fixed.plain).eval()
    sets = planned(network, torch.randn(16, 8), 1)
    network.change = forward
    zero = zeroed(network, sets, 0)
    removed = remove(zero, grouped(sets), (torch.randn(20, 8),), (1,))
    refused = {r.name: r.reason for r in removed.refused}
    assert "x" in refused
    assert ("changes outputs" if fault == "differs" else "no longer runs") in refused["x"]
    assert [c.name for c in removed.cuts] == ["entry"]


def test_a_forward_that_asks_for_float32_is_planned_in_it():
    def forward(net, x):
        assert x.dtype == torch.float32
        return net.plain(x)

    torch.manual_seed(0)
    assert all(s.refused is None for s in planned(Fixed(forward).eval(), torch.randn(16, 8), 1))


def test_a_buffer_outside_of_the_state_dict_is_cut_too():
    network = Fixed(lambda net, x: net.plain(x + net.shift)).eval()
    network.register_buffer("shift", torch.arange(8.0), persistent=False)
    sets = planned(network, torch.randn(16, 8), 1)
    zero = zeroed(network, sets, 0)
    removed = remove(zero, grouped(sets), (torch.randn(20, 8),), (1,))
    assert not removed.refused
    assert removed.network.shift.tolist() == removed.columns[0].tolist()
