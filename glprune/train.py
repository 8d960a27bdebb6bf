"""Training: one point of the path with the penalty, and the refit without it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from glprune.data import Split
from glprune.errors import ModelError
from glprune.objective import CHUNK, Objective
from glprune.optim import ProximalAdam, ProximalOptimizer, ProximalSGD, accelerated_steps
from glprune.recipe import RefitSpec, TrainSpec
from glprune.task import Task, gain, joined
from glprune.units import Inputs

LEAST_STEPS = 20  # of an epoch: with few rows, a step for each says nothing yet


@dataclass(frozen=True)
class RefitResult:
    """What the refit did.

    Attributes:
        network: The network at its best epoch, in evaluation mode.
        epochs: Epochs run.
        best_epoch: The epoch kept; 0 is the network before the refit.
        score: The metric it was best in, signed so that more is better, and the negative loss.
    """

    network: nn.Module
    epochs: int
    best_epoch: int
    score: tuple[float, float]


def batch_size(size: int | str, split: Split) -> int | None:
    """The recipe's batch size as :meth:`Split.batches` takes it; all rows at once is their number."""
    return split.rows if size == "all" else min(int(size), split.rows)


def passes_of_an_epoch(size: int | str, split: Split) -> int:
    """How often an epoch goes over the rows: once, or more where that would be few steps."""
    steps = math.ceil(split.rows / (batch_size(size, split) or split.rows))
    return math.ceil(LEAST_STEPS / steps)


class PointSolver:
    """Minimise the objective at one lambda after another, each from where the last one ended."""

    def __init__(self, objective: Objective, spec: TrainSpec, seed: int) -> None:
        self.objective, self.spec = objective, spec
        self.generator = torch.Generator().manual_seed(seed)
        self.curvature: float | None = None

    def standing(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What the next lambda depends on beside the weights, as JSON values and tensors."""
        return {"curvature": self.curvature}, {"generator": self.generator.get_state()}

    def stand(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on from where :meth:`standing` was taken."""
        self.curvature = facts["curvature"]
        self.generator.set_state(tensors["generator"])

    def solve(self, lam: float, polish: bool = True) -> None:
        """Train at ``lam``: epochs of stochastic proximal steps, then full-batch steps.

        The epochs end early where one of them removed no group and lowered the objective by less
        than ``train.tolerance`` of itself.

        Args:
            lam: Strength of the penalty.
            polish: Whether to close with the full-batch steps.

        Raises:
            ModelError: The loss is not finite.
        """
        self.objective.network.eval()
        optimizer = self._optimizer(lam)
        total = self.spec.epochs
        before, alive = float("inf"), -1
        passes = passes_of_an_epoch(self.spec.batch_size, self.objective.split)
        for epoch in range(total):
            optimizer.lr = self.spec.lr * _decay(epoch, total)
            for _ in range(passes):
                value = self._pass(optimizer, f"lambda {lam:.3g}, epoch {epoch + 1}")
            value += self.objective.penalty(lam)
            left = int((self.objective.blocks.norms() > 0).sum())
            settled = left == alive and before - value < self.spec.tolerance * abs(before)
            if self.spec.tolerance and settled:
                break
            before, alive = value, left
        if polish:
            self.polish(lam)
        self.objective.clear()

    def _pass(self, optimizer: ProximalOptimizer, where: str) -> float:
        """One pass over the training rows; the mean loss met on the way."""
        total = 0.0
        size = batch_size(self.spec.batch_size, self.objective.split)
        for inputs, target in self.objective.split.batches(size, self.generator):
            self.objective.clear()
            loss = self.objective.batch_loss(inputs, target)
            _check_finite(loss, where)
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(target)
        return total / self.objective.split.rows

    def _optimizer(self, lam: float) -> ProximalOptimizer:
        blocks, regulariser = self.objective.blocks, self.objective.regulariser
        if self.spec.optimizer == "adam":
            return ProximalAdam(blocks, self.objective.free, regulariser, lam, self.spec.lr)
        return ProximalSGD(
            blocks,
            self.objective.free,
            regulariser,
            lam,
            self.spec.lr,
            momentum=0.9 if self.spec.momentum is None else self.spec.momentum,
        )

    def polish(self, lam: float) -> None:
        """Full-batch accelerated proximal steps, as many as ``train.polish`` says."""
        if self.spec.polish:
            self.curvature = self._steps(lam, self.spec.polish, self.curvature)

    def step(self, lam: float, curvature: float | None = None) -> float:
        """One full-batch proximal step of at most ``1.5 / curvature``; returns the curvature it used."""
        return self._steps(lam, 1, curvature or self.curvature)

    def _steps(self, lam: float, steps: int, curvature: float | None) -> float:
        return accelerated_steps(
            self.objective.blocks,
            list(self.objective.free),
            self.objective.regulariser,
            lam,
            self.objective.gradient,
            self.objective.loss,
            steps,
            curvature,
        )


def _decay(epoch: int, total: int) -> float:
    """Constant for the first half, then down to a tenth: noise must fall for groups to settle."""
    late = max(0.0, 2.0 * epoch / total - 1.0)
    return 0.1**late


def refit(
    network: nn.Module,
    narrow: Callable[[Inputs], Inputs],
    task: Task,
    train: Split,
    valid: Split,
    spec: RefitSpec,
    seed: int,
    teacher: nn.Module,
    metric: str,
) -> RefitResult:
    """Train a slim network without penalty and keep its best epoch on the validation split.

    Args:
        network: The slim network; it is copied.
        narrow: Takes the slim network's columns out of a full batch.
        task: Its loss.
        train: Training rows, all columns.
        valid: Validation rows, all columns.
        spec: Epochs, step size, patience and share of distillation.
        seed: Seed of the shuffling and of dropout.
        teacher: The original network, on full batches: followed where ``spec.distill`` is above 0.
        metric: What the best epoch is best in; the lower loss decides between equals.

    Raises:
        ModelError: The loss is not finite.
    """

    def score(candidate: nn.Module) -> tuple[float, float]:
        return _score(candidate, narrow, task, valid, metric)

    best, best_score, best_epoch, epoch = network, score(network), 0, 0
    if spec.epochs and _normalised(network):
        fresh = _reestimated(network, narrow, train, spec)
        best, best_score = max((best, best_score), (fresh, score(fresh)), key=lambda pair: pair[1])
    student = copy.deepcopy(best)
    _scale_dropout(student, spec, teacher)
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=spec.lr, weight_decay=spec.weight_decay)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for epoch in range(1, spec.epochs + 1):
            student.train()
            for inputs, target in rows_of_an_epoch(train, spec.batch_size, generator):
                if len(target) < 2:
                    continue  # BatchNorm cannot train on one row
                optimizer.zero_grad()
                loss = _refit_loss(student, narrow, task, inputs, target, spec, teacher)
                _check_finite(loss, f"refit, epoch {epoch}")
                loss.backward()
                optimizer.step()
            now = score(student)
            if now > best_score:
                best, best_score, best_epoch = copy.deepcopy(student), now, epoch
            if epoch - best_epoch >= spec.patience:
                break
    if best_epoch and _normalised(best):
        fresh = _reestimated(best, narrow, train, spec)
        best, best_score = max((best, best_score), (fresh, score(fresh)), key=lambda pair: pair[1])
    return RefitResult(best.eval(), epoch, best_epoch, best_score)


