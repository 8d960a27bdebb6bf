"""Training steps with and without the penalty, part by part, in processor time."""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from glprune.data import TensorSplit
from glprune.model.task import Task
from glprune.pruning.groups import GroupSet, hidden_groups, input_groups, penalty_weights
from glprune.pruning.planner import plan_units
from glprune.schema.recipe import PenaltySpec
from glprune.training.blocks import ParameterGroups
from glprune.training.objective import Objective
from glprune.training.proximal import BoundedPenalty, ProximalAdam, ProximalProblem

CLASSES = 10
LAMBDA = 1e-5  # small: groups that leave would make the later steps cheaper


class Residual(nn.Module):
    """Two convolutions with BatchNorm beside a shortcut, as in ResNet-18."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        )
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        same = inputs == outputs and stride == 1
        self.short = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.second(functional.relu(self.first(x))) + self.short(x))


class ResNet(nn.Module):
    """ResNet-18's blocks on 32 x 32 images, widths from 32 to 256."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
        widths = [32, 32, 32, 64, 64, 128, 128, 256, 256]
        for number, (a, b) in enumerate(itertools.pairwise(widths)):
            layers.append(Residual(a, b, 2 if number and b != a else 1))
        self.body, self.head = nn.Sequential(*layers), nn.Linear(256, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Layer(nn.Module):
    """Attention written out and a feed-forward layer, norms first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head = heads, width // heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (
            f(y).view(y.shape[0], y.shape[1], self.heads, self.head).transpose(1, 2)
            for f in (self.q, self.k, self.v)
        )
        mixed = torch.softmax(q @ k.transpose(-2, -1) / self.head**0.5, -1) @ v
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Six layers of width 128 over 64 positions of 32 features."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Linear(32, 128)
        self.layers = nn.Sequential(*(Layer(128, 4) for _ in range(6)))
        self.head = nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.entry(x))[:, 0])


def perceptron(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class Subject:
    """A network to time: how it is built, the shape of one row, the feature axis, rows of a step."""

    build: Callable[[], nn.Module]
    row: tuple[int, ...]
    axis: int
    rows: int


SUBJECTS = {
    "MLP 784-256-128-10": Subject(lambda: perceptron(784, 256, 128, CLASSES), (784,), 1, 128),
    "100,000 inputs x 64": Subject(lambda: perceptron(100_000, 64, CLASSES), (100_000,), 1, 128),
    "ResNet-18-like, 32 x 32": Subject(ResNet, (3, 32, 32), 1, 16),
    "transformer, 6 layers": Subject(Transformer, (64, 32), 2, 32),
}


class Clocked:
    """A regulariser that keeps the processor time of its last proximal operator."""

    def __init__(self, inner: BoundedPenalty) -> None:
        self.inner, self.seconds = inner, 0.0
        self.penalty, self.weights = inner.penalty, inner.weights

    def prox_(self, blocks: ParameterGroups, strength: Tensor) -> Tensor:
        start = time.thread_time()
        factors = self.inner.prox_(blocks, strength)
        self.seconds = time.thread_time() - start
        return factors


def groups_of(network: nn.Module, x: Tensor, axis: int) -> list[GroupSet]:
    """Every set of a network that can be cut, a feature for each input column."""
    found = [u for u in plan_units(network, (x,), [axis], ["features"]) if not u.refused]
    features = [(str(c), [c]) for c in range(x.shape[axis])]
    return [input_groups(u, features) if u.kind == "input" else hidden_groups(u) for u in found]


@dataclass(frozen=True)
class Pair:
    """A network trained by Adam and the same under the penalty, on one batch."""

    plain: nn.Module
    penalised: nn.Module
    x: Tensor
    y: Tensor
    adam: torch.optim.Optimizer
    proximal: ProximalAdam
    clocked: Clocked
    groups: int

    @classmethod
    def of(cls, subject: Subject, kind: str) -> Pair:
        torch.manual_seed(0)
        plain = subject.build().eval()
        x, y = torch.randn(subject.rows, *subject.row), torch.randint(CLASSES, (subject.rows,))
        other = copy.deepcopy(plain)
        groups = groups_of(other, x[:8], subject.axis)
        weighted = [(g, penalty_weights(other.state_dict(), g, 1.0)) for g in groups]
        task, split = Task("multiclass", "logits", CLASSES), TensorSplit((x,), y)
        objective = Objective(other, task, split, weighted, spec=PenaltySpec(kind=kind))
        clocked = Clocked(objective.regulariser)
        proximal = ProximalAdam(ProximalProblem(objective.blocks, objective.free, clocked, LAMBDA), 1e-4)
        adam = torch.optim.Adam(plain.parameters(), lr=1e-4)
        count = sum(len(g.labels) for g in groups)
        return cls(plain, other, x, y, adam, proximal, clocked, count)


def timed(subject: Subject, steps: int, kind: str = "group_lasso") -> dict[str, float]:
    """Medians over steps run in turn: shares and ratios of processor time on this thread.

    Returns:
        `operator`: the proximal operator over a plain training step; `step`: a step under the penalty over a
        plain one, forward and backward pass in both; `optimizer`: its update over the update of Adam alone;
        `ms`: the plain step.
    """
    pair = Pair.of(subject, kind)
    rows = []
    for _ in range(steps + 3):
        ours = one_step(pair.penalised, pair.x, pair.y, pair.proximal.step)
        theirs = one_step(pair.plain, pair.x, pair.y, pair.adam.step)
        rows.append(
            (pair.clocked.seconds / sum(theirs), sum(ours) / sum(theirs), ours[1] / theirs[1], sum(theirs))
        )
    operator, step, update, seconds = (statistics.median(c) for c in zip(*rows[3:], strict=True))
    return {"operator": operator, "step": step, "update": update, "ms": 1e3 * seconds} | {
        "groups": pair.groups,
        "parameters": sum(p.numel() for p in pair.plain.parameters()),
    }


def profiled(subject: Subject, steps: int) -> dict[str, list[tuple[str, float, float]]]:
    """The operations that take most of a step, plain and under the penalty.

    Returns:
        For `plain` and `penalty` the operation's name, calls in a step, and its share of the step's processor
        time, by share.
    """
    pair = Pair.of(subject, "group_lasso")
    made = {"plain": (pair.plain, pair.adam.step), "penalty": (pair.penalised, pair.proximal.step)}
    found = {}
    for name, (network, update) in made.items():
        one_step(network, pair.x, pair.y, update)  # pays for allocations
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            for _ in range(steps):
                one_step(network, pair.x, pair.y, update)
        events = profile.key_averages()
        whole = sum(e.self_cpu_time_total for e in events)
        shares = [(e.key, e.count / steps, e.self_cpu_time_total / whole) for e in events]
        found[name] = sorted(shares, key=lambda entry: -entry[2])[:8]
    return found


def one_step(network: nn.Module, x: Tensor, y: Tensor, update: Callable[[], object]) -> tuple[float, float]:
    """Processor seconds of the forward and backward pass, and of the update."""
    network.zero_grad(set_to_none=True)
    start = time.thread_time()
    functional.cross_entropy(network(x), y).backward()
    middle = time.thread_time()
    update()
    return middle - start, time.thread_time() - middle
