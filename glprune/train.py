"""Training: one point of the path with the penalty, and the refit without it."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from glprune import crew
from glprune.data import Split
from glprune.errors import NonFiniteError
from glprune.finite import Batch, all_finite, fault
from glprune.objective import CHUNK, Objective
from glprune.optim import ProximalAdam, ProximalOptimizer, ProximalSGD, accelerated_steps
from glprune.precision import Precision, forward
from glprune.recipe import RefitSpec, TrainSpec
from glprune.sharing import SharedSplit
from glprune.task import Task, gain, joined
from glprune.units import Inputs

LEAST_STEPS = 20  # of an epoch: with few rows, a step for each says nothing yet
Outcome = TypeVar("Outcome")
Score = tuple[float, float]


def with_halving(work: Callable[[float], Outcome], allowed: int) -> tuple[Outcome, int]:
    """Run a training, again with half the step size where its numbers stop being finite.

    A training that diverges is finite, and lost, for many steps before it overflows: it begins anew.

    Args:
        work: The training from its beginning; takes the factor on its step size.
        allowed: How often the step size may be halved.

    Returns:
        What it returned, and how often the step size was halved.

    Raises:
        NonFiniteError: The numbers are not finite with the last step size either.
    """
    for done in itertools.count():
        try:
            return work(0.5**done), done
        except NonFiniteError as error:
            if done == 0 == allowed:
                raise
            if done == allowed:
                raise NonFiniteError(f"{error} The step size was halved {done} times.") from None
    raise AssertionError  # the count has no end


@dataclass(frozen=True)
class RefitResult:
    """What the refit did.

    Attributes:
        network: The network at its best epoch, in evaluation mode.
        epochs: Epochs run.
        best_epoch: The epoch kept; 0 is the network before the refit.
        score: The metric it was best in, signed so that more is better, and the negative loss.
        halvings: How often its step size was halved.
    """

    network: nn.Module
    epochs: int
    best_epoch: int
    score: Score
    halvings: int = 0


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

    def solve(self, lam: float, polish: bool = True) -> int:
        """Train at ``lam``: epochs of stochastic proximal steps, then full-batch steps.

        The epochs end early where one of them removed no group and lowered the objective by less
        than ``train.tolerance`` of itself.

        Args:
            lam: Strength of the penalty.
            polish: Whether to close with the full-batch steps.

        Returns:
            How often the step size was halved.

        Raises:
            NonFiniteError: Loss, gradient or weights are not finite, and the recipe allows no (more) halving.
        """
        self.objective.network.eval()
        parameters = list(self.objective.network.parameters())
        start = [p.detach().clone() for p in parameters] if self.spec.halvings else []
        order = self.generator.get_state()

        def train(factor: float) -> None:
            self.generator.set_state(order)
            for parameter, old in zip(parameters, start, strict=bool(start)):
                parameter.data.copy_(old)
            self._epochs(lam, factor)
            if polish:
                self.polish(lam)

        _, halvings = with_halving(train, self.spec.halvings)
        self.objective.clear()
        return halvings

    def _epochs(self, lam: float, factor: float) -> None:
        """The stochastic steps of one lambda, their size multiplied by a factor."""
        optimizer = self._optimizer(lam)
        total = self.spec.epochs
        before, alive = float("inf"), -1
        passes = passes_of_an_epoch(self.spec.batch_size, self.objective.split)
        for epoch in range(total):
            optimizer.lr = self.spec.lr * factor * _decay(epoch, total)
            for _ in range(passes):
                value = self._pass(optimizer, f"lambda {lam:.3g}, epoch {epoch + 1}")
            value += self.objective.penalty(lam)
            left = int((self.objective.blocks.norms() > 0).sum())
            settled = left == alive and before - value < self.spec.tolerance * abs(before)
            if self.spec.tolerance and settled:
                break
            before, alive = value, left

    def _pass(self, optimizer: ProximalOptimizer, where: str) -> float:
        """One pass over the training rows; the mean loss met on the way."""
        total = 0.0
        size = batch_size(self.spec.batch_size, self.objective.split)
        for number, (inputs, target) in enumerate(self.objective.split.batches(size, self.generator), 1):
            self.objective.clear()
            value = self._backward(inputs, target)
            mean = crew.average_gradients_(self.objective.network.parameters(), value, len(target))
            if not math.isfinite(mean) or not optimizer.step():
                at = f"{where}, batch {number}"
                own = fault(self.objective.batch(inputs, target), at, self._mend)
                raise crew.first_error(own, at, self._mend)
            total += value * len(target)
        return crew.total(total) / self.objective.split.rows

    def _backward(self, inputs: Inputs, target: Tensor) -> float:
        """The mean loss of a batch, its gradient in ``.grad``; of no rows, 0 and none."""
        if not len(target):
            return 0.0
        loss = self.objective.batch_loss(inputs, target, self.spec.precision)
        value = float(loss.detach())
        if math.isfinite(value):
            loss.backward()
        return value

    @property
    def _mend(self) -> str:
        return f"lower train.lr (now {self.spec.lr:g}) or allow train.halvings"

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

    def polish(self, lam: float, enough: Callable[[], bool] | None = None) -> None:
        """Full-batch accelerated proximal steps, ``train.polish`` at most; see :func:`accelerated_steps`."""
        if self.spec.polish:
            self.curvature = self._steps(lam, self.spec.polish, self.curvature, enough)

    def step(self, lam: float, curvature: float | None = None) -> float:
        """One full-batch proximal step of at most ``1.5 / curvature``; returns the curvature it used."""
        return self._steps(lam, 1, curvature or self.curvature)

    def _steps(
        self, lam: float, steps: int, curvature: float | None, enough: Callable[[], bool] | None = None
    ) -> float:
        return accelerated_steps(
            self.objective.blocks,
            list(self.objective.free),
            self.objective.regulariser,
            lam,
            functools.partial(self.objective.gradient, f"lambda {lam:.3g}", self._mend),
            self.objective.loss,
            steps,
            curvature,
            enough,
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
    precision: Precision = "float32",
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
        precision: Of the forward passes of its steps; all else is computed in float32.

    Raises:
        NonFiniteError: Loss or gradient are not finite, and the recipe allows no (more) halving.
    """

    def score(candidate: nn.Module) -> Score:
        return _score(candidate, narrow, task, valid, metric)

    best, best_score = network, score(network)
    if spec.epochs and _normalised(network):
        fresh = _reestimated(network, narrow, train, spec)
        best, best_score = max((best, best_score), (fresh, score(fresh)), key=lambda pair: pair[1])

    def attempt(factor: float) -> RefitResult:
        start = best, best_score
        return _refit_epochs(*start, score, narrow, task, train, spec, seed, teacher, factor, precision)

    result, halvings = with_halving(attempt, spec.halvings)
    best, best_score = result.network, result.score
    if result.best_epoch and _normalised(best):
        fresh = _reestimated(best, narrow, train, spec)
        best, best_score = max((best, best_score), (fresh, score(fresh)), key=lambda pair: pair[1])
    return replace(result, network=best.eval(), score=best_score, halvings=halvings)


