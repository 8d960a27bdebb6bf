"""Arithmetic over groups against sums element by element."""

import pytest
import torch
from torch import nn

from glprune.training import blocks as blocks_module
from glprune.training.blocks import ParameterGroup, ParameterGroups
from glprune.training.penalties import GroupLasso
from glprune.training.proximal import BoundedPenalty, ProximalAdam, ProximalProblem

SHAPES = {
    "matrix by columns": ((7, 5), 1),
    "matrix by rows": ((5, 7), 0),
    "convolution": ((6, 4, 3, 3), 1),
    "last of three": ((3, 4, 5), 2),
    "vector": ((6,), 0),
}
LAYOUTS = ["in turn", "in turn, last first", "shared"]


def blocks_of(layout):
    """One parameter of each shape, in double precision, with a gradient."""
    generator = torch.Generator().manual_seed(0)
    lengths = [shape[dim] for shape, dim in SHAPES.values()]
    owners = list(torch.arange(sum(lengths)).split(lengths))
    if layout == "in turn, last first":
        ends = torch.tensor(lengths).flip(0).cumsum(0).flip(0)
        owners = [torch.arange(end - n, end) for n, end in zip(lengths, ends.tolist(), strict=True)]
    if layout == "shared":
        owners = [torch.arange(n) % 4 for n in lengths]
    made = []
    for (shape, dim), owner in zip(SHAPES.values(), owners, strict=True):
        parameter = nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        parameter.grad = torch.randn(shape, generator=generator, dtype=torch.float64)
        made.append(ParameterGroup(parameter, dim, owner))
    return ParameterGroups(made, 4 if layout == "shared" else sum(lengths))


def by_element(blocks, of):
    """Every group's sum of ``of(parameter)``, one position after another."""
    total = torch.zeros(blocks.count, dtype=torch.float64)
    for block in blocks.blocks:
        values = of(block.parameter).detach().movedim(block.dim, 0)
        for position, group in enumerate(block.owner.tolist()):
            total[group] += values[position].sum()
    return total


def by_position(blocks, values):
    """``values`` of the groups, at every element of every parameter."""
    full = []
    for block in blocks.blocks:
        at = torch.ones_like(block.parameter.detach()).movedim(block.dim, -1) * values[block.owner]
        full.append(at.movedim(-1, block.dim))
    return full


@pytest.fixture(params=LAYOUTS)
def blocks(request):
    return blocks_of(request.param)


@pytest.mark.parametrize("held", [1, 40, 2**19])
def test_products_and_norms_are_sums_over_the_elements_of_each_group(blocks, held, monkeypatch):
    monkeypatch.setattr(blocks_module, "_CACHED", held)
    own = by_element(blocks, lambda p: p * p)
    torch.testing.assert_close(blocks.norms(), own.sqrt())
    mixed = by_element(blocks, lambda p: p * p.grad)
    torch.testing.assert_close(blocks.dot(blocks.values, blocks.gradients), mixed)
    torch.testing.assert_close(blocks.sizes, by_element(blocks, torch.ones_like))


def test_every_element_is_scaled_by_the_factor_of_its_group(blocks):
    factors = torch.arange(blocks.count).double()
    expected = [a * v for a, v in zip(by_position(blocks, factors), blocks.values, strict=True)]
    blocks.scale_(factors)
    torch.testing.assert_close([p.detach() for p in blocks.parameters], expected)


def test_steps_of_proximal_adam_are_those_of_its_definition(blocks):
    lam, lr, sizes = 0.05, 0.01, by_element(blocks, torch.ones_like)
    weights = sizes.sqrt()
    weights[1] = 0.0
    radius = torch.full_like(weights, torch.inf)
    radius[1] = 0.9 * blocks.norms()[1]
    at = [v.clone() for v in blocks.values]
    gradients = blocks.gradients
    floor = (lam * weights).square() / sizes
    floor[1] = floor[floor > 0].mean()
    moments, second = [torch.zeros_like(v) for v in at], torch.zeros_like(weights)
    problem = ProximalProblem(blocks, [], BoundedPenalty(GroupLasso(weights), radius), lam)
    optimizer = ProximalAdam(problem, lr)
    squares = by_element(blocks, lambda p: p.grad * p.grad)
    for number in range(1, 4):
        optimizer.step()
        second = 0.999 * second + 0.001 * squares / sizes
        size = lr / ((second / (1 - 0.999**number) + floor).sqrt() + 1e-8)
        moments = [0.9 * m + 0.1 * g for m, g in zip(moments, gradients, strict=True)]
        steps = by_position(blocks, size / (1 - 0.9**number))
        at = [v - s * m for v, s, m in zip(at, steps, moments, strict=True)]
        norms = sum_of_squares(blocks, at).sqrt()
        shrunk = torch.minimum((norms - size * lam * weights).clamp(min=0), radius)
        at = [v * f for v, f in zip(at, by_position(blocks, shrunk / norms), strict=True)]
    torch.testing.assert_close([p.detach() for p in blocks.parameters], at)


def sum_of_squares(blocks, tensors):
    squares = dict(zip(map(id, blocks.parameters), (t * t for t in tensors), strict=True))
    return by_element(blocks, lambda p: squares[id(p)])
