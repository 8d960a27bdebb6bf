"""The methods of hidden.py: each takes a trained network and gives back narrower ones, one for each budget.

All of them but glprune cut to a share of units that is bisected until the network is the largest one within
its budget. The iterative ones go there in steps and train between them, all for the same number of epochs.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
import torch_pruning as tp
from answers import Clock, Problem
from glprune_solver import recipe_of
from hidden_cases import Case, EncoderLayer, Recurrent
from network import LR, loss
from recurrent import GruPruner
from torch import nn

import glprune
from glprune.model.counting import macs

HERE = Path(__file__).parent
STEP, EPOCHS = 0.84, 5  # share of the size that a step leaves, epochs of training before each
REGS = (1e-3, 1e-2)  # of group norm's sparse training; torch-pruning's default, 1e-4, changes next to nothing
HALVINGS = 14  # of the interval of pruning ratios
REFITS = (
    2  # of a choice made once and without training: the other methods have several networks to choose from
)


@dataclass(frozen=True)
class Found:
    """A network of at most a budget.

    Attributes:
        seconds: Processor seconds until it was found.
        epochs: Epochs of training until then, at most.
        finished: Whether it also counts without the common refit.
    """

    budget: int
    network: nn.Module
    seconds: float
    epochs: int
    finished: bool = False


@dataclass(frozen=True)
class Criterion:
    """How torch-pruning ranks units.

    Attributes:
        kind: Name of the importance.
        everywhere: Rank all layers' units together; else every layer loses the same share.
        reg: Strength of the group norms' sparse training; 0: train without it.
    """

    kind: str
    everywhere: bool = False
    reg: float = 0.0


class Pruner(Protocol):
    """What torch-pruning's pruners do."""

    def step(self) -> None:
        """Remove the units of least importance."""

    def regularize(self, model: nn.Module) -> None:
        """Add the gradient of sparse training."""


Method = Callable[[Case, Problem, Sequence[int]], Iterator[Found]]


def by_glprune(case: Case, problem: Problem, budgets: Sequence[int]) -> Iterator[Found]:
    """A whole run of glprune for each budget; the network it ships."""
    for budget in budgets:
        file = problem.folder / "recipe.yaml"
        file.write_text(json.dumps(recipe(case, problem, budget)), encoding="utf-8")
        clock = Clock()
        result = glprune.run(file, problem.state, problem.folder / f"bundle{budget}", overwrite=True)
        network = glprune.load(result.bundle, lambda **_: case.fresh(problem.data))
        epochs = len(result.report.path) * glprune.schema.recipe.TrainSpec().epochs
        yield Found(budget, network, clock()[1], epochs, finished=True)


def recipe(case: Case, problem: Problem, budget: int) -> dict[str, object]:
    """What a user would write: everything at its default but what is penalised, the budget and the batch."""
    sections = recipe_of(problem, 1) | {
        "penalty": {"inputs": None, "hidden": {"strength": 1}},
        "target": {"macs": f"{budget}%"},
    }
    if case.network is not None:
        sections["model"] = {"factory": f"{HERE}/hidden_cases.py:{case.network.__name__}"}
    for name, section in case.recipe.items():
        sections[name] = sections.get(name, {}) | section if isinstance(section, dict) else section
    return sections


def iteratively(*criteria: Criterion) -> Method:
    """Train, cut a little, train again, once for each criterion; what is left at each budget."""

    def method(case: Case, problem: Problem, budgets: Sequence[int]) -> Iterator[Found]:
        for criterion in criteria:
            clock = Clock()
            torch.manual_seed(problem.seed)
            network, size, epochs = copy.deepcopy(problem.network), 1.0, 0
            for budget in sorted(budgets, reverse=True):
                while size > budget / 100:
                    size = max(size * STEP, budget / 100)
                    size = budget / 100 if size * STEP**0.5 < budget / 100 else size
                    tune(network, case, problem, criterion)
                    network, epochs = within(network, size, case, problem, criterion), epochs + EPOCHS
                yield Found(budget, copy.deepcopy(network), clock()[1], epochs)

    return method


def at_once(criterion: Criterion) -> Method:
    """Cut the trained network without any training."""

    def method(case: Case, problem: Problem, budgets: Sequence[int]) -> Iterator[Found]:
        for budget in budgets:
            clock = Clock()
            network = within(problem.network, budget / 100, case, problem, criterion)
            yield Found(budget, network, clock()[1], 0)
            for _ in range(REFITS - 1):
                yield Found(budget, network, 0.0, 0)

    return method


METHODS: dict[str, Method] = {
    "glprune": by_glprune,
    "group norm": iteratively(*(Criterion("norm", True, reg) for reg in REGS)),
    "taylor": iteratively(Criterion("taylor", True), Criterion("taylor")),
    "fpgm": iteratively(Criterion("distance", True), Criterion("distance")),
    "magnitude": at_once(Criterion("norm")),
    "random": at_once(Criterion("random")),
}
IMPORTANCES: dict[str, Callable[[], tp.importance.Importance]] = {
    "norm": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "taylor": tp.importance.GroupTaylorImportance,
    "distance": tp.importance.FPGMImportance,
    "random": tp.importance.RandomImportance,
}


