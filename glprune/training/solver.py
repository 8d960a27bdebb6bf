"""Training at one lambda after another."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glprune.model.diagnostics import explain_nonfinite
from glprune.training.epochs import MIN_STEPS, batch_size, passes_per_epoch, with_halving
from glprune.training.proximal import (
    AcceleratedProximalGradient,
    ProximalAdam,
    ProximalOptimizer,
    ProximalSGD,
)

if TYPE_CHECKING:
    from glprune.data.splits import Inputs
    from glprune.schema.recipe import TrainSpec
    from glprune.training.objective import Objective


class PointSolver:
    """Minimise the objective at one lambda after another, each time from the present weights.

    Args:
        objective: The objective.
        spec: Optimizer, epochs and steps.
        seed: Seed of the order of the rows.
    """

    def __init__(self, objective: Objective, spec: TrainSpec, seed: int) -> None:
        self.objective, self.spec = objective, spec
        self.generator = torch.Generator().manual_seed(seed)
        self.curvature: float | None = None

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what the next lambda depends on besides the weights, as JSON values and tensors."""
        return {"curvature": self.curvature}, {"generator": self.generator.get_state()}

    def load_state_dict(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Continue from a state of ``state_dict``."""
        curvature = values["curvature"]
        self.curvature = None if curvature is None else float(curvature)
        self.generator.set_state(tensors["generator"])

    def solve(self, lam: float, polish: bool = True, is_done: Callable[[], bool] | None = None) -> int:
        """Train at ``lam``: epochs of stochastic proximal steps, then full-batch steps.

        The epochs end early if one of them removed no group and lowered the objective by less
        than ``train.tolerance`` of itself.

        Args:
            lam: Strength of the penalty.
            polish: Whether to end with the full-batch steps.
            is_done: Called about twenty times an epoch; ends the stochastic steps where it returns True.

        Returns:
            How often the step size was halved.

        Raises:
            NonFiniteError: Loss, gradient or weights are not finite, and the recipe allows no (more) halving.
        """
        self.objective.network.eval()
        parameters = list(self.objective.network.parameters())
        start = [p.detach().clone() for p in parameters] if self.spec.max_lr_halvings else []
        order = self.generator.get_state()

        def train(factor: float) -> None:
            self.generator.set_state(order)
            for parameter, old in zip(parameters, start, strict=bool(start)):
                parameter.data.copy_(old)
            self._run_epochs(lam, factor, is_done)
            if polish:
                self.polish(lam)

        _, halvings = with_halving(train, self.spec.max_lr_halvings)
        self.objective.clear()
        return halvings

    def polish(self, lam: float, is_done: Callable[[], bool] | None = None) -> None:
        """Make at most ``train.full_batch_steps`` accelerated steps.

        Args:
            lam: Strength of the penalty.
            is_done: See ``AcceleratedProximalGradient.run``.
        """
        if self.spec.full_batch_steps:
            self.curvature = self._accelerate(lam, self.spec.full_batch_steps, self.curvature, is_done)

    def step(self, lam: float, curvature: float | None = None) -> float:
        """Make one full-batch proximal step of at most ``1.5 / curvature``; return the curvature it used."""
        return self._accelerate(lam, 1, curvature or self.curvature)

    def _accelerate(
        self, lam: float, steps: int, curvature: float | None, is_done: Callable[[], bool] | None = None
    ) -> float:
        gradient = functools.partial(self.objective.gradient, f"lambda {lam:.3g}", self._hint)
        solver = AcceleratedProximalGradient(self.objective.at(lam), gradient, self.objective.loss, curvature)
        solver.run(steps, is_done)
        return solver.curvature

    def _run_epochs(self, lam: float, factor: float, is_done: Callable[[], bool] | None = None) -> None:
        """Make the stochastic steps of one lambda; the step size is multiplied by ``factor``."""
        optimizer = self._optimizer(lam)
        check = _EveryNth(is_done, self._steps_per_check()) if is_done else None
        total = self.spec.epochs
        previous, previous_groups = float("inf"), -1
        passes = passes_per_epoch(self.spec.batch_size, self.objective.split)
        for epoch in range(total):
            optimizer.lr = self.spec.lr * factor * _decay(epoch, total)
            for _ in range(passes):
                value = self._run_pass(optimizer, f"lambda {lam:.3g}, epoch {epoch + 1}", check)
                if check is not None and check.is_done:
                    return
            value += self.objective.penalty(lam)
            groups = int((self.objective.blocks.norms() > 0).sum())
            converged = groups == previous_groups and previous - value < self.spec.tolerance * abs(previous)
            if self.spec.tolerance and converged:
                break
            previous, previous_groups = value, groups

    def _run_pass(self, optimizer: ProximalOptimizer, location: str, check: _EveryNth | None = None) -> float:
        """Make one pass over the training rows, or a part of it; return the mean of the losses met."""
        total = 0.0
        process_group = self.objective.process_group
        size = batch_size(self.spec.batch_size, self.objective.split)
        for number, (inputs, target) in enumerate(self.objective.split.batches(size, self.generator), 1):
            self.objective.clear()
            value = self._backward(inputs, target)
            mean = process_group.average_gradients_(self.objective.network.parameters(), value, len(target))
            if not math.isfinite(mean) or not optimizer.step():
                batch_location = f"{location}, batch {number}"
                error = explain_nonfinite(self.objective.batch(inputs, target), batch_location, self._hint)
                raise process_group.first_error(error, batch_location, self._hint)
            total += value * len(target)
            if check is not None and check():
                break
        return process_group.all_reduce_scalar(total) / self.objective.split.rows

    def _steps_per_check(self) -> int:
        size, split = batch_size(self.spec.batch_size, self.objective.split), self.objective.split
        steps = math.ceil(split.rows / size) * passes_per_epoch(self.spec.batch_size, split)
        return max(1, steps // MIN_STEPS)

    def _backward(self, inputs: Inputs, target: Tensor) -> float:
        """Return the mean loss of a batch, its gradient in ``.grad``; without rows, 0 and no gradient."""
        if not len(target):
            return 0.0
        loss = self.objective.batch_loss(inputs, target, self.spec.precision)
        value = float(loss.detach())
        if math.isfinite(value):
            loss.backward()  # type: ignore[no-untyped-call]
        return value

    @property
    def _hint(self) -> str:
        return f"lower train.lr (now {self.spec.lr:g}) or allow train.max_lr_halvings"

    def _optimizer(self, lam: float) -> ProximalOptimizer:
        problem = self.objective.at(lam)
        if self.spec.optimizer == "adam":
            return ProximalAdam(problem, self.spec.lr)
        momentum = 0.9 if self.spec.momentum is None else self.spec.momentum
        return ProximalSGD(problem, self.spec.lr, momentum)


@dataclass
class _EveryNth:
    """A condition that is checked at every n-th call."""

    condition: Callable[[], bool]
    interval: int
    calls: int = 0
    is_done: bool = False

    def __call__(self) -> bool:
        self.calls += 1
        if self.calls % self.interval == 0:
            self.is_done = self.condition()
        return self.is_done


def _decay(epoch: int, total: int) -> float:
    """Constant for the first half, then down to a tenth: noise must fall for groups to settle."""
    return float(0.1 ** max(0.0, 2.0 * epoch / total - 1.0))
