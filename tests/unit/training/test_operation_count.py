"""The proximal step costs a bounded number of tensor operations for each layer, however many groups it has."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from glprune.training.blocks import ParameterGroup, ParameterGroups, _products
from glprune.training.penalties import GroupLasso, GroupMCP, SparseGroupLasso
from glprune.training.proximal import BoundedPenalty, ProximalAdam, ProximalProblem, ProximalSGD

FEW, MANY = 10, 10_000
SHARED = 17  # operations of a proximal operator at most, whatever the layers
EACH = {"group_lasso": 6, "sparse_group_lasso": 12, "group_mcp": 6}  # and for each layer
UPDATE = 30, 10  # the same of an optimiser's step without the operator
VIEWS = {"aten.view.default", "aten.detach.default", "aten.split_with_sizes.default", "aten.expand.default"}
KINDS = {
    "group_lasso": lambda blocks, weights: GroupLasso(weights),
    "sparse_group_lasso": lambda blocks, weights: SparseGroupLasso(weights, 0.3, blocks.sizes),
    "group_mcp": lambda blocks, weights: GroupMCP(weights, torch.full_like(weights, 2.0)),
}


class Counting(TorchDispatchMode):
    """Counts what reaches a device: every ATen operation but views."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += str(func) not in VIEWS
        return func(*args, **(kwargs or {}))


def layers(groups, count, dim, width=8, shared=False):
    """Matrices of as many groups each along a dimension; shared: all of the same groups, as readers of one input."""
    torch.manual_seed(0)
    shape = (width, groups) if dim else (groups, width)
    blocks = [
        ParameterGroup(
            nn.Parameter(torch.randn(shape)),
            dim,
            torch.arange(groups) + (0 if shared else n * groups),
        )
        for n in range(count)
    ]
    for block in blocks:
        block.parameter.grad = torch.ones_like(block.parameter)
    return blocks, groups if shared else groups * count


def counted(run):
    with torch.no_grad(), Counting() as mode:
        run()
    return mode.count


def prox_operations(kind, groups, count, dim, **options):
    made, total = layers(groups, count, dim, **options)
    blocks, weights = ParameterGroups(made, total), torch.ones(total)
    regulariser = BoundedPenalty(KINDS[kind](blocks, weights), torch.full_like(weights, 3.0))
    strength = torch.full_like(weights, 0.5)
    return counted(lambda: regulariser.prox_(blocks, strength))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_operations_of_a_proximal_operator_do_not_grow_with_groups(kind, dim, shared):
    few, many = (prox_operations(kind, groups, 3, dim, shared=shared) for groups in (FEW, MANY))
    assert few == many
    assert 0 < few <= SHARED + 3 * EACH[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_operations_of_a_proximal_operator_grow_evenly_with_layers(kind):
    counts = [prox_operations(kind, FEW, count, 1) for count in (2, 3, 12)]
    each = counts[1] - counts[0]
    assert counts[2] - counts[1] == 9 * each
    assert 0 < each <= EACH[kind]


def test_sums_over_a_large_matrix_are_not_taken_in_parts_on_another_device():
    counts = []
    for groups in (FEW, 10 * MANY):
        x = torch.randn(64, groups, device="meta")
        counts.append(counted(lambda x=x: _products(x, x, 1)))
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("optimizer", [ProximalAdam, ProximalSGD])
@pytest.mark.parametrize("kind", KINDS)
def test_operations_of_a_whole_step_do_not_grow_with_groups(kind, optimizer):
    counts = []
    for groups in (FEW, MANY):
        made, total = layers(groups, 3, 1)
        blocks = ParameterGroups(made, total)
        penalty = KINDS[kind](blocks, torch.ones(total))
        stepper = optimizer(ProximalProblem(blocks, [], BoundedPenalty(penalty, None), 0.1), 1e-3)
        counts.append(counted(stepper.step))
    assert counts[0] == counts[1]
    assert 0 < counts[0] <= SHARED + UPDATE[0] + 3 * (EACH[kind] + UPDATE[1])
