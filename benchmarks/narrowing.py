"""The cases of hidden.py and its methods: each takes a network and gives back narrower ones."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch_pruning as tp
from answers import Clock, Problem
from glprune_solver import recipe_of
from network import build, loss
from sets import DataSet, images, mnist, onehot
from torch import Tensor, nn

import glprune
from glprune.model.counting import macs

HERE = Path(__file__).parent
REGS = (1e-4, 1e-3, 1e-2)  # of the sparse training; the first is torch-pruning's default
HALVINGS = 14  # of the interval of pruning ratios
REFITS = 2  # of a choice that was made without training: glprune and torch-pruning have several models too
Found = Iterator[tuple[nn.Module, tuple[float, float]]]  # pruned networks, seconds until then


class ConvNet(nn.Module):
    """Three convolutions with BatchNorm on rows of 784 pixels: 8, 16, 16 channels, mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b, stride in ((1, 8, 2), (8, 16, 2), (16, 16, 1)):
            layers += [nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.reshape(-1, 1, 28, 28)).mean((2, 3)))


def convnet() -> nn.Module:
    """The ConvNet, untrained; the factory of its recipe."""
    return ConvNet()


def mlp_data(seed: int) -> DataSet:
    """MNIST-5000 for a perceptron of two hidden layers, 256 and 128."""
    return replace(mnist(seed), hidden=(256, 128))


CASES: dict[str, Callable[[int], DataSet]] = {"mlp": mlp_data, "conv": images, "onehot": onehot}


def fresh(case: str, data: DataSet) -> nn.Module:
    """The untrained network of a case."""
    return convnet() if case == "conv" else build(data.train.x.shape[1], data.hidden, data.outputs)


def by_glprune(case: str, problem: Problem, budget: int, epochs: int) -> Found:
    """A whole run of glprune; the network it ships."""
    recipe = recipe_of(problem, 1) | {
        "penalty": {"inputs": None, "hidden": {"strength": 1}, "weights": "adaptive"},
        "target": {"macs": f"{budget}%"},
    }
    if case == "conv":
        recipe["model"] = {"factory": f"{HERE}/narrowing.py:convnet"}
    file = problem.folder / "recipe.yaml"
    file.write_text(json.dumps(recipe), encoding="utf-8")
    clock = Clock()
    result = glprune.run(file, problem.state, problem.folder / "bundle", overwrite=True)
    yield glprune.load(result.bundle, lambda **_: fresh(case, problem.data)), clock()


def by_sparse_training(case: str, problem: Problem, budget: int, epochs: int) -> Found:
    """torch-pruning: GroupNormPruner's sparse training at three strengths, then its global pruning.

    SGD as in torch-pruning's examples, as many epochs as glprune's path had at the same budget.
    """
    x, y = torch.from_numpy(problem.data.train.x), torch.from_numpy(problem.data.train.y)
    clock = Clock()
    for reg in REGS:
        torch.manual_seed(problem.seed)
        network = copy.deepcopy(problem.network)
        pruner = pruner_of(network, x[:2], 0.5, tp.importance.GroupMagnitudeImportance(p=2), reg)
        network.train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(problem.data.batch):
                optimizer.zero_grad()
                loss(network(x[rows]), y[rows], problem.data.task).backward()
                pruner.regularize(network)
                optimizer.step()
        network.zero_grad(set_to_none=True)
        importance = tp.importance.GroupMagnitudeImportance(p=2)
        yield within(network.eval(), x[:2], budget, importance, problem.seed, reg), clock()


def by_magnitude(case: str, problem: Problem, budget: int, epochs: int) -> Found:
    """Norms of the trained network's groups, the same share of every layer."""
    clock = Clock()
    for _ in range(REFITS):
        yield _cut_at_once(problem, budget, tp.importance.GroupMagnitudeImportance(p=2)), clock()


def by_chance(case: str, problem: Problem, budget: int, epochs: int) -> Found:
    """Units drawn at random, the same share of every layer."""
    clock = Clock()
    for _ in range(REFITS):
        yield _cut_at_once(problem, budget, tp.importance.RandomImportance()), clock()


METHODS: dict[str, Callable[[str, Problem, int, int], Found]] = {
    "glprune": by_glprune,
    "torch-pruning": by_sparse_training,
    "magnitude": by_magnitude,
    "random": by_chance,
}


def _cut_at_once(problem: Problem, budget: int, importance: tp.importance.Importance) -> nn.Module:
    return within(
        problem.network, torch.from_numpy(problem.data.train.x[:2]), budget, importance, problem.seed
    )


def pruner_of(
    network: nn.Module, x: Tensor, ratio: float, importance: tp.importance.Importance, reg: float | None
) -> tp.pruner.BasePruner:
    """A pruner of all layers but the last: with a strength global, of group norms; else one share for all."""
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    given = {"pruning_ratio": ratio, "ignored_layers": [last], "global_pruning": reg is not None}
    if reg is None:
        return tp.pruner.BasePruner(network, x, importance, **given)
    return tp.pruner.GroupNormPruner(network, x, importance, reg=reg, **given)


def within(
    network: nn.Module,
    x: Tensor,
    budget: int,
    importance: tp.importance.Importance,
    seed: int,
    reg: float | None = None,
) -> nn.Module:
    """The largest network of at most `budget` per cent of the multiply-accumulates; the ratio is bisected."""
    limit, low, high = budget / 100 * macs(network, (x[:1],)), 0.0, 1.0
    best, most = None, 0
    for _ in range(HALVINGS):
        ratio = (low + high) / 2
        torch.manual_seed(seed)
        pruned = copy.deepcopy(network)
        pruner_of(pruned, x, ratio, importance, reg).step()
        size = macs(pruned.eval(), (x[:1],))
        low, high = (low, ratio) if size <= limit else (ratio, high)
        if most < size <= limit:
            best, most = pruned, size
    if best is None:
        raise SystemExit(f"no ratio gives at most {budget} % of the multiply-accumulates")
    return best