def _refit_epochs(
    start: nn.Module,
    start_score: Score,
    score: Callable[[nn.Module], Score],
    narrow: Callable[[Inputs], Inputs],
    task: Task,
    train: Split,
    spec: RefitSpec,
    seed: int,
    teacher: nn.Module,
    factor: float,
    precision: Precision,
) -> RefitResult:
    """The refit's epochs from a network, which is copied; the step size is multiplied by a factor."""
    best, best_score, best_epoch, epoch = start, start_score, 0, 0
    student = copy.deepcopy(start)
    _scale_dropout(student, spec, teacher)
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=spec.lr * factor, weight_decay=spec.weight_decay)
    generator = torch.Generator().manual_seed(seed)
    least = 2 if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in student.modules()) else 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for epoch in range(1, spec.epochs + 1):
            student.train()
            batches = rows_of_an_epoch(train, spec.batch_size, generator)
            for number, (x, target) in enumerate(batches, 1):
                if crew.total(len(target)) < 2:
                    continue  # BatchNorm cannot train on one row
                rows = len(target) if len(target) >= least else 0
                loss = functools.partial(
                    _refit_loss, student, narrow, task, x, target, spec, teacher, precision
                )
                if not _refit_step(optimizer, loss, parameters, rows):
                    where = f"refit, epoch {epoch}, batch {number}"
                    mend = f"lower refit.lr (now {spec.lr:g}) or allow refit.halvings"
                    own = fault(Batch(student, narrow(x), target, loss), where, mend)
                    raise crew.first_error(own, where, mend)
            crew.align_buffers_(student)
            now = score(student)
            if now > best_score:
                best, best_score, best_epoch = copy.deepcopy(student), now, epoch
            if epoch - best_epoch >= spec.patience:
                break
    return RefitResult(best, epoch, best_epoch, best_score)


def _refit_step(
    optimizer: torch.optim.Optimizer,
    loss: Callable[[], Tensor],
    parameters: list[nn.Parameter],
    rows: int,
) -> bool:
    """One step; tells whether loss and gradient are finite. Else no step is made.

    Of no rows, which a process among several may have, there is neither.
    """
    optimizer.zero_grad()
    own = 0.0
    if rows:
        value = loss()
        own = float(value.detach())
        if math.isfinite(own):
            value.backward()
    mean = crew.average_gradients_(parameters, own, rows)
    if not math.isfinite(mean) or not all_finite(p.grad for p in parameters):
        return False
    optimizer.step()
    return True


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
    whole = train.whole if isinstance(train, SharedSplit) else train
    for inputs, target in whole.batches(batch_size(spec.batch_size, whole), None):
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
    precision: Precision,
) -> Tensor:
    output = forward(student, narrow(inputs), task.view, precision)
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
) -> Score:
    """The metric, signed so that more is better, and the negative loss."""
    network.eval()
    pairs = (((task.view(network(*narrow(x))),), y) for x, y in split.batches(CHUNK, None))
    (output,), target = joined(pairs, split.rows)
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