def _normalised(network: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The BatchNorm layers that hold running statistics."""
    kind = nn.modules.batchnorm._BatchNorm
    return [m for m in network.modules() if isinstance(m, kind) and m.track_running_stats]


@torch.no_grad()
def _reestimated(
    network: nn.Module, narrow: Callable[[Inputs], Inputs], train: Split, spec: RefitSpec
) -> nn.Module:
    """A copy whose BatchNorm statistics are means over the training rows, as its weights now are.

    Running statistics lag behind weights that move, and were those of another network before a cut.
    """
    fresh = copy.deepcopy(network).eval()
    layers = _normalised(fresh)
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over the batches
        layer.train()
    for inputs, target in train.batches(batch_size(spec.batch_size, train), None):
        if len(target) > 1:
            fresh(*narrow(inputs))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    return fresh.eval()


def rows_of_an_epoch(
    split: Split, size: int | str, generator: torch.Generator
) -> Iterator[tuple[Inputs, Tensor]]:
    """The batches of an epoch; see :func:`passes_of_an_epoch`."""
    for _ in range(passes_of_an_epoch(size, split)):
        yield from split.batches(batch_size(size, split), generator)


def _refit_loss(
    student: nn.Module,
    narrow: Callable[[Inputs], Inputs],
    task: Task,
    inputs: Inputs,
    target: Tensor,
    spec: RefitSpec,
    teacher: nn.Module,
) -> Tensor:
    output = task.view(student(*narrow(inputs)))
    share = spec.distill or 0.0
    loss = (1 - share) * task.loss(output, target)
    if share > 0:
        with torch.no_grad():
            taught = task.view(teacher(*inputs))
        loss = loss + share * task.distillation_loss(output, taught, spec.temperature)
    return loss


@torch.no_grad()
def _score(
    network: nn.Module, narrow: Callable[[Inputs], Inputs], task: Task, split: Split, metric: str
) -> tuple[float, float]:
    """The metric, signed so that more is better, and the negative loss."""
    network.eval()
    pairs = (((task.view(network(*narrow(x))),), y) for x, y in split.batches(CHUNK, None))
    (output,), target = joined(pairs)
    return gain(metric, 0.0, task.metric(metric, output, target)), -float(task.loss(output, target))


def _scale_dropout(student: nn.Module, spec: RefitSpec, original: nn.Module) -> None:
    """Lower the dropout rates of a slim network, which has less capacity to spare.

    References:
        Han et al. (2015), "Learning both weights and connections for efficient neural
        networks", section 3.2: the rate goes with the root of the connections left.
    """
    left = sum(p.numel() for p in student.parameters()) / sum(p.numel() for p in original.parameters())
    factor = {"scaled": left**0.5, "kept": 1.0, "off": 0.0}[spec.dropout]
    for name, module in student.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            trained = original.get_submodule(name)
            assert isinstance(trained, nn.modules.dropout._DropoutNd)  # a cut keeps every module
            module.p = trained.p * factor


def _check_finite(loss: Tensor, where: str) -> None:
    if not bool(torch.isfinite(loss)):
        raise ModelError(f"The loss became {float(loss)} ({where}); lower the learning rate in the recipe.")