def tune(network: nn.Module, case: Case, problem: Problem, criterion: Criterion) -> None:
    """Train with Adam; where group norms are regularised with SGD, as torch-pruning's examples do."""
    x, y = torch.from_numpy(problem.data.train.x), torch.from_numpy(problem.data.train.y)
    pruner = pruner_of(network, 0.5, case, problem, criterion) if criterion.reg else None
    adam = torch.optim.Adam(network.parameters(), LR)
    optimizer = torch.optim.SGD(network.parameters(), 10 * LR, momentum=0.9) if pruner else adam
    network.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(problem.data.batch):
            optimizer.zero_grad()
            loss(network(x[rows]), y[rows], problem.data.task).backward()
            if pruner:
                regularize(pruner, network)
            optimizer.step()
    network.zero_grad(set_to_none=True)
    network.eval()


def regularize(pruner: Pruner, network: nn.Module) -> None:
    """Add the gradient of sparse training, but not where it is 0/0: layers of one unit or of equal ones."""
    before = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    pruner.regularize(network)
    for p, old in zip((p for p in network.parameters() if p.grad is not None), before, strict=True):
        p.grad = torch.where(p.grad.isnan(), old, p.grad)


def within(network: nn.Module, size: float, case: Case, problem: Problem, criterion: Criterion) -> nn.Module:
    """The largest network of at most this share of the original's multiply-accumulates."""
    row = (torch.from_numpy(problem.data.train.x[:1]),)
    limit, low, high = size * macs(problem.network, row), 0.0, 1.0
    best, most = None, 0
    if criterion.kind == "taylor":
        add_gradients(network, problem)
    for _ in range(HALVINGS):
        ratio = (low + high) / 2
        pruned = cut(network, ratio, case, problem, criterion)
        counted = macs(pruned, row)
        low, high = (low, ratio) if counted <= limit else (ratio, high)
        if most < counted <= limit:
            best, most = pruned, counted
    if best is None and criterion.everywhere:  # torch-pruning leaves a layer whole that would lose all units
        return within(network, size, case, problem, replace(criterion, everywhere=False))
    if best is None:
        raise SystemExit(f"no ratio gives at most {size:.0%} of the multiply-accumulates")
    return best


def cut(network: nn.Module, ratio: float, case: Case, problem: Problem, criterion: Criterion) -> nn.Module:
    """A copy without a share of its units."""
    torch.manual_seed(problem.seed)
    pruned = copy.deepcopy(network)
    for parameter, original in zip(pruned.parameters(), network.parameters(), strict=True):
        parameter.grad = original.grad  # a copy of a network has none
    pruner_of(pruned, ratio, case, problem, criterion).step()
    pruned.zero_grad(set_to_none=True)
    for layer in pruned.modules():
        if isinstance(layer, EncoderLayer):  # torch-pruning narrows heads and knows no attributes
            layer.head_width = layer.query.out_features // case.heads
    return pruned.eval()


def pruner_of(network: nn.Module, ratio: float, case: Case, problem: Problem, criterion: Criterion) -> Pruner:
    """A pruner of all layers but the last. torch-pruning has no GRU; see recurrent.py."""
    if isinstance(network, Recurrent):
        assert isinstance(problem.network, Recurrent)
        return GruPruner(network, problem.network, criterion.kind, ratio, criterion.everywhere, criterion.reg)
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    heads = [
        part for m in network.modules() if isinstance(m, EncoderLayer) for part in (m.query, m.key, m.value)
    ]
    given = {
        "pruning_ratio": ratio,
        "ignored_layers": [last],
        "global_pruning": criterion.everywhere,
        "pruning_ratio_dict": {} if criterion.everywhere else ratios(network, ratio, case, problem),
        "num_heads": dict.fromkeys(heads, case.heads),
        "in_channel_groups": {},  # the defaults are shared by all pruners
        "out_channel_groups": {},
    }
    rows, importance = torch.from_numpy(problem.data.train.x[:2]), IMPORTANCES[criterion.kind]()
    if criterion.reg:
        return tp.pruner.GroupNormPruner(network, rows, importance, reg=criterion.reg, **given)
    return tp.pruner.BasePruner(network, rows, importance, **given)


def ratios(network: nn.Module, ratio: float, case: Case, problem: Problem) -> dict[nn.Module, float]:
    """What each layer must lose for a share of its original units to be gone; of each head's dimensions."""
    wanted = {}
    originals = dict(problem.network.named_modules())
    for name, layer in network.named_modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        heads = case.heads if name.rpartition(".")[2] in ("query", "key", "value") else 1
        now, whole = (len(m.weight) // heads for m in (layer, originals[name]))
        left = max(1, round((1 - ratio) * whole))
        wanted[layer] = max(0.0, 1 - (left + 0.5) / now)  # a half, since the product is rounded down
    return wanted


def add_gradients(network: nn.Module, problem: Problem) -> None:
    """Leave the gradient of the training loss, over all rows, in `.grad`."""
    x, y = torch.from_numpy(problem.data.train.x), torch.from_numpy(problem.data.train.y)
    network.zero_grad(set_to_none=True)
    for rows in torch.arange(len(x)).split(256):
        share = len(rows) / len(x)
        (loss(network(x[rows]), y[rows], problem.data.task) * share).backward()
