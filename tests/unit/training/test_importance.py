"""Importances of groups against formulas by hand."""

import copy
import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn

from glprune.data.sharding import ShardedSplit
from glprune.errors import NonFiniteError
from glprune.model.task import Task
from glprune.pruning.groups import hidden_groups, input_groups, penalty_weights, root_mean_squares
from glprune.pruning.planner import plan_units
from glprune.runtime.process_group import ProcessGroup
from glprune.training import importance
from glprune.training.importance import TrainedNetwork, group_importances
from tests.networks import split

MEASURED = list(importance.MEASURES)
ROWS, COLUMNS = 120, 6


def trained(columns=COLUMNS, rows=ROWS, seed=0, **options):
    """A linear network that is not at its minimum, its rows and its groups of one column each."""
    torch.manual_seed(seed)
    network = nn.Linear(columns, 1)
    x = torch.randn(rows, columns) * torch.linspace(0.2, 2, columns)
    y = x @ torch.randn(columns) + torch.randn(rows)
    task = Task("regression", "logits", 0)
    units = plan_units(network, (x[:4],), (-1,), ("x",))[0]
    groups = input_groups(units, [(str(i), (i,)) for i in range(columns)])
    return TrainedNetwork(network, task, split(x, y), **options), groups, x, y


def errors(network, x, y):
    return (network(x)[:, 0] - y).detach()


def scaled(rises, norms):
    """Roots of rises, with the mean of the norms."""
    roots = rises.clamp(min=0).sqrt()
    return roots * (norms.mean() / roots.mean())


def by_hand(measure, network, x, y):
    weights, rest = network.weight.detach()[0], errors(network, x, y)
    rows = 2 * rest[:, None] * x * weights  # weight times the gradient of a row's loss
    if measure == "fisher":
        return 0.5 * rows.square().mean(0)
    if measure == "taylor":
        return rows.mean(0).square()  # one batch
    without = (rest[:, None] - x * weights).square().mean(0)
    return without - rest.square().mean()


@pytest.mark.parametrize("measure", MEASURED)
def test_importances_of_a_linear_network_are_those_of_the_formulas(measure):
    network, groups, x, y = trained()
    [found] = group_importances(network, [groups], measure)
    norms = network.network.weight.detach()[0].abs().double()
    expected = scaled(by_hand(measure, network.network, x, y).double(), norms)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert found.mean() == pytest.approx(norms.mean())


def test_the_fisher_information_of_many_rows_is_estimated_from_batches():
    """At the minimum, where gradients of rows are independent with mean zero, batches estimate the same."""
    network, groups, x, y = trained(rows=4000)
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], 1), y[:, None]).solution[:, 0]
    with torch.no_grad():
        network.network.weight.copy_(solution[None, :-1])
        network.network.bias.copy_(solution[-1:])
    [found] = group_importances(network, [groups], "fisher")
    norms = network.network.weight.detach()[0].abs().double()
    exact = scaled(by_hand("fisher", network.network, x, y).double(), norms)
    torch.testing.assert_close(found, exact, rtol=0.2, atol=0)


def test_size_and_norm_need_no_row():
    network, groups, _, _ = trained()
    alone = TrainedNetwork(network.network, network.task, None)
    assert group_importances(alone, [groups], "size")[0].tolist() == [1.0] * COLUMNS
    norms = root_mean_squares(network.network.state_dict(), groups)
    assert torch.equal(group_importances(alone, [groups], "adaptive")[0], norms)


@pytest.mark.parametrize("measure", MEASURED)
def test_the_network_is_as_before_and_a_second_measurement_is_equal(measure):
    network, groups, _, _ = trained(rows=3000)
    before = copy.deepcopy(network.network.state_dict())
    first, second = (group_importances(network, [groups], measure)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(before[n], t) for n, t in network.network.state_dict().items())
    assert network.network.weight.grad is None


@pytest.mark.parametrize("measure", MEASURED)
def test_units_of_every_kind_of_layer_are_measured_and_those_of_no_effect_matter_least(measure):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv1d(3, 5, 3, padding=1), nn.BatchNorm1d(5), nn.ReLU(), nn.Flatten(), nn.Linear(40, 2)
    ).eval()
    x = torch.randn(64, 3, 8)
    inputs, hidden = plan_units(network, (x[:4],), (1,), ("x",))
    with torch.no_grad():
        network[0].weight[:, 1] = 0.0
        network[4].weight.view(2, 5, 8)[:, 2] = 0.0
        network[4].weight *= 10  # it is sure of what it says, so that every loss of a group costs
        y = network(x).argmax(1)
    sets = [input_groups(inputs, [(str(i), (i,)) for i in range(3)]), hidden_groups(hidden)]
    own = TrainedNetwork(network, Task("multiclass", "logits", 2), split(x, y))
    found = group_importances(own, sets, measure)
    assert [len(f) for f in found] == [3, 5]
    assert (found[0][1], found[1][2]) == (0.0, 0.0)
    assert bool((found[0][[0, 2]] > 0).all())
    weights = penalty_weights(network.state_dict(), sets[0], 1.0, found[0])
    assert weights.argmax() == 1
    assert torch.isfinite(weights).all()


@pytest.mark.parametrize("measure", MEASURED)
def test_where_no_group_matters_all_weights_are_those_of_the_size(measure):
    network, groups, _, _ = trained()
    nn.init.zeros_(network.network.weight)
    [found] = group_importances(network, [groups], measure)
    weights = penalty_weights(network.network.state_dict(), groups, 2.0, found)
    assert weights.tolist() == [2.0] * COLUMNS


@pytest.mark.parametrize("measure", MEASURED)
def test_a_loss_that_is_not_finite_is_an_error_of_one_line(measure):
    network, groups, _, _ = trained()
    nn.init.constant_(network.network.weight, 1e30)
    with pytest.raises(NonFiniteError, match=r"importances of groups.* not\b") as error:
        group_importances(network, [groups], measure)
    assert "\n" not in str(error.value)


def test_a_group_without_which_the_loss_is_infinite_matters_most():
    network, groups, x, _ = trained()
    with torch.no_grad():
        network.network.weight[0, :2] = 1e30
        x[:, 1] = -x[:, 0]  # the two cancel
    [found] = group_importances(network, [groups], "ablation")
    assert torch.isfinite(found).all()
    assert found[0] == found[1] == found.max()


@dataclass
class Sums:
    """Sums over two threads in turn."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=30))
    parts: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Threads(ProcessGroup):
    """A group of two whose processes are threads."""

    sums: Sums = field(default_factory=Sums)

    def all_reduce_(self, tensor):
        self.sums.parts[self.rank] = tensor.clone()
        self.sums.barrier.wait()
        tensor.copy_(self.sums.parts[0] + self.sums.parts[1])
        self.sums.barrier.wait()
        return tensor


@pytest.mark.parametrize("measure", MEASURED)
def test_two_processes_find_the_importances_of_one(measure):
    alone, groups, x, y = trained(rows=301)
    sums, found = Sums(), {}

    def measured(rank):
        group = Threads(rank, 2, sums=sums)
        rows = ShardedSplit(split(x, y), group)
        own = TrainedNetwork(copy.deepcopy(alone.network), alone.task, rows, process_group=group)
        found[rank] = group_importances(own, [groups], measure)[0]

    threads = [threading.Thread(target=measured, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [expected] = group_importances(alone, [groups], measure)
    assert torch.equal(found[0], found[1])
    np.testing.assert_allclose(found[0], expected, rtol=1e-4)
