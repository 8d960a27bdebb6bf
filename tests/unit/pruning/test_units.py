import copy

import pytest
import torch
from torch import nn

from glprune.model.standardize import with_standardization
from glprune.pruning.dependency_graph import dependency_plans
from glprune.pruning.planner import plan_units
from tests.networks import Recurrent, ResidualNorm, WideAndDeep, convolution, mlp


@pytest.fixture(autouse=True)
def seeded():
    """Of random ReLU networks one in hundreds has a layer of dead units, of which nothing can be proved."""
    torch.manual_seed(0)


def sets_of(network, example, axis=-1):
    return {s.name: s for s in plan_units(network.eval(), (example,), (axis,), ("x",))}


def readers_of(unit_set):
    return {slot.tensor: slot.unit.tolist() for slot in unit_set.readers}


def test_an_input_feature_owns_its_column_in_every_layer_that_reads_it():
    sets = sets_of(WideAndDeep(), torch.randn(3, 6))
    columns = list(range(6))
    assert readers_of(sets["x"]) == {
        "branch.weight": columns,
        "deep.weight": [*columns, -1, -1, -1, -1],
        "wide.weight": columns,
    }


def test_a_branch_concatenated_after_the_raw_input_owns_the_columns_behind_it():
    sets = sets_of(WideAndDeep(), torch.randn(3, 6))
    assert readers_of(sets["branch"]) == {"deep.weight": [-1] * 6 + [0, 1, 2, 3]}


def test_output_units_are_not_offered():
    assert set(sets_of(mlp(), torch.randn(3, 6))) == {"x", "0", "2"}


def test_a_channel_owns_all_its_positions_after_flatten():
    sets = sets_of(convolution(), torch.randn(3, 3, 8), axis=1)
    assert readers_of(sets["3"]) == {"6.weight": [c for c in range(5) for _ in range(6)]}
    assert sets["x"].count == 3


def test_batchnorm_and_standardisation_are_cut_along():
    network = with_standardization(mlp(norm=True), torch.zeros(6), torch.ones(6))
    carriers = {
        slot.tensor for slot in sets_of(network, torch.randn(3, 6))["x"].slots if slot.role == "carrier"
    }
    assert {"standardize.mean", "standardize.std", "network.0.running_mean", "network.0.bias"} <= carriers


def test_torch_prunings_plan_agrees_where_it_can_read_the_network():
    example = torch.randn(3, 6)
    assert {s.planner for s in sets_of(WideAndDeep(), example).values()} == {"both"}
    assert {s.planner for s in sets_of(mlp(norm=True), example).values()} == {"both"}


def test_units_that_torch_pruning_has_no_plan_for_are_planned_by_the_trace():
    example = torch.randn(3, 6)
    second = dependency_plans(Recurrent().eval(), (example,), (-1,), ("x",)).get("entry")
    assert second is None or second.refused
    entry = sets_of(Recurrent(), example)["entry"]
    assert entry.planner == "trace"
    assert readers_of(entry) == {"cell.weight_ih_l0": [0, 1, 2, 3]}


def test_a_network_on_which_torch_pruning_never_ends_does_not_hang():
    network = nn.Sequential(
        *(nn.ConstantPad1d(2, 1.5), nn.Conv1d(3, 5, 3, padding=1), nn.BatchNorm1d(5), nn.Sigmoid()),
        *(nn.ReplicationPad1d(1), nn.Conv1d(5, 4, 3, padding=1, padding_mode="circular"), nn.SiLU()),
        *(nn.AdaptiveAvgPool1d(3), nn.Flatten(), nn.Linear(12, 2)),
    ).eval()
    found = dependency_plans(network, (torch.randn(2, 3, 12),), (1,), ("x",), seconds=1.0)
    assert all(s.refused is None or s.refused for s in found.values())


def test_a_plan_of_torch_pruning_that_comes_too_late_is_dropped():
    assert dependency_plans(mlp().eval(), (torch.randn(3, 6),), (-1,), ("x",))
    assert dependency_plans(mlp().eval(), (torch.randn(3, 6),), (-1,), ("x",), seconds=0.0) == {}


def test_a_raw_residual_from_the_input_is_refused():
    class Raw(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(6, 6)

        def forward(self, x):
            return x + self.f(x)

    assert "output" in (sets_of(Raw(), torch.randn(3, 6))["x"].refused or "")


def test_frozen_readers_are_refused():
    network = mlp()
    network[0].weight.requires_grad_(False)
    assert "frozen" in (sets_of(network, torch.randn(3, 6))["x"].refused or "")


@pytest.mark.parametrize("training", [True, False])
def test_planning_leaves_the_network_as_it_was(training):
    network = ResidualNorm().train(training)
    before = copy.deepcopy(network.state_dict())
    plan_units(network, (torch.randn(3, 6),), (-1,), ("x",))
    assert network.training is training
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert not any(m._forward_hooks for m in network.modules())
    assert all(p.requires_grad for p in network.parameters())
